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
    file::{create, sync_directory, view},
    refusal::{describe, failed, read_by_others},
    replay::Row,
};
use crate::{
    journal::journal::JournalError,
    operation::{operation::Operation, record::Reader},
};

const FORWARD: &str = "SELECT number, record FROM operations ORDER BY number";
const BACKWARD: &str = "SELECT number, record FROM operations ORDER BY number DESC";
const NEWEST: &str = "UPDATE journal SET newest = ?1";
const INPUT: &str = "SELECT input FROM inputs WHERE number = ?1";

/// What a file holds besides operations.
#[derive(Debug)]
pub(crate) struct Summary {
    /// The file without its log, in bytes.
    pub(crate) bytes: u64,
    /// The changes that stand in the log only, in bytes.
    pub(crate) log_bytes: u64,
    /// The version of the schema.
    pub(crate) schema: u32,
    /// How many changes were committed since the file was made.
    pub(crate) changes: u64,
}

/// Goes through a file, from the oldest operation to the newest; what stands
/// behind damage comes last, from the newest. What is damaged is a sentence.
///
/// # Errors
/// [`JournalError`] if there is no such file, or it is not ours.
pub(crate) fn inspect(
    path: &Path,
    mut each: impl FnMut(Result<Operation, String>),
) -> Result<Summary, JournalError> {
    let connection = view(path)?;
    let summary = summary(&connection, path).map_err(|error| describe(path, &error))?;
    let mut reader = Reader::default();
    walk(&connection, &mut |row| {
        each(row.and_then(|row| row.decode(&mut reader)));
    });
    Ok(summary)
}

/// Copies a file as it is at this moment, whether or not a server has it open.
///
/// # Errors
/// [`JournalError`] if it cannot be read, or the copy cannot be written.
pub(crate) fn backup(from: &Path, to: &Path) -> Result<(), JournalError> {
    let source = view(from)?;
    write_whole(to, |partial| {
        let at = |error: rusqlite::Error| describe(partial, &error);
        let mut copy = Connection::open(partial).map_err(at)?;
        let backup = Backup::new(&source, &mut copy).map_err(at)?;
        // In one step it is one moment; a server writes on into its log meanwhile.
        match backup.step(-1).map_err(|error| describe(from, &error))? {
            StepResult::Done => {}
            _ => {
                return Err(JournalError(format!(
                    "{} is locked by another program: end that first",
                    from.display()
                )));
            }
        }
        drop(backup);
        let verdict: String = copy
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(at)?;
        if verdict == "ok" {
            return finish(copy, partial);
        }
        Err(JournalError(format!(
            "{} is damaged ({verdict}): save what can be read with --salvage",
            from.display()
        )))
    })
}

/// Writes what can be read of a damaged file into a new one. Returns how many
/// operations that is, and what is lost, in sentences.
///
/// # Errors
/// [`JournalError`] if nothing can be read, or the new file cannot be written.
pub(crate) fn salvage(from: &Path, to: &Path) -> Result<(u64, Vec<String>), JournalError> {
    let source = view(from)?;
    let (mut saved, mut lost) = (0, Vec::new());
    write_whole(to, |partial| {
        let at = |error: rusqlite::Error| describe(partial, &error);
        let mut new = create(partial)?;
        let transaction = new.transaction().map_err(at)?;
        let (mut reader, mut failure, mut newest) = (Reader::default(), Ok(()), None);
        walk(&source, &mut |row| {
            let row = row.and_then(|row| Ok((row.decode(&mut reader)?.update_time(), row)));
            match row {
                Ok((time, row)) => {
                    failure = std::mem::replace(&mut failure, Ok(()))
                        .and_then(|()| put(&row, &transaction));
                    newest = newest.max(Some(time.nanos()));
                    saved += 1;
                }
                Err(damage) => lost.push(damage),
            }
        });
        failure.map_err(at)?;
        transaction.execute(NEWEST, [newest]).map_err(at)?;
        transaction.commit().map_err(at)?;
        finish(new, partial)
    })?;
    Ok((saved, lost))
}

