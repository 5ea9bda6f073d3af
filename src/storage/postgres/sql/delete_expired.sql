-- Deletes up to 1000 operations whose retention has expired, except those that another server deletes right now. Uses
-- statement_timestamp(), which is constant, so that the index on expires_at_us can be used.
WITH expired AS MATERIALIZED (
  SELECT number FROM {schema}.operations
  WHERE expires_at_us < (extract(epoch FROM statement_timestamp()) * 1000000)::bigint
  ORDER BY expires_at_us LIMIT 1000
  FOR UPDATE SKIP LOCKED
),
deleted AS (
  DELETE FROM {schema}.operations USING expired
  WHERE operations.number = expired.number
  RETURNING operations.number
)
INSERT INTO {schema}.changes (number, lease_only) SELECT number, false FROM deleted
