//! What became of operations, read from the database by transaction: see
//! `news.sql`. A notification is only a hint to read at once; without any, it is
//! read every so often.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tokio_postgres::types::{ToSql, Type};
use tracing::{info, warn};

use super::{
    database::Database,
    link::Link,
    listen::Hints,
    row::{Reader, TEXT, decode},
    sql::Sql,
};
use crate::journal::journal::{Apply, JournalError, News as Changes};

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

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    snapshot: String,
    began: String,
}

// === impl News ===

impl News {
    pub(super) fn new(database: &Database) -> Self {
        Self {
            link: Link::new(database),
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
        apply: Apply,
    ) {
        let mut is_broken = false;
        loop {
            let asked = self.asked.load(Ordering::Acquire);
            match self.read(sql, view_limit).await {
                Ok((news, place)) => {
                    if !news.is_empty() {
                        apply(news).await;
                    }
                    // What was not taken in is read again.
                    *self.read.lock() = place;
                    drop(self.given.send_replace((asked, Ok(()))));
                    if std::mem::take(&mut is_broken) {
                        info!("reads again what other servers do");
                    }
                    let poll = if hints.arrive() { POLL } else { POLL_ALONE };
                    let _ = timeout(poll, hints.heard.notified()).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_broken, true) {
                        warn!(%error, "cannot read what other servers do; trying again");
                    }
                    drop(self.given.send_replace((asked, Err(error))));
                    let _ = timeout(PAUSE, hints.heard.notified()).await;
                }
            }
        }
    }

    async fn read(
        &self,
        sql: &Sql,
        view_limit: Option<i64>,
    ) -> Result<(Vec<Changes>, Place), JournalError> {
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
        if !first.get::<_, bool>(2) || place.began != since.began {
            info!("reads all operations anew");
            return self.read_all(sql, view_limit).await;
        }
        let mut reader = Reader::default();
        let mut news = Vec::with_capacity(rows.len());
        for row in &rows {
            let (number, record): (Option<i64>, Option<&[u8]>) = (row.get(3), row.get(4));
            let Some(number) = number else { continue };
            news.push(match record {
                Some(record) => Changes::Changed(Arc::new(decode(&mut reader, number, record)?)),
                None => Changes::Gone(u64::try_from(number).unwrap_or_default()),
            });
        }
        Ok((news, place))
    }

    /// Everything that is there, and nothing else.
    async fn read_all(
        &self,
        sql: &Sql,
        view_limit: Option<i64>,
    ) -> Result<(Vec<Changes>, Place), JournalError> {
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
            let (number, record): (Option<i64>, Option<&[u8]>) = (row.get(2), row.get(3));
            if let (Some(number), Some(record)) = (number, record) {
                let operation = decode(&mut reader, number, record)?;
                left.insert(operation.number(), operation.revision());
                news.push(Changes::Changed(Arc::new(operation)));
            }
        }
        news.push(Changes::Left(left));
        Ok((news, place))
    }
}

fn no_meta() -> JournalError {
    JournalError("the table meta is empty; restore it from a backup".to_owned())
}
