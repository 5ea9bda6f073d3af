WITH given AS MATERIALIZED (
  SELECT *
  FROM unnest(
    $1::int2[], $2::int8[], $3::int4[], $4::int4[], $5::text[], $6::text[], $7::bytea[], $8::bool[], $9::int8[],
    $10::bigint[], $11::bytea[]
  ) AS given (kind, number, seen, revision, name, parent, request, is_done, expires, renewed_until, record)
  -- A program that is too old for the tables keeps nothing.
  WHERE (SELECT least FROM longrunning.meta) <= $12
),
-- Locked in one order everywhere, so that no two batches wait for each other. All that
-- is needed stands here, because to join two lists without an index takes the square.
ours AS MATERIALIZED (
  SELECT given.*
  FROM longrunning.operations JOIN given ON given.number = operations.number
  WHERE given.kind > 0 AND operations.revision = given.seen
  ORDER BY operations.number
  FOR UPDATE OF operations
),
changed AS (
  UPDATE longrunning.operations
  SET revision = ours.revision, request = ours.request, is_done = ours.is_done,
    expires = ours.expires, renewed_until = ours.renewed_until,
    -- What was not written anew need not be read, nor its parts that are kept elsewhere.
    record = coalesce(ours.record, operations.record)
  FROM ours
  WHERE ours.kind = 1 AND operations.number = ours.number
  RETURNING operations.number, ours.record IS NULL AS is_renewal
),
gone AS (
  DELETE FROM longrunning.operations
  USING ours
  WHERE ours.kind = 2 AND operations.number = ours.number
  RETURNING operations.number
),
made AS (
  INSERT INTO longrunning.operations (number, name, parent, request, revision, is_done, expires, record)
  SELECT number, name, parent, request, revision, is_done, expires, record
  -- In the order of what one may have to wait for, so that seldom two batches wait for
  -- each other; one of those is told so, and tries again.
  FROM given WHERE kind = 0 ORDER BY coalesce(request, name::bytea)
  ON CONFLICT DO NOTHING
  RETURNING number
),
kept AS (
  SELECT number, is_renewal FROM changed
  UNION ALL SELECT number, false FROM gone
  UNION ALL SELECT number, false FROM made
),
noted AS (
  INSERT INTO longrunning.changes (number, is_renewal) SELECT number, is_renewal FROM kept
)
SELECT number FROM kept
