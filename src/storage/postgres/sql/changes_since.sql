-- What changed since a snapshot: the changes of all transactions that can be seen
-- now and could not be seen then. Whichever commits first, none is missed. Of many
-- only the first are read at once, and no record that was not written anew.
WITH changed AS (
  SELECT number, bool_and(is_renewal) AS is_renewal, min(at) AS at,
    row_number() OVER (ORDER BY number) <= 1000 AS is_near
  FROM longrunning.changes
  WHERE tx >= pg_snapshot_xmin($1::text::pg_snapshot)
    AND NOT pg_visible_in_snapshot(tx, $1::text::pg_snapshot)
  GROUP BY number
)
SELECT pg_current_snapshot()::text, pg_postmaster_start_time()::text,
  changed.number, operations.revision, operations.renewed_until,
  CASE WHEN NOT changed.is_renewal THEN operations.record END,
  changed.is_near,
  meta.trimmed <= pg_snapshot_xmin($1::text::pg_snapshot),
  (extract(epoch FROM changed.at) * 1000000)::bigint,
  (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
FROM longrunning.meta
  LEFT JOIN changed ON true
  LEFT JOIN longrunning.operations ON changed.is_near AND operations.number = changed.number
