-- Applies a batch of writes, each if the operation still has the expected revision. kind is 0 for insert, 1 for update
-- and 2 for delete.
WITH input AS MATERIALIZED (
  SELECT *
  FROM unnest(
    $1::int2[], $2::int8[], $3::int4[], $4::int4[], $5::text[], $6::text[], $7::bytea[], $8::bool[], $9::int8[],
    $10::bigint[], $11::bytea[]
  ) AS input (kind, number, expected_revision, revision, name, parent, request_key, is_done, expires_at_us,
    lease_expires_at_ns, record)
  -- A program that is too old for the schema writes nothing.
  WHERE (SELECT min_writer_version FROM {schema}.schema_meta) <= $12
),
-- Rows are locked in one order everywhere, so that no two batches wait for each other. The CTE carries all columns that
-- follow, because a join of two CTEs has no index and takes quadratic time.
locked AS MATERIALIZED (
  SELECT input.*
  FROM {schema}.operations JOIN input ON input.number = operations.number
  WHERE input.kind > 0 AND operations.revision = input.expected_revision
  ORDER BY operations.number
  FOR UPDATE OF operations
),
updated AS (
  UPDATE {schema}.operations
  SET revision = locked.revision, request_key = locked.request_key, is_done = locked.is_done,
    expires_at_us = locked.expires_at_us, lease_expires_at_ns = locked.lease_expires_at_ns,
    -- A record that is not replaced need not be read, nor its TOASTed parts.
    record = coalesce(locked.record, operations.record)
  FROM locked
  WHERE locked.kind = 1 AND operations.number = locked.number
  RETURNING operations.number, locked.record IS NULL AS lease_only
),
deleted AS (
  DELETE FROM {schema}.operations
  USING locked
  WHERE locked.kind = 2 AND operations.number = locked.number
  RETURNING operations.number
),
inserted AS (
  INSERT INTO {schema}.operations (number, name, parent, request_key, revision, is_done, expires_at_us, record)
  SELECT number, name, parent, request_key, revision, is_done, expires_at_us, record
  -- Ordered by the unique key that another transaction may hold, so that deadlocks are rare; the batch that
  -- PostgreSQL aborts for one is retried.
  FROM input WHERE kind = 0 ORDER BY coalesce(request_key, name::bytea)
  ON CONFLICT DO NOTHING
  RETURNING number
),
applied AS (
  SELECT number, lease_only FROM updated
  UNION ALL SELECT number, false FROM deleted
  UNION ALL SELECT number, false FROM inserted
),
logged AS (
  INSERT INTO {schema}.changes (number, lease_only) SELECT number, lease_only FROM applied
)
SELECT number FROM applied
