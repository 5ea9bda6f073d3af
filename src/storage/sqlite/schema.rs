//! The schema of a database file, and what it says of the file.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};
use uuid::Uuid;

use super::errors::sqlite_error;
use crate::storage::error::StorageError;

/// `LONG`: tells other programs whose file it is.
const APPLICATION_ID: i32 = 0x4c4f_4e47;

/// The steps from an empty file to the current schema. From the first release on, a step never changes.
pub(super) const SCHEMA_STEPS: [&str; 1] = ["
    CREATE TABLE operations (number INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
    CREATE TABLE inputs (number INTEGER PRIMARY KEY, input BLOB NOT NULL) STRICT;
    CREATE TABLE file_info (file_id TEXT NOT NULL, write_count INTEGER NOT NULL, operation_count INTEGER NOT NULL,
        last_timestamp_ns INTEGER) STRICT;
"];

/// The schema version after the first step. Lower versions are those of builds before the first release.
const FIRST_SCHEMA_VERSION: usize = 4;

/// Gives a file a new random ID.
pub(super) fn assign_file_id(connection: &Connection) -> rusqlite::Result<()> {
    let file_id = Uuid::new_v4().to_string();
    connection.execute("UPDATE file_info SET file_id = ?1", [file_id])?;
    Ok(())
}

pub(super) fn count_tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// Checks that the file is empty, or has a schema version that this program supports.
pub(super) fn check_compatible(connection: &Connection, path: &Path) -> Result<(), StorageError> {
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let application_id = pragma("application_id").map_err(to_error)?;
    let table_count = count_tables(connection).map_err(to_error)?;
    if application_id != APPLICATION_ID && (application_id, table_count) != (0, 0) {
        return Err(StorageError::invalid_config(format!(
            "{} is the database of another program: choose another path",
            path.display()
        )));
    }
    let version = pragma("user_version").map_err(to_error)?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    let (current, display) = (schema_version(&SCHEMA_STEPS), path.display());
    let message = if version > current {
        format!(
            "{display} has schema version {version}, and this program supports versions up to {current}: use a newer longrunning"
        )
    } else if version != 0 && version < FIRST_SCHEMA_VERSION {
        format!(
            "{display} has schema version {version} of a build before the first release, which this program cannot read: choose another path, or remove the file"
        )
    } else {
        return Ok(());
    };
    Err(StorageError::unsupported_version(message))
}

/// Returns the schema version after all of the steps.
fn schema_version(steps: &[&str]) -> usize {
    FIRST_SCHEMA_VERSION + steps.len() - 1
}

/// Applies the schema steps that the file lacks, in one transaction.
pub(super) fn apply_schema_steps(
    connection: &mut Connection,
    steps: &[&str],
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: usize = transaction.pragma_query_value(None, "user_version", |row| {
        row.get::<_, i64>(0)
            .map(|version| usize::try_from(version).unwrap_or(0))
    })?;
    let applied_steps = (version + 1).saturating_sub(FIRST_SCHEMA_VERSION);
    for step in steps.iter().skip(applied_steps) {
        transaction.execute_batch(step)?;
    }
    if version == 0 {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.execute(
            "INSERT INTO file_info (file_id, write_count, operation_count) VALUES (?1, 0, 0)",
            [Uuid::new_v4().to_string()],
        )?;
    }
    let current = schema_version(steps);
    if version < current {
        transaction.execute_batch(&format!("PRAGMA user_version = {current}"))?;
    }
    transaction.commit()
}

/// Returns how many operations the file must have.
pub(super) fn read_operation_count(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT operation_count FROM file_info", [], |row| {
        row.get(0)
    })
}

/// Returns the error text for a file that has another number of operations than it must have, or `None`. SQLite does not
/// notice a page that was replaced by an older or another one that is valid by itself.
pub(super) fn compare_operation_count(found: u64, expected: u64) -> Option<String> {
    (found != expected).then(|| {
        format!(
            "the file has {found} operations, but {expected} were stored: a part of it is damaged"
        )
    })
}
