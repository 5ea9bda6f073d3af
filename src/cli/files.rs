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
    args::{FAILED, PrintArgs},
    client::CallError,
    render::{pretty, print_list, say},
};
use crate::{
    journal::sqlite::copy::{self, Summary},
    operation::operation::Operation,
    proto::{google, longrunning::v1::operation_metadata::State},
    server::StoreConfig,
    types::Enums,
};

#[derive(Args, Debug)]
pub(super) struct BackupArgs {
    /// The file to make; there must be none of that name
    #[arg(value_name = "PATH")]
    to: PathBuf,
    /// What to copy: sqlite:PATH, as `serve` has it; a server may have it open
    #[arg(long, env = "LONGRUNNING_STORE", value_name = "STORE")]
    store: StoreConfig,
    /// Copy operation by operation what can be read of a damaged file
    #[arg(long)]
    salvage: bool,
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
struct Found {
    states: BTreeMap<State, u64>,
    /// Deleted, and still at work.
    hidden: u64,
    damaged: Vec<String>,
    newest: VecDeque<google::longrunning::Operation>,
}

/// Copies the file of a server.
pub(super) fn backup(args: &BackupArgs) -> Result<u8, CallError> {
    let StoreConfig::Sqlite(from) = &args.store else {
        return Err(CallError::refused(format!(
            "--store {}: only what is kept in a file can be copied; say sqlite:PATH",
            args.store
        )));
    };
    if args.salvage {
        let (saved, lost) = copy::salvage(from, &args.to).map_err(CallError::refused)?;
        for damage in &lost {
            eprintln!("lost: {damage}");
        }
        say(&format!(
            "saved {saved} operations of {} in {}",
            from.display(),
            args.to.display()
        ));
        return Ok(if lost.is_empty() { 0 } else { FAILED });
    }
    copy::backup(from, &args.to).map_err(CallError::refused)?;
    let size = std::fs::metadata(&args.to).map_or(0, |file| file.len());
    say(&format!(
        "copied {} to {}, {}",
        from.display(),
        args.to.display(),
        ByteSize(size).display().iec()
    ));
    Ok(0)
}

/// Prints what a file holds.
pub(super) fn inspect(args: &InspectArgs) -> Result<u8, CallError> {
    let types = args.print.types.load()?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut found = Found::default();
    let summary = copy::inspect(&args.path, |row| found.take(row, limit));
    let summary = summary.map_err(CallError::refused)?;
    let newest: Vec<_> = found.newest.iter().rev().cloned().collect();
    if args.print.output.is_json() {
        let mut whole = found.json(&summary);
        whole["operations"] = newest
            .iter()
            .map(|operation| types.operation(operation, Enums::Names))
            .collect();
        say(&pretty(&whole));
    } else {
        found.print(&summary);
        if !newest.is_empty() {
            say("");
            print_list(&types, &newest, args.print.output);
        }
    }
    Ok(if found.damaged.is_empty() { 0 } else { FAILED })
}

// === impl Found ===

impl Found {
    fn take(&mut self, row: Result<Operation, String>, limit: usize) {
        match row {
            Err(damage) => self.damaged.push(damage),
            Ok(operation) if operation.is_hidden() => self.hidden += 1,
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
        let size = |bytes| ByteSize(bytes).display().iec();
        let states: Vec<String> = self
            .states
            .iter()
            .map(|(state, count)| format!("{count} {}", state.as_str_name()))
            .collect();
        let all: u64 = self.states.values().sum();
        say(&format!("size        {}", size(summary.bytes)));
        say(&format!("log         {}", size(summary.log_bytes)));
        say(&format!("schema      {}", summary.schema));
        say(&format!("changes     {}", summary.changes));
        let colon = if states.is_empty() { "" } else { ": " };
        say(&format!("operations  {all}{colon}{}", states.join(", ")));
        if self.hidden != 0 {
            say(&format!("deleted     {}, still at work", self.hidden));
        }
        for damage in &self.damaged {
            say(&format!("damaged     {damage}"));
        }
    }

    fn json(&self, summary: &Summary) -> Value {
        let states: serde_json::Map<String, Value> = self
            .states
            .iter()
            .map(|(state, count)| (state.as_str_name().to_owned(), json!(count)))
            .collect();
        json!({
            "bytes": summary.bytes,
            "logBytes": summary.log_bytes,
            "schema": summary.schema,
            "changes": summary.changes,
            "states": states,
            "deleted": self.hidden,
            "damaged": self.damaged,
        })
    }
}