/// Hands over all rows that can be read. Where the file is damaged, those
/// behind the damage come from the other end.
fn walk(connection: &Connection, each: &mut dyn FnMut(Result<Row, String>)) {
    let mut last = 0;
    let Err(error) = part(connection, FORWARD, &mut |row| {
        if let Ok(row) = &row {
            last = row.number;
        }
        each(row);
        true
    }) else {
        return;
    };
    let mut first = i64::MAX;
    let behind = part(connection, BACKWARD, &mut |row| {
        let is_new = row.as_ref().is_ok_and(|row| last < row.number);
        if is_new {
            first = row.as_ref().map_or(first, |row| row.number);
            each(row);
        }
        is_new
    });
    if behind.is_err() || last + 1 < first {
        let to = match first {
            i64::MAX => "the last one".to_owned(),
            first => first.to_string(),
        };
        each(Err(format!(
            "operations with numbers after {last} and before {to} cannot be read: {error}"
        )));
    }
}

/// Hands over rows until one is not wanted.
fn part(
    connection: &Connection,
    sql: &str,
    each: &mut dyn FnMut(Result<Row, String>) -> bool,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut inputs = connection.prepare(INPUT)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (number, record) = (row.get(0)?, row.get(1)?);
        let input = inputs.query_row([number], |row| row.get(0)).optional();
        let row = input
            .map(|input| Row {
                number,
                record,
                input,
            })
            .map_err(|error| format!("the input of operation number {number} is damaged: {error}"));
        if !each(row) {
            break;
        }
    }
    Ok(())
}

fn summary(connection: &Connection, path: &Path) -> rusqlite::Result<Summary> {
    let size = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let changes: i64 = connection.query_row("SELECT changes FROM journal", [], |row| row.get(0))?;
    Ok(Summary {
        bytes: size(path),
        log_bytes: size(&beside(path, "-wal")),
        schema: connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
        changes: u64::try_from(changes).unwrap_or(0),
    })
}

/// Makes a file that is whole or not there.
pub(super) fn write_whole(
    to: &Path,
    write: impl FnOnce(&Path) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    // The log of another file would be taken for that of the new one.
    for suffix in ["", "-wal", "-journal"] {
        let taken = beside(to, suffix);
        if taken.exists() {
            return Err(JournalError(format!(
                "{} exists already: choose another name, or remove it first",
                taken.display()
            )));
        }
    }
    let partial = beside(to, ".partial");
    // One that an earlier try left behind.
    remove(&partial)?;
    let written = write(&partial).and_then(|()| {
        // What SQLite could not remove, it says nothing of.
        remove_beside(&partial)?;
        fs::rename(&partial, to).map_err(|error| failed(to, &error))?;
        sync_directory(to).inspect_err(|_| drop(remove(to)))
    });
    if written.is_err() {
        // What came before says more.
        let _ = remove(&partial);
    }
    written
}

/// Moves everything into the one file that is about to get its name, and closes
/// it. When it is just dropped, SQLite does the same and tells nobody of errors.
pub(super) fn finish(connection: Connection, path: &Path) -> Result<(), JournalError> {
    let at = |error: rusqlite::Error| describe(path, &error);
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "delete", |row| row.get(0))
        .map_err(at)?;
    if mode != "delete" {
        return Err(read_by_others(path));
    }
    connection.close().map_err(|(_, error)| at(error))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(suffix);
    beside.into()
}

/// Removes a file that nobody has open, and what stands beside it.
fn remove(path: &Path) -> Result<(), JournalError> {
    remove_one(path)?;
    remove_beside(path)
}

fn remove_beside(path: &Path) -> Result<(), JournalError> {
    ["-wal", "-shm", "-journal"]
        .iter()
        .try_for_each(|suffix| remove_one(&beside(path, suffix)))
}

/// It need not be there.
fn remove_one(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, &error)),
        _ => Ok(()),
    }
}

fn put(row: &Row, connection: &Connection) -> rusqlite::Result<()> {
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
