//! `longrunning backup` and `longrunning inspect`: what can be done with the
//! file of a server, whether or not that runs. How operations look lives in
//! `render`.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
};

use bytesize::ByteSize;
use clap::Args;
use serde_json::{Value, json};

use super::{
    args::{EXIT_FAILED, PrintArgs},
    client::CliError,
    render::{pretty_json, print_line, print_operations},
};
use crate::{
    operation::Operation,
    proto::{google, longrunning::v1::operation_metadata::State},
    server::StoreConfig,
    storage::sqlite::backup::{self, Summary},
    types::EnumFormat,
};

#[derive(Args, Debug)]
pub(super) struct BackupArgs {
    /// The file to make; there must be none of that name
    #[arg(value_name = "PATH")]
    destination: PathBuf,
    /// What to copy: sqlite:PATH, as `serve` has it; a server may have it open
    #[arg(long, env = "LONGRUNNING_STORE", value_name = "STORE")]
    store: StoreConfig,
    /// Copy operation by operation what can be read of a damaged file
    #[arg(long)]
    recover: bool,
}

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// The file, without sqlite: in front; a server may have it open
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Print at most so many operations, the newest
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    #[command(flatten)]
    print: PrintArgs,
}

/// What was found in a file.
#[derive(Debug, Default)]
struct FileReport {
    states: BTreeMap<State, u64>,
    /// Deleted, and still at work.
    deleted: u64,
    damaged: Vec<String>,
    newest: VecDeque<google::longrunning::Operation>,
}

/// Copies the file of a server.
pub(super) fn backup(args: &BackupArgs) -> Result<u8, CliError> {
    let StoreConfig::Sqlite(source) = &args.store else {
        return Err(CliError::local(format!(
            "--store {}: only what is kept in a file can be copied; say sqlite:PATH",
            args.store
        )));
    };
    if args.recover {
        let (recovered, unreadable) =
            backup::recover(source, &args.destination).map_err(CliError::local)?;
        for damage in &unreadable {
            eprintln!("lost: {damage}");
        }
        print_line(&format!(
            "saved {recovered} operations of {} in {}",
            source.display(),
            args.destination.display()
        ));
        return Ok(if unreadable.is_empty() {
            0
        } else {
            EXIT_FAILED
        });
    }
    backup::backup(source, &args.destination).map_err(CliError::local)?;
    let size = std::fs::metadata(&args.destination).map_or(0, |file| file.len());
    print_line(&format!(
        "copied {} to {}, {}",
        source.display(),
        args.destination.display(),
        ByteSize(size).display().iec()
    ));
    Ok(0)
}

/// Prints what a file holds.
pub(super) fn inspect(args: &InspectArgs) -> Result<u8, CliError> {
    let types = args.print.types.load()?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut report = FileReport::default();
    let summary = backup::inspect(&args.path, |row| report.add_row(row, limit));
    let summary = summary.map_err(CliError::local)?;
    let newest: Vec<_> = report.newest.iter().rev().cloned().collect();
    if args.print.output.is_json() {
        let mut document = report.to_json(&summary);
        document["operations"] = newest
            .iter()
            .map(|operation| types.operation_to_json(operation, EnumFormat::Names))
            .collect();
        print_line(&pretty_json(&document));
    } else {
        report.print(&summary);
        if !newest.is_empty() {
            print_line("");
            print_operations(&types, &newest, args.print.output);
        }
    }
    Ok(if report.damaged.is_empty() {
        0
    } else {
        EXIT_FAILED
    })
}

// === impl Found ===

impl FileReport {
    fn add_row(&mut self, row: Result<Operation, String>, limit: usize) {
        match row {
            Err(damage) => self.damaged.push(damage),
            Ok(operation) if operation.is_deleted() => self.deleted += 1,
            Ok(operation) => {
                *self.states.entry(operation.state()).or_default() += 1;
                self.newest.push_back(operation.to_proto());
                if limit < self.newest.len() {
                    self.newest.pop_front();
                }
            }
        }
    }

    fn print(&self, summary: &Summary) {
        let format_size = |bytes| ByteSize(bytes).display().iec();
        let states: Vec<String> = self
            .states
            .iter()
            .map(|(state, count)| format!("{count} {}", state.as_str_name()))
            .collect();
        let total: u64 = self.states.values().sum();
        print_line(&format!("size        {}", format_size(summary.file_bytes)));
        print_line(&format!("log         {}", format_size(summary.wal_bytes)));
        print_line(&format!("schema      {}", summary.schema_version));
        print_line(&format!("changes     {}", summary.write_count));
        let colon = if states.is_empty() { "" } else { ": " };
        print_line(&format!("operations  {total}{colon}{}", states.join(", ")));
        if self.deleted != 0 {
            print_line(&format!("deleted     {}, still at work", self.deleted));
        }
        for damage in &self.damaged {
            print_line(&format!("damaged     {damage}"));
        }
    }

    fn to_json(&self, summary: &Summary) -> Value {
        let states: serde_json::Map<String, Value> = self
            .states
            .iter()
            .map(|(state, count)| (state.as_str_name().to_owned(), json!(count)))
            .collect();
        json!({
            "bytes": summary.file_bytes,
            "logBytes": summary.wal_bytes,
            "schema": summary.schema_version,
            "changes": summary.write_count,
            "states": states,
            "deleted": self.deleted,
            "damaged": self.damaged,
        })
    }
}
