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
    file::{create, describe, failed, sync_directory, view},
    replay::Row,
};
use crate::{
    journal::journal::JournalError,
    operation::{operation::Operation, record::Reader},
};

const FORWARD: &str = "SELECT number, record FROM operations ORDER BY number";
const BACKWARD: &str = "SELECT number, record FROM operations ORDER BY number DESC";
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
            return Ok(());
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
        let (mut reader, mut failure) = (Reader::default(), Ok(()));
        walk(&source, &mut |row| {
            let row = row.and_then(|row| row.decode(&mut reader).map(|_| row));
            match row {
                Ok(row) => {
                    failure = std::mem::replace(&mut failure, Ok(()))
                        .and_then(|()| put(&row, &transaction));
                    saved += 1;
                }
                Err(damage) => lost.push(damage),
            }
        });
        failure.map_err(at)?;
        transaction.commit().map_err(at)
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
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let changes: i64 = connection.query_row("SELECT changes FROM journal", [], |row| row.get(0))?;
    Ok(Summary {
        bytes: size(path),
        log_bytes: size(Path::new(&log)),
        schema: connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
        changes: u64::try_from(changes).unwrap_or(0),
    })
}

/// Makes a file that is whole or not there.
fn write_whole(
    to: &Path,
    write: impl FnOnce(&Path) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    if to.exists() {
        return Err(JournalError(format!(
            "{} exists already: choose another name, or remove it first",
            to.display()
        )));
    }
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let remove = || match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&partial, &error)),
        _ => Ok(()),
    };
    // One that an earlier try left behind.
    remove()?;
    if let Err(error) = write(&partial) {
        let _ = remove();
        return Err(error);
    }
    fs::rename(&partial, to).map_err(|error| failed(to, &error))?;
    sync_directory(to)
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
