-- The roles of a database for `longrunning serve --store postgres://…`. Run it as a
-- superuser, in that database; it may be run again:
--
--     psql -v ON_ERROR_STOP=1 -d longrunning -f deploy/postgres/roles.sql
--
-- `longrunning_owner` owns the schema and makes the tables. It is for migrations,
-- and for the first start of a server. `longrunning_server` is what servers log in
-- as: it reads and writes rows, and can neither change nor drop a table.
--
-- Another schema: psql -v schema=NAME …, and --store-schema NAME.

\if :{?schema}
\else
  \set schema longrunning
\endif

SELECT 'CREATE ROLE longrunning_owner LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'longrunning_owner') \gexec
SELECT 'CREATE ROLE longrunning_server LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'longrunning_server') \gexec
-- No password is written here: set both with \password, or use what pg_hba.conf has.

-- CREATE SCHEMA IF NOT EXISTS, with which a server makes its tables, asks for this
-- right even if the schema is there.
SELECT format('GRANT CREATE ON DATABASE %I TO longrunning_owner', current_database()) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO longrunning_owner, longrunning_server', current_database()) \gexec

CREATE SCHEMA IF NOT EXISTS :"schema" AUTHORIZATION longrunning_owner;
GRANT USAGE ON SCHEMA :"schema" TO longrunning_server;

-- The tables operations, changes and meta: those that are there, and those that the
-- owner makes later. LISTEN and pg_notify need no right.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA :"schema" TO longrunning_server;
ALTER DEFAULT PRIVILEGES FOR ROLE longrunning_owner IN SCHEMA :"schema"
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO longrunning_server;
