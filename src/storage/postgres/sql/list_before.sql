-- Operations with numbers below $1, newest first: at most $3, and at most 4 MiB of records without the last one.
SELECT number, revision, lease_expires_at_ns, record
FROM (
  SELECT number, revision, lease_expires_at_ns, record,
    sum(octet_length(record)) OVER (ORDER BY number DESC) - octet_length(record) AS bytes_before
  FROM (
    SELECT number, revision, lease_expires_at_ns, record FROM {schema}.operations
    WHERE number < $1 AND parent = $2
    ORDER BY number DESC LIMIT $3
  ) AS page
) AS sized
WHERE bytes_before < 4194304
ORDER BY number DESC
