-- The tables. Every name is qualified, so that no statement depends on search_path.
CREATE SCHEMA IF NOT EXISTS {schema};

-- One row for each operation. Servers read `record`; the other columns serve indexes and constraints. Columns that change while
-- an operation runs are in no index, so that such updates stay heap-only.
CREATE TABLE {schema}.operations (
  number bigint PRIMARY KEY,
  name text COLLATE "C" NOT NULL UNIQUE,
  parent text COLLATE "C" NOT NULL,
  -- "parent:request_id" while clients see the operation. bytea, because a request id may hold any character.
  request_key bytea UNIQUE,
  revision integer NOT NULL,
  is_done boolean NOT NULL,
  -- When the retention expires, in microseconds since 1970. NULL until the operation is done.
  expires_at_us bigint,
  -- When the lease expires, in nanoseconds since 1970, if it was renewed after `record` was written: a renewal updates
  -- this and `revision` only.
  lease_expires_at_ns bigint,
  record bytea NOT NULL
) WITH (
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_analyze_scale_factor = 0.05
);
CREATE INDEX operations_parent_number_idx ON {schema}.operations (parent, number);
CREATE INDEX operations_active_idx ON {schema}.operations (number) WHERE NOT is_done;
CREATE INDEX operations_done_idx ON {schema}.operations (number) WHERE is_done;
CREATE INDEX operations_expires_at_idx ON {schema}.operations (expires_at_us) WHERE expires_at_us IS NOT NULL;

-- The change log: which operations changed, by transaction. Other servers read it.
CREATE TABLE {schema}.changes (
  xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  number bigint NOT NULL,
  -- True if only the lease was renewed.
  lease_only boolean NOT NULL,
  changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (
  autovacuum_vacuum_scale_factor = 0.05,
  autovacuum_vacuum_insert_scale_factor = 0.2
);
CREATE INDEX changes_xid_idx ON {schema}.changes (xid);
-- BRIN, because rows are appended in the order of time.
CREATE INDEX changes_changed_at_idx ON {schema}.changes USING brin (changed_at);

CREATE TABLE {schema}.schema_meta (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  -- The version of the tables, and the lowest version that a program must know to write them.
  schema_version integer NOT NULL,
  min_writer_version integer NOT NULL,
  -- All changes of transactions before this one are pruned from `changes`.
  pruned_before_xid xid8 NOT NULL DEFAULT '0'
);
