-- The changes since a snapshot: those of all transactions that are visible now and were not visible then. No change is
-- missed, whichever transaction commits first. Only the first 1000 operations are read inline, and only records that
-- were replaced.
WITH changed AS (
  SELECT number, bool_and(lease_only) AS lease_only, min(changed_at) AS changed_at,
    row_number() OVER (ORDER BY number) <= 1000 AS is_inline
  FROM {schema}.changes
  WHERE xid >= pg_snapshot_xmin($1::text::pg_snapshot)
    AND NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
  GROUP BY number
)
SELECT pg_current_snapshot()::text AS snapshot, pg_postmaster_start_time()::text AS server_started,
  -- False if rows of the change log that are needed were pruned.
  schema_meta.pruned_before_xid <= pg_snapshot_xmin($1::text::pg_snapshot) AS is_complete,
  (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS server_time_us,
  (extract(epoch FROM changed.changed_at) * 1000000)::bigint AS changed_at_us,
  changed.is_inline,
  changed.number, operations.revision, operations.lease_expires_at_ns,
  CASE WHEN NOT changed.lease_only THEN operations.record END AS record
FROM {schema}.schema_meta
  LEFT JOIN changed ON true
  LEFT JOIN {schema}.operations ON changed.is_inline AND operations.number = changed.number
