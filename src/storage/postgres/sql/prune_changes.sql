-- Some changes that are old are forgotten, as far as no transaction from before is
-- under way, but for those that another server forgets just now. A server that was
-- away for longer reads everything anew.
WITH old AS MATERIALIZED (
  SELECT ctid FROM longrunning.changes
  WHERE at < statement_timestamp() - interval '10 minutes'
    AND tx < pg_snapshot_xmin(pg_current_snapshot())
  LIMIT 10000
  FOR UPDATE SKIP LOCKED
),
gone AS (
  DELETE FROM longrunning.changes WHERE ctid IN (SELECT ctid FROM old)
  RETURNING tx
)
UPDATE longrunning.meta
SET trimmed = greatest(trimmed, (SELECT (max(tx::text::bigint) + 1)::text::xid8 FROM gone))
WHERE EXISTS (SELECT 1 FROM gone)
