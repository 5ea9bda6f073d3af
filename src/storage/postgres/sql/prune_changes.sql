-- Prunes up to 10 000 rows of the change log that are older than 10 minutes and older than every running transaction,
-- except those that another server prunes right now. A server that was away for longer reads a snapshot.
WITH prunable AS MATERIALIZED (
  SELECT ctid FROM {schema}.changes
  WHERE changed_at < statement_timestamp() - interval '10 minutes'
    AND xid < pg_snapshot_xmin(pg_current_snapshot())
  LIMIT 10000
  FOR UPDATE SKIP LOCKED
),
pruned AS (
  DELETE FROM {schema}.changes WHERE ctid IN (SELECT ctid FROM prunable)
  RETURNING xid
)
UPDATE {schema}.schema_meta
SET pruned_before_xid =
  greatest(pruned_before_xid, (SELECT (max(xid::text::bigint) + 1)::text::xid8 FROM pruned))
WHERE EXISTS (SELECT 1 FROM pruned)
