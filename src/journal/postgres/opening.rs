//! What a server does first with a database: it makes the tables, looks whether they
//! are ours, and asks for the time.

use std::time::Duration;

use tokio_postgres::Client;

use super::{link::Link, sql::Sql};
use crate::{
    clock::{Clock, Timestamp},
    journal::journal::JournalError,
};

/// The version of the tables.
pub(super) const VERSION: i32 = 1;

/// How often the database is asked for the time, unless an answer is quick: its
/// error is at most half of what it took.
const QUESTIONS: usize = 8;
const QUICK: Duration = Duration::from_millis(5);

/// Makes the tables, one server at a time, or looks whether they are ours.
pub(super) async fn prepare(link: &Link, sql: &Sql) -> Result<(), JournalError> {
    let find = async |client: &Client| client.query_typed_one(&sql.find, &[]).await;
    if !link.ask(find).await?.get::<_, bool>(0) {
        link.ask(async |client| client.batch_execute(&sql.make).await)
            .await?;
    }
    check_version(link, sql).await?;
    link.ask(async |client| client.execute_typed(&sql.mend, &[]).await)
        .await?;
    Ok(())
}

/// Looks whether this program may write the tables: they are as new as it needs,
/// and no newer program has made of them what this one would not understand.
pub(super) async fn check_version(link: &Link, sql: &Sql) -> Result<(), JournalError> {
    let version = async |client: &Client| client.query_typed_one(&sql.version, &[]).await;
    let row = link.ask(version).await?;
    let (version, least): (i32, i32) = (row.get(0), row.get(1));
    if VERSION < least {
        return Err(JournalError(format!(
            "the tables are of version {version}, which programs that know version {least} and up may \
             write; this one knows version {VERSION}: use a newer longrunning"
        )));
    }
    if version < VERSION {
        return Err(JournalError(format!(
            "the tables are of version {version}, and this program needs version {VERSION}"
        )));
    }
    Ok(())
}

/// The clock of the database, as far as the way there can be measured: by the
/// quickest of a few answers, because nobody knows on which way one was held up.
pub(super) async fn clock_of(link: &Link) -> Result<Clock, JournalError> {
    let clock = Clock::system();
    let question = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let mut best: Option<(Duration, Timestamp, Timestamp)> = None;
    for _ in 0..QUESTIONS {
        let asked = clock.now();
        let ask = async |client: &Client| client.query_typed_one(question, &[]).await;
        let row = link.ask(ask).await?;
        let heard = clock.now();
        let (took, micros) = (heard.since(asked), row.get::<_, i64>(0));
        if best.is_none_or(|(best, ..)| took < best) {
            let theirs = Timestamp::from_micros(micros) + took / 2;
            best = Some((took, theirs, heard));
        }
        if took < QUICK {
            break;
        }
    }
    let (_, theirs, heard) = best.expect("it was asked");
    Ok(Clock::at(theirs + clock.now().since(heard)))
}
