-- What changed since a snapshot: the changes of all transactions that can be seen
-- now and could not be seen then. Whichever commits first, none is missed.
WITH changed AS (
  SELECT DISTINCT number
  FROM longrunning.changes
  WHERE tx >= pg_snapshot_xmin($1::text::pg_snapshot)
    AND NOT pg_visible_in_snapshot(tx, $1::text::pg_snapshot)
)
SELECT pg_current_snapshot()::text, pg_postmaster_start_time()::text,
  meta.trimmed <= pg_snapshot_xmin($1::text::pg_snapshot),
  changed.number, operations.record
FROM longrunning.meta
  LEFT JOIN changed ON true
  LEFT JOIN longrunning.operations ON operations.number = changed.number
