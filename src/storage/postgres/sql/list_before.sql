-- Operations below a number, the newest first: at most so many, and at most 4 MiB
-- of them but for the last.
SELECT number, revision, renewed_until, record
FROM (
  SELECT number, revision, renewed_until, record, sum(octet_length(record)) OVER (ORDER BY number DESC) - octet_length(record) AS above
  FROM (
    SELECT number, revision, renewed_until, record FROM longrunning.operations
    WHERE number < $1 AND parent = $2
    ORDER BY number DESC LIMIT $3
  ) AS page
) AS sized
WHERE above < 4194304
ORDER BY number DESC
