-- The tables of one journal. Every name is written out, so that no session has to
-- be told where to look.
CREATE SCHEMA IF NOT EXISTS longrunning;

-- One row for each operation. `record` is what a server reads; the other columns
-- are for the database. What changes while an operation runs is in no index, so
-- that such a change touches none.
CREATE TABLE longrunning.operations (
  number bigint PRIMARY KEY,
  name text COLLATE "C" NOT NULL UNIQUE,
  parent text COLLATE "C" NOT NULL,
  -- The parent and the request id of its creator, while clients see it: as bytes,
  -- because it may hold any character.
  request bytea UNIQUE,
  revision integer NOT NULL,
  is_done boolean NOT NULL,
  -- When its retention is over, in microseconds since 1970, once it is done.
  expires bigint,
  -- How long its lease lasts, in nanoseconds since 1970, if it was renewed since
  -- `record` was written: a renewal writes this and `revision`, and not the record.
  renewed_until bigint,
  record bytea NOT NULL
) WITH (
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_analyze_scale_factor = 0.05
);
CREATE INDEX operations_parent ON longrunning.operations (parent, number);
CREATE INDEX operations_live ON longrunning.operations (number) WHERE NOT is_done;
CREATE INDEX operations_done ON longrunning.operations (number) WHERE is_done;
CREATE INDEX operations_expires ON longrunning.operations (expires) WHERE expires IS NOT NULL;

-- Which operations changed, by transaction: what other servers read.
CREATE TABLE longrunning.changes (
  tx xid8 NOT NULL DEFAULT pg_current_xact_id(),
  number bigint NOT NULL,
  -- Nothing but the lease was renewed.
  is_renewal boolean NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (
  autovacuum_vacuum_scale_factor = 0.05,
  autovacuum_vacuum_insert_scale_factor = 0.2
);
CREATE INDEX changes_tx ON longrunning.changes (tx);
-- What is old stands together, because rows come in the order of time.
CREATE INDEX changes_at ON longrunning.changes USING brin (at);

CREATE TABLE longrunning.meta (
  is_single boolean PRIMARY KEY DEFAULT true CHECK (is_single),
  -- Of the tables, and the lowest that a program must know to write them.
  version integer NOT NULL,
  least integer NOT NULL,
  -- No change of a transaction before this one is in `changes` any more.
  trimmed xid8 NOT NULL DEFAULT '0'
);
INSERT INTO longrunning.meta (version, least) VALUES (1, 1);
