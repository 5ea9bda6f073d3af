//! Throws what no client would send at ListOperations: filters, page tokens and
//! names, cut, joined and damaged at random, against a store of a few
//! operations. It ends when its time is over, or at the first finding:
//!
//! ```console
//! cargo run --release --example fuzz_lists -- 600       # seconds; a seed may follow
//! ```
//!
//! A finding is a panic, an error with another reason than those of a bad
//! request, a column outside of the filter, or an answer that takes ten seconds.
//! Nothing but stable Rust is needed.

#[path = "fuzz/dice.rs"]
mod dice;

use std::{error::Error, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use longrunning::{
    Any, NewOperation, Operations, Progress, Report,
    proto::google::longrunning::ListOperationsRequest,
};
use tokio::time::Instant;

use dice::Dice;

/// What the inputs are made of.
const SEEDS: [&str; 24] = [
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
    let operations = filled().await?;
    let mut dice = Dice::new(seed, &SEEDS);
    let mut pool: Vec<String> = SEEDS.map(str::to_owned).into();
    let (begun, mut count, mut good) = (Instant::now(), 0u64, 0u64);
    let mut token = String::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        let source = dice.below(pool.len());
        let filter = dice.mutate(&pool[source].clone());
        let request = ListOperationsRequest {
            name: match dice.below(8) {
                0 => dice.mutate(NAMES[1]),
                other => NAMES[other % NAMES.len()].to_owned(),
            },
            page_token: match dice.below(4) {
                0 => dice.mutate(&token),
                _ => String::new(),
            },
            page_size: i32::try_from(dice.below(5)).unwrap_or(0),
            filter,
            ..Default::default()
        };
        let asked = Instant::now();
        let answer = AssertUnwindSafe(operations.list(&request)).catch_unwind();
        let finding = match answer.await {
            Err(_) => true,
            Ok(Ok(page)) => {
                good += 1;
                token = page.next_page_token;
                pool.push(request.filter.clone());
                false
            }
            Ok(Err(error)) => !is_expected(&error, &request),
        };
        if finding || Duration::from_secs(10) < asked.elapsed() {
            return Err(format!("seed {seed}, call {count}: {request:?}").into());
        }
        if 5000 < pool.len() {
            let at = dice.below(pool.len() - SEEDS.len());
            pool.swap_remove(SEEDS.len() + at);
        }
        count += 1;
    }
    println!("{count} lists in {seconds} s from seed {seed}, {good} of them answered; no finding");
    Ok(())
}

fn is_expected(error: &longrunning::Error, request: &ListOperationsRequest) -> bool {
    let text = error.to_string();
    match error.reason() {
        "INVALID_NAME" | "INVALID_PAGE_TOKEN" => true,
        "INVALID_FILTER" => {
            let column = text
                .strip_prefix("filter: column ")
                .and_then(|rest| rest.split(':').next());
            let column: Option<usize> = column.and_then(|column| column.parse().ok());
            let end = request.filter.chars().count() + 1;
            column.is_some_and(|column| (1..=end).contains(&column))
        }
        _ => false,
    }
}

/// Operations of every state, with metadata and labels.
async fn filled() -> Result<Operations, Box<dyn Error>> {
    let operations = Operations::builder().start().await?;
    for number in 0..30 {
        let mut new = NewOperation::self_executed("fuzz").id(&format!("ex-{number}"));
        new = new.label("env", ["prod", "dev"][number % 2]);
        if number % 3 == 0 {
            new = new.parent("projects/p");
        }
        let created = operations.create(new).await?.operation;
        let (name, token) = (
            created.owned_name(),
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
