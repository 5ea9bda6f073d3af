//! Fuzzes ListOperations with randomly mutated filters, page tokens and names,
//! against a store of 30 operations. Ends after the given time or at the first
//! finding:
//!
//! ```console
//! cargo run --release --manifest-path fuzz/Cargo.toml --bin lists -- SECONDS [SEED]
//! ```
//!
//! A finding is a panic, an error other than INVALID_NAME, INVALID_PAGE_TOKEN or
//! INVALID_FILTER, an error column outside of the filter, or a call of more than
//! 10 s. Needs only stable Rust.

use std::{error::Error, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use longrunning::{
    Any, NewOperation, Operations, Progress, Report,
    proto::google::longrunning::ListOperationsRequest,
};
use tokio::time::Instant;

use mutator::Mutator;

/// The fragments that mutations insert.
const FRAGMENTS: [&str; 24] = [
    "done = false AND labels.env = prod",
    "NOT (state = RUNNING OR state = (FAILED OR CANCELLED))",
    "metadata.@type = \"type.googleapis.com/longrunning.v1.OperationMetadata\" metadata.progress.done_units > 5",
    "(metadata.@type=type.googleapis.com/a.B) AND (metadata.source_type:BACKUP) AND (error:*)",
    "error.details.reason:\"X\" OR -error.code = -5",
    "create_time >= 2026-11-21T15:04:05.123456789+02:00 end_time < \"2026-11-21T15:04:05Z\"",
    "name = \"operations/ex*\" name:*b* 'it\\'s' \"\\\\\\*\\n\"",
    "metadata.a.b.c.d:1.5e300 metadata.list:two metadata.x = null",
    "response.value = 18446744073709551615 OR attempt >= -9223372036854775808",
    "\u{e9}\u{1f980} labels.\"a.b\":* queue = \"\" method:*",
    "((((((((((a))))))))))",
    "metadata.duration > -1.5s metadata.progress.fraction <= 0.5",
    " AND ",
    " OR ",
    "NOT ",
    "-",
    "(",
    ")",
    ":",
    "!=",
    "\"",
    "\\",
    "*",
    "\u{202e}",
];

const NAMES: [&str; 6] = [
    "",
    "-",
    "operations",
    "projects/p",
    "projects/-",
    "projects/-/operations",
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let seed = arguments.next().map_or(Ok(0x5eed), |text| text.parse())?;
    let operations = sample_operations().await?;
    let mut mutator = Mutator::new(seed, &FRAGMENTS);
    let mut corpus: Vec<String> = FRAGMENTS.map(str::to_owned).into();
    let (started, mut count, mut succeeded) = (Instant::now(), 0u64, 0u64);
    let mut token = String::new();
    while started.elapsed() < Duration::from_secs(seconds) {
        let source = mutator.below(corpus.len());
        let filter = mutator.mutate(&corpus[source].clone());
        let request = ListOperationsRequest {
            name: match mutator.below(8) {
                0 => mutator.mutate(NAMES[1]),
                other => NAMES[other % NAMES.len()].to_owned(),
            },
            page_token: match mutator.below(4) {
                0 => mutator.mutate(&token),
                _ => String::new(),
            },
            page_size: i32::try_from(mutator.below(5)).unwrap_or(0),
            filter,
            ..Default::default()
        };
        let call_started = Instant::now();
        let list_result = AssertUnwindSafe(operations.list(&request)).catch_unwind();
        let is_finding = match list_result.await {
            Err(_) => true,
            Ok(Ok(page)) => {
                succeeded += 1;
                token = page.next_page_token;
                corpus.push(request.filter.clone());
                false
            }
            Ok(Err(error)) => !is_expected_error(&error, &request),
        };
        if is_finding || call_started.elapsed() > Duration::from_secs(10) {
            return Err(format!("seed {seed}, call {count}: {request:?}").into());
        }
        if corpus.len() > 5000 {
            let index = mutator.below(corpus.len() - FRAGMENTS.len());
            corpus.swap_remove(FRAGMENTS.len() + index);
        }
        count += 1;
    }
    println!("{count} lists in {seconds} s from seed {seed}, {succeeded} succeeded, no finding");
    Ok(())
}

fn is_expected_error(error: &longrunning::Error, request: &ListOperationsRequest) -> bool {
    let text = error.to_string();
    match error.reason() {
        "INVALID_NAME" | "INVALID_PAGE_TOKEN" => true,
        "INVALID_FILTER" => {
            let column = text
                .strip_prefix("filter: column ")
                .and_then(|rest| rest.split(':').next());
            let column: Option<usize> = column.and_then(|column| column.parse().ok());
            let max_column = request.filter.chars().count() + 1;
            column.is_some_and(|column| (1..=max_column).contains(&column))
        }
        _ => false,
    }
}

/// Creates operations of every state, with metadata and labels.
async fn sample_operations() -> Result<Operations, Box<dyn Error>> {
    let operations = Operations::builder().start().await?;
    for number in 0..30 {
        let mut new = NewOperation::self_executed("fuzz").id(&format!("ex-{number}"));
        new = new.label("env", ["prod", "dev"][number % 2]);
        if number % 3 == 0 {
            new = new.parent("projects/p");
        }
        let created = operations.create(new).await?.operation;
        let (name, token) = (
            created.name_owned(),
            created.lease().ok_or("no lease")?.token,
        );
        let progress = Progress {
            done_units: i64::try_from(number)?,
            stage: "hashing".into(),
            ..Progress::default()
        };
        let report = Report {
            progress: Some(progress),
            ..Report::default()
        };
        operations.report(&name, token, report).await?;
        match number % 4 {
            0 => drop(operations.succeed(&name, token, Any::default()).await?),
            1 => drop(operations.cancel(&name).await?),
            2 => {
                let failure = longrunning::Failure::cancelled().with_reason("X");
                operations.fail(&name, token, failure).await?;
            }
            _ => {}
        }
    }
    Ok(operations)
}
