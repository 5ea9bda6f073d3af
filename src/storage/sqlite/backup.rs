//! Offline tools for a database file: inspect it, back it up while a server has it open, and recover a damaged one.

use std::{fs, io, path::Path};

use rusqlite::{
    Connection, OptionalExtension,
    backup::{Backup, StepResult},
    params,
};

use super::{
    database::{create, open_read_only},
    errors::{checkpoint_blocked_error, io_error, sqlite_error},
    load::StoredRow,
    paths::{sync_parent_directory, with_suffix},
    schema::{assign_file_id, compare_operation_count, read_operation_count},
};
use crate::{
    operation::{Operation, record::RecordDecoder},
    storage::error::StorageError,
};

const SELECT_ASCENDING: &str = "SELECT number, record FROM operations ORDER BY number";
const SELECT_DESCENDING: &str = "SELECT number, record FROM operations ORDER BY number DESC";
const UPDATE_FILE_INFO: &str = "UPDATE file_info SET last_timestamp_ns = ?1, operation_count = ?2";
const COUNT_OPERATIONS: &str = "SELECT count(*) FROM operations";
const SELECT_INPUT: &str = "SELECT input FROM inputs WHERE number = ?1";

/// A summary of a file.
#[derive(Debug)]
pub(crate) struct Summary {
    /// The size of the file without its WAL.
    pub(crate) file_bytes: u64,
    /// The size of the WAL.
    pub(crate) wal_bytes: u64,
    /// The version of the schema.
    pub(crate) schema_version: u32,
    /// The number of writes committed since the file was created.
    pub(crate) write_count: u64,
}

/// Calls `on_operation` with every operation, from the oldest to the newest; those behind a damaged part come last,
/// newest first. A damaged operation is an error text.
///
/// # Errors
/// [`StorageError`] if the file does not exist, or belongs to another program.
pub(crate) fn inspect(
    path: &Path,
    mut on_operation: impl FnMut(Result<Operation, String>),
) -> Result<Summary, StorageError> {
    let connection = open_read_only(path)?;
    let summary = read_summary(&connection, path).map_err(|error| sqlite_error(path, &error))?;
    let mut decoder = RecordDecoder::default();
    for_each_row(&connection, &mut |row| {
        on_operation(row.and_then(|row| row.decode(&mut decoder)));
    });
    Ok(summary)
}

/// Copies a consistent snapshot of a file, whether or not a server has it open.
pub(crate) fn backup(from: &Path, to: &Path) -> Result<(), StorageError> {
    let source = open_read_only(from)?;
    write_atomically(to, |partial| copy_database(&source, from, partial))
}

/// Copies a consistent snapshot of an open file to a new file, which gets an ID of its own.
pub(super) fn copy_database(
    source: &Connection,
    from: &Path,
    to: &Path,
) -> Result<(), StorageError> {
    let to_error = |error: rusqlite::Error| sqlite_error(to, &error);
    let mut copy = Connection::open(to).map_err(to_error)?;
    let backup = Backup::new(source, &mut copy).map_err(to_error)?;
    // A single step is a single snapshot; a server continues to write to its WAL.
    let result = backup
        .step(-1)
        .map_err(|error| sqlite_error(from, &error))?;
    if result != StepResult::Done {
        return Err(StorageError::invalid_config(format!(
            "{} is locked by another program: stop it first",
            from.display()
        )));
    }
    drop(backup);
    let mut verdict: String = copy
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(to_error)?;
    if verdict == "ok" {
        let found = copy.query_row(COUNT_OPERATIONS, [], |row| row.get(0));
        let expected = read_operation_count(&copy).map_err(to_error)?;
        let mismatch = compare_operation_count(found.map_err(to_error)?, expected);
        verdict = mismatch.unwrap_or(verdict);
    }
    if verdict == "ok" {
        assign_file_id(&copy).map_err(to_error)?;
        return close_as_single_file(copy, to);
    }
    Err(StorageError::invalid_config(format!(
        "{} is damaged ({verdict}): recover readable operations with --recover",
        from.display()
    )))
}

/// Copies the readable operations of a damaged file into a new one. Returns their number, and a text for each part that
/// is lost.
pub(crate) fn recover(from: &Path, to: &Path) -> Result<(u64, Vec<String>), StorageError> {
    let source = open_read_only(from)?;
    let (mut recovered, mut unreadable) = (0, Vec::new());
    write_atomically(to, |partial| {
        let to_error = |error: rusqlite::Error| sqlite_error(partial, &error);
        let mut target = create(partial)?;
        let transaction = target.transaction().map_err(to_error)?;
        let (mut decoder, mut insert_result, mut last_timestamp_ns) =
            (RecordDecoder::default(), Ok(()), None);
        for_each_row(&source, &mut |row| {
            let row = row.and_then(|row| Ok((row.decode(&mut decoder)?.update_time(), row)));
            match row {
                Ok((update_time, row)) => {
                    insert_result = std::mem::replace(&mut insert_result, Ok(()))
                        .and_then(|()| insert_row(&row, &transaction));
                    last_timestamp_ns = last_timestamp_ns.max(Some(update_time.nanos()));
                    recovered += 1;
                }
                Err(error) => unreadable.push(error),
            }
        });
        insert_result.map_err(to_error)?;
        transaction
            .execute(UPDATE_FILE_INFO, params![last_timestamp_ns, recovered])
            .map_err(to_error)?;
        transaction.commit().map_err(to_error)?;
        close_as_single_file(target, partial)
    })?;
    Ok((recovered, unreadable))
}

