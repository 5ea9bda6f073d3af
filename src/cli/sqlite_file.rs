//! `longrunning backup`, `longrunning restore` and `longrunning inspect`: copy, replace
//! and examine the SQLite file of a server.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
};

use bytesize::ByteSize;
use clap::Args;
use serde_json::{Value, json};

use super::{
    args::{EXIT_FAILED, EXIT_SUCCESS, PrintArgs},
    client::CliError,
    render::{print_json, print_line, print_operations},
};
use crate::{
    operation::Operation,
    proto::{google, longrunning::v1::operation_metadata::State},
    server::StoreConfig,
    storage::sqlite::{
        backup::{self, Summary},
        restore,
    },
    types::EnumFormat,
};

#[derive(Args, Debug)]
pub(super) struct BackupArgs {
    /// Path of the copy; must not exist
    #[arg(value_name = "PATH")]
    destination: PathBuf,
    /// Store to copy, sqlite:PATH as for `serve`; the server may be running
    #[arg(
        long,
        env = "LONGRUNNING_STORE",
        value_name = "STORE",
        hide_env_values = true
    )]
    store: StoreConfig,
    /// Recover every readable operation of a damaged file
    #[arg(long)]
    recover: bool,
}

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// Path of the backup, which is not changed
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,
    /// Path of the server's file, without sqlite:; the server must be stopped. An existing file
    /// is renamed to FILE.before-restore
    #[arg(value_name = "FILE", value_parser = parse_file_path)]
    file: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// Path of the SQLite file, without sqlite:; the server may be running
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Maximum number of operations to print, newest first
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    #[command(flatten)]
    print: PrintArgs,
}

/// The contents of a file.
#[derive(Debug, Default)]
struct FileReport {
    states: BTreeMap<State, u64>,
    /// Deleted operations whose worker is still running.
    deleted: u64,
    damaged: Vec<String>,
    newest: VecDeque<google::longrunning::Operation>,
}

/// Copies or recovers a file. Returns the exit code.
pub(super) fn backup(args: &BackupArgs) -> Result<u8, CliError> {
    let StoreConfig::Sqlite(source) = &args.store else {
        let store = &args.store;
        return Err(CliError::local(format!(
            "--store {store}: only SQLite files can be copied; use sqlite:PATH"
        )));
    };
    let (from, to) = (source.display(), args.destination.display());
    if args.recover {
        let (recovered, unreadable) =
            backup::recover(source, &args.destination).map_err(CliError::local)?;
        for damage in &unreadable {
            eprintln!("lost: {damage}");
        }
        print_line(&format!(
            "recovered {recovered} operations from {from} to {to}"
        ));
        return Ok(exit_code_of(unreadable.is_empty()));
    }
    backup::backup(source, &args.destination).map_err(CliError::local)?;
    let size = std::fs::metadata(&args.destination).map_or(0, |file| file.len());
    let size = ByteSize(size).display().iec();
    print_line(&format!("copied {from} to {to}, {size}"));
    Ok(EXIT_SUCCESS)
}

fn parse_file_path(text: &str) -> Result<PathBuf, &'static str> {
    if text.starts_with("sqlite:") {
        return Err("write the path of the file without sqlite:");
    }
    Ok(text.into())
}

/// Replaces a file by a backup. Returns the exit code.
pub(super) fn restore(args: &RestoreArgs) -> Result<u8, CliError> {
    let (backup, file) = (args.backup.display(), args.file.display());
    let previous = restore::restore(&args.backup, &args.file).map_err(CliError::local)?;
    print_line(&format!("restored {backup} to {file}"));
    if let Some(previous) = previous {
        let previous = previous.display();
        print_line(&format!(
            "the previous file is {previous}: remove it once you do not need it"
        ));
    }
    Ok(EXIT_SUCCESS)
}

fn exit_code_of(is_intact: bool) -> u8 {
    if is_intact { EXIT_SUCCESS } else { EXIT_FAILED }
}

/// Prints the contents of a file. Returns the exit code.
pub(super) fn inspect(args: &InspectArgs) -> Result<u8, CliError> {
    let types = args.print.types.load()?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut report = FileReport::default();
    let summary = backup::inspect(&args.path, |row| report.add_row(row, limit));
    let summary = summary.map_err(CliError::local)?;
    let newest: Vec<_> = report.newest.iter().rev().cloned().collect();
    if args.print.output.is_json() {
        let mut document = report.to_json(&summary);
        let to_json = |operation| types.operation_to_json(operation, EnumFormat::Names);
        document["operations"] = newest.iter().map(to_json).collect();
        print_json(&document);
    } else {
        report.print(&summary);
        if !newest.is_empty() {
            print_line("");
            print_operations(&types, &newest, &[], args.print.output);
        }
    }
    Ok(exit_code_of(report.damaged.is_empty()))
}

// === impl FileReport ===

impl FileReport {
    fn add_row(&mut self, row: Result<Operation, String>, limit: usize) {
        match row {
            Err(damage) => self.damaged.push(damage),
            Ok(operation) if operation.is_deleted() => self.deleted += 1,
            Ok(operation) => {
                *self.states.entry(operation.state()).or_default() += 1;
                self.newest.push_back(operation.to_proto());
                if self.newest.len() > limit {
                    self.newest.pop_front();
                }
            }
        }
    }

    fn print(&self, summary: &Summary) {
        let format_size = |bytes| ByteSize(bytes).display().iec();
        let states = self.states.iter();
        let states = states.map(|(state, count)| format!("{count} {}", state.as_str_name()));
        let states: Vec<String> = states.collect();
        let total: u64 = self.states.values().sum();
        print_line(&format!("size        {}", format_size(summary.file_bytes)));
        print_line(&format!("wal         {}", format_size(summary.wal_bytes)));
        print_line(&format!("schema      {}", summary.schema_version));
        print_line(&format!("writes      {}", summary.write_count));
        let colon = if states.is_empty() { "" } else { ": " };
        print_line(&format!("operations  {total}{colon}{}", states.join(", ")));
        if self.deleted != 0 {
            print_line(&format!("deleted     {}, still running", self.deleted));
        }
        for damage in &self.damaged {
            print_line(&format!("damaged     {damage}"));
        }
    }

    fn to_json(&self, summary: &Summary) -> Value {
        let states = self.states.iter();
        let states = states.map(|(state, count)| (state.as_str_name().to_owned(), json!(count)));
        let states: serde_json::Map<_, _> = states.collect();
        json!({
            "fileBytes": summary.file_bytes,
            "walBytes": summary.wal_bytes,
            "schemaVersion": summary.schema_version,
            "writes": summary.write_count,
            "states": states,
            "deleted": self.deleted,
            "damaged": self.damaged,
        })
    }
}
