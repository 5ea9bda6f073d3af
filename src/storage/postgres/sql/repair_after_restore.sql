-- After a restore from a logical dump, transaction ids restart. Change-log rows whose xid lies in the future would be
-- read again and again: delete them.
WITH future AS (
  DELETE FROM {schema}.changes
  WHERE xid > pg_snapshot_xmax(pg_current_snapshot())
)
UPDATE {schema}.schema_meta SET pruned_before_xid = '0'
WHERE pruned_before_xid > pg_snapshot_xmax(pg_current_snapshot())
