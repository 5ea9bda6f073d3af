-- A database that was restored from a dump numbers its transactions anew. Those that
-- are noted from before and are still to come there would be read again and again.
WITH future AS (
  DELETE FROM longrunning.changes
  WHERE tx > pg_snapshot_xmax(pg_current_snapshot())
)
UPDATE longrunning.meta SET trimmed = '0'
WHERE trimmed > pg_snapshot_xmax(pg_current_snapshot())
