-- Roles for `longrunning serve --store postgres://…`. Run this as a superuser, in
-- that database. It is idempotent:
--
--     psql -v ON_ERROR_STOP=1 -d longrunning -f deploy/postgres/roles.sql
--
-- `longrunning_owner` owns the schema and creates the tables. Use it for the first
-- start of a server and for schema upgrades. `longrunning_server` is the role of the
-- servers: it reads and writes rows, and can neither alter nor drop a table.
--
-- For another schema: psql -v schema=NAME …, and --store-schema NAME.

\if :{?schema}
\else
  \set schema longrunning
\endif

SELECT 'CREATE ROLE longrunning_owner LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'longrunning_owner') \gexec
SELECT 'CREATE ROLE longrunning_server LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'longrunning_server') \gexec
-- Set passwords with \password, or configure another authentication in pg_hba.conf.

-- A server runs CREATE SCHEMA IF NOT EXISTS, which requires this privilege even if
-- the schema exists.
SELECT format('GRANT CREATE ON DATABASE %I TO longrunning_owner', current_database()) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO longrunning_owner, longrunning_server', current_database()) \gexec

CREATE SCHEMA IF NOT EXISTS :"schema" AUTHORIZATION longrunning_owner;
GRANT USAGE ON SCHEMA :"schema" TO longrunning_server;

-- For the tables operations, changes and schema_meta, existing and future. LISTEN and
-- pg_notify require no privilege.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA :"schema" TO longrunning_server;
ALTER DEFAULT PRIVILEGES FOR ROLE longrunning_owner IN SCHEMA :"schema"
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO longrunning_server;
