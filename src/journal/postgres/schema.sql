-- The tables of one journal. Every name is written out, so that no session has to
-- be told where to look.
CREATE SCHEMA IF NOT EXISTS longrunning;

-- One row for each operation. `record` is what a server reads; the other columns
-- are for the database.
CREATE TABLE longrunning.operations (
  number bigint PRIMARY KEY,
  name text COLLATE "C" NOT NULL UNIQUE,
  -- The parent and the request id of its creator, while clients see it.
  request text COLLATE "C" UNIQUE,
  revision integer NOT NULL,
  is_done boolean NOT NULL,
  record bytea NOT NULL
) WITH (fillfactor = 80);

-- Which operations changed, by transaction: what other servers read.
CREATE TABLE longrunning.changes (
  tx xid8 NOT NULL DEFAULT pg_current_xact_id(),
  number bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX changes_tx ON longrunning.changes (tx);

CREATE TABLE longrunning.meta (
  is_single boolean PRIMARY KEY DEFAULT true CHECK (is_single),
  version integer NOT NULL,
  -- No change of a transaction before this one is in `changes` any more.
  trimmed xid8 NOT NULL DEFAULT '0'
);
INSERT INTO longrunning.meta (version) VALUES (1);
