-- Changes that are old are forgotten, as far as no transaction from before is under
-- way; a server that was away for longer reads everything anew.
WITH old AS (
  DELETE FROM longrunning.changes
  WHERE at < clock_timestamp() - interval '10 minutes'
    AND tx < pg_snapshot_xmin(pg_current_snapshot())
  RETURNING tx
)
UPDATE longrunning.meta
SET trimmed = greatest(trimmed, (SELECT (max(tx::text::bigint) + 1)::text::xid8 FROM old))
WHERE EXISTS (SELECT 1 FROM old)
