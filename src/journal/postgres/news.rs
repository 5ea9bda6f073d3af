//! What became of operations, read from the database by transaction: see
//! `news.sql`. A notification is only a hint to read at once; without any, it is
//! read every so often.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tokio_postgres::{
    Config,
    types::{ToSql, Type},
};
use tracing::{info, warn};

use super::{
    contact::Contact,
    link::Link,
    listen::Hints,
    row::{Reader, TEXT},
    sql::Sql,
};
use crate::{
    clock::Timestamp,
    journal::journal::{Apply, JournalError, News as Changes},
};

/// How often it is read without a hint: if hints arrive, and if they do not.
const POLL: Duration = Duration::from_secs(1);
const POLL_ALONE: Duration = Duration::from_millis(100);
/// How long it may take to read everything.
const ALL: Duration = Duration::from_secs(600);
/// The pause before it is tried again after an error.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads what became of operations.
#[derive(Debug)]
pub(super) struct News {
    link: Link,
    /// Up to where it was read, as PostgreSQL writes a snapshot, and when the
    /// server began from which it was read.
    read: Mutex<Place>,
    /// How many asked for what is new.
    asked: AtomicU64,
    /// To how many of them it was given, or why the last could not have it.
    given: watch::Sender<(u64, Result<(), JournalError>)>,
}

/// What was read.
struct Fresh {
    news: Vec<Changes>,
    /// When the first of it was written.
    since: Option<Timestamp>,
    place: Place,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    snapshot: String,
    began: String,
}

// === impl News ===

impl News {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            link: Link::new(config),
            read: Mutex::default(),
            asked: AtomicU64::new(0),
            given: watch::Sender::new((0, Ok(()))),
        }
    }

    /// Begins before everything that is read from now on.
    pub(super) async fn begin(&self) -> Result<(), JournalError> {
        let now = "SELECT pg_current_snapshot()::text, pg_postmaster_start_time()::text";
        let row = self
            .link
            .ask(async |client| client.query_typed_one(now, &[]).await)
            .await?;
        *self.read.lock() = Place {
            snapshot: row.get(0),
            began: row.get(1),
        };
        Ok(())
    }

    /// Returns when everything is taken in that was there before this call. Those
    /// who ask while it is read share the next look.
    pub(super) async fn catch_up(&self, hints: &Hints) -> Result<(), JournalError> {
        let mut given = self.given.subscribe();
        let us = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        hints.heard.notify_one();
        match given.wait_for(|(count, _)| us <= *count).await {
            Ok(given) => given.1.clone(),
            Err(_) => Err(JournalError("the journal is closed".to_owned())),
        }
    }

    /// Reads on and on.
    pub(super) async fn follow(
        &self,
        hints: &Hints,
        sql: &Sql,
        view_limit: Option<i64>,
        contact: &Contact,
        apply: Apply,
    ) {
        loop {
            let (asked, asked_at) = (self.asked.load(Ordering::Acquire), contact.now());
            let pause = match self.read(sql, view_limit).await {
                Ok(Fresh { news, since, place }) => {
                    if !news.is_empty() {
                        apply(news, since).await;
                    }
                    // What was not taken in is read again.
                    *self.read.lock() = place;
                    if contact.answered(asked_at) {
                        info!("reads again what other servers do");
                    }
                    drop(self.given.send_replace((asked, Ok(()))));
                    if hints.arrive() { POLL } else { POLL_ALONE }
                }
                Err(error) => {
                    let is_first = contact.broke(error.to_string());
                    if is_first {
                        warn!(%error, "cannot read what other servers do; trying again");
                    }
                    drop(self.given.send_replace((asked, Err(error))));
                    // Often there is nothing but a connection to be made anew.
                    if is_first { Duration::ZERO } else { PAUSE }
                }
            };
            let _ = timeout(pause, hints.heard.notified()).await;
        }
    }

    async fn read(&self, sql: &Sql, view_limit: Option<i64>) -> Result<Fresh, JournalError> {
        let since = self.read.lock().clone();
        let parameters = [(&since.snapshot as &(dyn ToSql + Sync), TEXT)];
        let rows = self
            .link
            .ask(async |client| client.query_typed(&sql.news, &parameters).await)
            .await?;
        let first = rows.first().ok_or_else(no_meta)?;
        let place = Place {
            snapshot: first.get(0),
            began: first.get(1),
        };
        // Another server has taken over, or the same one has begun anew. The numbers
        // of transactions that were lost with the last one may be given again.
        if !first.get::<_, bool>(6) || place.began != since.began {
            info!("reads all operations anew");
            return self.read_all(sql, view_limit).await;
        }
        let mut reader = Reader::default();
        let news = rows
            .iter()
            .filter_map(|row| reader.news(row, 2).transpose());
        let news = news.collect::<Result<Vec<_>, _>>()?;
        let times = rows.iter().filter_map(|row| row.get::<_, Option<i64>>(7));
        let since = times.min().map(Timestamp::from_micros);
        Ok(Fresh { news, since, place })
    }

    /// Everything that is there, and nothing else.
    async fn read_all(&self, sql: &Sql, view_limit: Option<i64>) -> Result<Fresh, JournalError> {
        let rows = self
            .link
            .ask_within(ALL, async |client| {
                client
                    .query_typed(&sql.all, &[(&view_limit, Type::INT8)])
                    .await
            })
            .await?;
        let first = rows.first().ok_or_else(no_meta)?;
        let place = Place {
            snapshot: first.get(0),
            began: first.get(1),
        };
        let (mut reader, mut news, mut left) = (Reader::default(), Vec::new(), BTreeMap::new());
        for row in &rows {
            if let Some(Changes::Changed(operation)) = reader.news(row, 2)? {
                left.insert(operation.number(), operation.revision());
                news.push(Changes::Changed(operation));
            }
        }
        news.push(Changes::Left(left));
        Ok(Fresh {
            news,
            since: None,
            place,
        })
    }
}

fn no_meta() -> JournalError {
    JournalError("the table meta is empty; restore it from a backup".to_owned())
}
