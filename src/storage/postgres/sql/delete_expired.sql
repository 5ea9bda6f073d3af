-- Some of the operations whose retention is over go, but for those that another
-- server lets go of just now. The time is that of the statement: an index is of no use
-- for one that goes on.
WITH old AS MATERIALIZED (
  SELECT number FROM longrunning.operations
  WHERE expires < (extract(epoch FROM statement_timestamp()) * 1000000)::bigint
  ORDER BY expires LIMIT 1000
  FOR UPDATE SKIP LOCKED
),
gone AS (
  DELETE FROM longrunning.operations USING old
  WHERE operations.number = old.number
  RETURNING operations.number
)
INSERT INTO longrunning.changes (number, is_renewal) SELECT number, false FROM gone
