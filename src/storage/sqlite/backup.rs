//! Looking at a file without a server, and copies of it: a backup while a
//! server has it open, and what can be saved of a damaged one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rusqlite::{
    Connection, OptionalExtension,
    backup::{Backup, StepResult},
    params,
};

use super::{
    database::{create, open_read_only, sync_parent_directory},
    errors::{checkpoint_blocked_error, io_error, sqlite_error},
    load::StoredRow,
};
use crate::{
    operation::{Operation, record::RecordDecoder},
    storage::error::{StorageError, StorageErrorKind},
};

const SELECT_ASCENDING: &str = "SELECT number, record FROM operations ORDER BY number";
const SELECT_DESCENDING: &str = "SELECT number, record FROM operations ORDER BY number DESC";
const UPDATE_LAST_TIMESTAMP: &str = "UPDATE journal SET newest = ?1";
const SELECT_INPUT: &str = "SELECT input FROM inputs WHERE number = ?1";

/// What a file holds besides operations.
#[derive(Debug)]
pub(crate) struct Summary {
    /// The file without its log, in bytes.
    pub(crate) file_bytes: u64,
    /// The changes that stand in the log only, in bytes.
    pub(crate) wal_bytes: u64,
    /// The version of the schema.
    pub(crate) schema_version: u32,
    /// How many changes were committed since the file was made.
    pub(crate) write_count: u64,
}

/// Goes through a file, from the oldest operation to the newest; what stands
/// behind damage comes last, from the newest. What is damaged is a sentence.
///
/// # Errors
/// [`JournalError`] if there is no such file, or it is not ours.
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

/// Copies a file as it is at this moment, whether or not a server has it open.
///
/// # Errors
/// [`JournalError`] if it cannot be read, or the copy cannot be written.
pub(crate) fn backup(from: &Path, to: &Path) -> Result<(), StorageError> {
    let source = open_read_only(from)?;
    write_atomically(to, |partial| {
        let to_error = |error: rusqlite::Error| sqlite_error(partial, &error);
        let mut copy = Connection::open(partial).map_err(to_error)?;
        let backup = Backup::new(&source, &mut copy).map_err(to_error)?;
        // In one step it is one moment; a server writes on into its log meanwhile.
        match backup
            .step(-1)
            .map_err(|error| sqlite_error(from, &error))?
        {
            StepResult::Done => {}
            _ => {
                return Err(StorageError::new(
                    StorageErrorKind::InvalidConfig,
                    format!(
                        "{} is locked by another program: end that first",
                        from.display()
                    ),
                ));
            }
        }
        drop(backup);
        let verdict: String = copy
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(to_error)?;
        if verdict == "ok" {
            return close_as_single_file(copy, partial);
        }
        Err(StorageError::new(
            StorageErrorKind::InvalidConfig,
            format!(
                "{} is damaged ({verdict}): save what can be read with --recover",
                from.display()
            ),
        ))
    })
}

/// Writes what can be read of a damaged file into a new one. Returns how many
/// operations that is, and what is lost, in sentences.
///
/// # Errors
/// [`JournalError`] if nothing can be read, or the new file cannot be written.
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
            .execute(UPDATE_LAST_TIMESTAMP, [last_timestamp_ns])
            .map_err(to_error)?;
        transaction.commit().map_err(to_error)?;
        close_as_single_file(target, partial)
    })?;
    Ok((recovered, unreadable))
}

/// Hands over all rows that can be read. Where the file is damaged, those
/// behind the damage come from the other end.
fn for_each_row(connection: &Connection, on_row: &mut dyn FnMut(Result<StoredRow, String>)) {
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
        let is_new = row.as_ref().is_ok_and(|row| last_number < row.number);
        if is_new {
            first_number = row.as_ref().map_or(first_number, |row| row.number);
            on_row(row);
        }
        is_new
    });
    if backward.is_err() || last_number + 1 < first_number {
        let end = match first_number {
            i64::MAX => "the last one".to_owned(),
            number => number.to_string(),
        };
        on_row(Err(format!(
            "operations with numbers after {last_number} and before {end} cannot be read: {error}"
        )));
    }
}

/// Hands over rows until one is not wanted.
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
        connection.query_row("SELECT changes FROM journal", [], |row| row.get(0))?;
    Ok(Summary {
        file_bytes: file_bytes(path),
        wal_bytes: file_bytes(&with_suffix(path, "-wal")),
        schema_version: connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
        write_count: u64::try_from(write_count).unwrap_or(0),
    })
}

/// Makes a file that is whole or not there.
pub(super) fn write_atomically(
    to: &Path,
    write: impl FnOnce(&Path) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    // The log of another file would be taken for that of the new one.
    for suffix in ["", "-wal", "-journal"] {
        let existing = with_suffix(to, suffix);
        if existing.exists() {
            return Err(StorageError::new(
                StorageErrorKind::InvalidConfig,
                format!(
                    "{} exists already: choose another name, or remove it first",
                    existing.display()
                ),
            ));
        }
    }
    let partial = with_suffix(to, ".partial");
    // One that an earlier try left behind.
    remove_with_sidecars(&partial)?;
    let result = write(&partial).and_then(|()| {
        // What SQLite could not remove, it says nothing of.
        remove_sidecars(&partial)?;
        fs::rename(&partial, to).map_err(|error| io_error(to, &error))?;
        sync_parent_directory(to).inspect_err(|_| drop(remove_with_sidecars(to)))
    });
    if result.is_err() {
        // What came before says more.
        let _ = remove_with_sidecars(&partial);
    }
    result
}

/// Moves everything into the one file that is about to get its name, and closes
/// it. When it is just dropped, SQLite does the same and tells nobody of errors.
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

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes a file that nobody has open, and what stands beside it.
fn remove_with_sidecars(path: &Path) -> Result<(), StorageError> {
    remove_if_exists(path)?;
    remove_sidecars(path)
}

fn remove_sidecars(path: &Path) -> Result<(), StorageError> {
    ["-wal", "-shm", "-journal"]
        .iter()
        .try_for_each(|suffix| remove_if_exists(&with_suffix(path, suffix)))
}

/// It need not be there.
fn remove_if_exists(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path, &error)),
        _ => Ok(()),
    }
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