/// Calls `on_row` with all readable rows of one snapshot, and with an error if there are not as many as were stored.
fn for_each_row(connection: &Connection, on_row: &mut dyn FnMut(Result<StoredRow, String>)) {
    // Not even a damaged file fails here: nothing is read yet.
    let snapshot = connection.unchecked_transaction();
    let expected = read_operation_count(connection);
    let (mut found, mut is_damaged) = (0, false);
    for_each_stored_row(connection, &mut |row| {
        match &row {
            Ok(_) => found += 1,
            Err(_) => is_damaged = true,
        }
        on_row(row);
    });
    drop(snapshot);
    let mismatch = expected.map(|expected| compare_operation_count(found, expected));
    if let (false, Ok(Some(mismatch))) = (is_damaged, mismatch) {
        on_row(Err(mismatch));
    }
}

/// Calls `on_row` with all readable rows. Those behind a damaged part are read from the other end.
fn for_each_stored_row(connection: &Connection, on_row: &mut dyn FnMut(Result<StoredRow, String>)) {
    let mut last_number = 0;
    let Err(error) = scan_while(connection, SELECT_ASCENDING, &mut |row| {
        if let Ok(row) = &row {
            last_number = row.number;
        }
        on_row(row);
        true
    }) else {
        return;
    };
    let mut first_number = i64::MAX;
    let backward = scan_while(connection, SELECT_DESCENDING, &mut |row| {
        let is_new = row.as_ref().is_ok_and(|row| row.number > last_number);
        if is_new {
            first_number = row.as_ref().map_or(first_number, |row| row.number);
            on_row(row);
        }
        is_new
    });
    if backward.is_err() || first_number > last_number + 1 {
        let end = match first_number {
            i64::MAX => "the last one".to_owned(),
            number => number.to_string(),
        };
        on_row(Err(format!(
            "operations with numbers after {last_number} and before {end} cannot be read: {error}"
        )));
    }
}

/// Calls `on_row` with rows until it returns `false`.
fn scan_while(
    connection: &Connection,
    sql: &str,
    on_row: &mut dyn FnMut(Result<StoredRow, String>) -> bool,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut inputs = connection.prepare(SELECT_INPUT)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (number, record) = (row.get(0)?, row.get(1)?);
        let input = inputs.query_row([number], |row| row.get(0)).optional();
        let row = input
            .map(|input| StoredRow {
                number,
                record,
                input,
            })
            .map_err(|error| format!("the input of operation number {number} is damaged: {error}"));
        if !on_row(row) {
            break;
        }
    }
    Ok(())
}

fn read_summary(connection: &Connection, path: &Path) -> rusqlite::Result<Summary> {
    let file_bytes = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let write_count: i64 =
        connection.query_row("SELECT write_count FROM file_info", [], |row| row.get(0))?;
    Ok(Summary {
        file_bytes: file_bytes(path),
        wal_bytes: file_bytes(&with_suffix(path, "-wal")),
        schema_version: connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
        write_count: u64::try_from(write_count).unwrap_or(0),
    })
}

/// Writes a file so that it is complete or does not exist.
pub(super) fn write_atomically(
    to: &Path,
    write: impl FnOnce(&Path) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    // SQLite would take the WAL of another file for that of the new one.
    for suffix in ["", "-wal", "-journal"] {
        let existing = with_suffix(to, suffix);
        if existing.exists() {
            return Err(StorageError::invalid_config(format!(
                "{} already exists: choose another name, or remove it first",
                existing.display()
            )));
        }
    }
    let partial = with_suffix(to, ".partial");
    // A previous run may have left one.
    remove_with_sidecars(&partial)?;
    let result = write(&partial).and_then(|()| {
        // SQLite does not report files that it failed to remove.
        remove_existing(&partial, &["-wal", "-shm", "-journal"])?;
        fs::rename(&partial, to).map_err(|error| io_error(to, &error))?;
        sync_parent_directory(to).inspect_err(|_| drop(remove_with_sidecars(to)))
    });
    if result.is_err() {
        // The first error says more.
        let _ = remove_with_sidecars(&partial);
    }
    result
}

/// Checkpoints the WAL into the file and closes it. Dropping the connection would do the same, but hide errors.
pub(super) fn close_as_single_file(
    connection: Connection,
    path: &Path,
) -> Result<(), StorageError> {
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "delete", |row| row.get(0))
        .map_err(to_error)?;
    if mode != "delete" {
        return Err(checkpoint_blocked_error(path));
    }
    connection.close().map_err(|(_, error)| to_error(error))
}

/// Removes a file that is not open, with its WAL and the like.
pub(super) fn remove_with_sidecars(path: &Path) -> Result<(), StorageError> {
    remove_existing(path, &["", "-wal", "-shm", "-journal"])
}

/// Removes the files with these suffixes that exist.
pub(super) fn remove_existing(path: &Path, suffixes: &[&str]) -> Result<(), StorageError> {
    suffixes.iter().try_for_each(|suffix| {
        let path = with_suffix(path, suffix);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&path, &error)),
            _ => Ok(()),
        }
    })
}

fn insert_row(row: &StoredRow, connection: &Connection) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO operations (number, record) VALUES (?1, ?2)")?
        .execute(params![row.number, row.record])?;
    if let Some(input) = &row.input {
        connection
            .prepare_cached("INSERT INTO inputs (number, input) VALUES (?1, ?2)")?
            .execute(params![row.number, input])?;
    }
    Ok(())
}
