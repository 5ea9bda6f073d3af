//! The schema: creates and upgrades the tables, and checks that this program may write them.

use std::fmt::Write;

use super::{connection::Connection, error::missing_meta_error, statements::Statements};
use crate::storage::error::{StorageError, StorageErrorKind};

/// A step that takes the tables to `version` from the version of the step before it.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// The schema version after this step.
    version: i32,
    /// The lowest version that a program must know to write the tables after this step. Programs in between go on
    /// while a newer one upgrades the tables.
    min_writer_version: i32,
    /// Statements of PL/pgSQL, each with a semicolon. They run in one transaction with all steps that are missing,
    /// within [`QUERY_TIMEOUT`](super::connection::QUERY_TIMEOUT).
    sql: &'static str,
}

/// All steps, by ascending version. The first creates the tables.
const STEPS: &[Step] = &[Step {
    version: 3,
    min_writer_version: 3,
    sql: include_str!("sql/schema.sql"),
}];

/// The schema version that this program knows.
pub(super) const SCHEMA_VERSION: i32 = STEPS[STEPS.len() - 1].version;

/// The versions in `schema_meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SchemaVersions {
    schema_version: i32,
    min_writer_version: i32,
}

/// Creates or upgrades the tables where needed, and repairs the change log of a restored database.
///
/// # Errors
/// `UnsupportedVersion` if this program must not write the tables, or another [`StorageError`] of the database.
pub(super) async fn ensure_schema(
    connection: &Connection,
    statements: &Statements,
) -> Result<(), StorageError> {
    apply_steps(STEPS, connection, statements).await?;
    let repair = &statements.repair_after_restore;
    connection.execute(repair, &[]).await.map(drop)
}

/// Checks that this program may write the tables.
///
/// # Errors
/// `UnsupportedVersion` if not, `Corrupt` if the tables have no version, or `Unavailable`.
pub(super) async fn check_schema_version(
    connection: &Connection,
    statements: &Statements,
) -> Result<(), StorageError> {
    let versions = read_versions(connection, statements).await?;
    versions.check(SCHEMA_VERSION)
}

/// Applies the steps that are missing, on one server at a time. Checks that a program with these steps may write the
/// tables.
async fn apply_steps(
    steps: &[Step],
    connection: &Connection,
    statements: &Statements,
) -> Result<(), StorageError> {
    let version = steps.last().map_or(0, |step| step.version);
    let tables = connection.query_one(&statements.find_tables, &[]).await?;
    let has_tables: bool = tables.get("has_tables");
    if !has_tables && tables.get("has_unreleased_tables") {
        return Err(StorageError::unsupported_version(format!(
            "the schema {0} has tables of an unreleased build, which cannot be upgraded; use another schema, or \
                 delete these operations with DROP SCHEMA {0} CASCADE",
            statements.schema
        )));
    }
    let is_current =
        has_tables && read_versions(connection, statements).await?.schema_version >= version;
    if !is_current {
        let upgrade = statements.with_schema(&upgrade_sql(steps));
        connection.batch_execute(&upgrade).await?;
    }
    let versions = read_versions(connection, statements).await?;
    versions.check(version)
}

/// Returns SQL that applies the missing steps under an advisory lock. As one message without transaction control, it
/// is one transaction, which leaves nothing behind in the session if it fails.
fn upgrade_sql(steps: &[Step]) -> String {
    let mut upgrades = String::new();
    for Step {
        version,
        min_writer_version,
        sql,
    } in steps
    {
        write!(
            upgrades,
            "IF previous_version < {version} THEN
               {sql}
               INSERT INTO {{schema}}.schema_meta (schema_version, min_writer_version)
               VALUES ({version}, {min_writer_version})
               ON CONFLICT (singleton) DO UPDATE
               SET schema_version = excluded.schema_version, min_writer_version = excluded.min_writer_version;
             END IF;\n"
        )
        .expect("a string accepts all text");
    }
    format!(
        "SELECT pg_advisory_xact_lock(hashtext('{{schema}}'));
         DO $do$ DECLARE previous_version integer := 0; BEGIN
           IF to_regclass('{{schema}}.schema_meta') IS NOT NULL THEN
             SELECT schema_version INTO previous_version FROM {{schema}}.schema_meta;
           END IF;
           {upgrades}
         END $do$"
    )
}

async fn read_versions(
    connection: &Connection,
    statements: &Statements,
) -> Result<SchemaVersions, StorageError> {
    let row = connection
        .query_opt(&statements.schema_version, &[])
        .await?;
    let row = row.ok_or_else(missing_meta_error)?;
    Ok(SchemaVersions {
        schema_version: row.get("schema_version"),
        min_writer_version: row.get("min_writer_version"),
    })
}

// === impl SchemaVersions ===

impl SchemaVersions {
    /// Checks that a program that knows `program_version` may write tables of these versions.
    fn check(self, program_version: i32) -> Result<(), StorageError> {
        let Self {
            schema_version,
            min_writer_version,
        } = self;
        let message = if min_writer_version > program_version {
            format!(
                "the tables have schema version {schema_version}, which requires a program that knows version \
                 {min_writer_version}; this one knows version {program_version}: use a newer longrunning"
            )
        } else if schema_version < program_version {
            format!(
                "the tables have schema version {schema_version}, and this program requires version \
                 {program_version}; restart it to upgrade them"
            )
        } else {
            return Ok(());
        };
        let kind = StorageErrorKind::UnsupportedVersion;
        Err(StorageError::new(kind, message))
    }
}

#[cfg(test)]
mod tests;
