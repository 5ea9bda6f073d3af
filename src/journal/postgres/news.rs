//! What became of operations, read from the database by transaction: see
//! `news.sql`. A notification is only a hint to read at once; without any, it is
//! read every so often.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::Fuse};
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tokio_postgres::{
    Client, Row, RowStream,
    types::{ToSql, Type},
};
use tracing::{info, warn};

use super::{
    contact::Contact,
    database::Database,
    link::{ANSWER, Link, refused, silent},
    listen::Hints,
    row::{Reader, TEXT},
    sql::Sql,
};
use crate::{
    clock::Timestamp,
    journal::journal::{Apply, JournalError, News as Changes},
    operation::operation::Operation,
};

/// How often it is read without a hint: if hints arrive, and if they do not.
const POLL: Duration = Duration::from_secs(1);
const POLL_ALONE: Duration = Duration::from_millis(100);
/// How many operations are read and taken in at once.
const AT_ONCE: usize = 1000;
/// The pause before it is tried again after an error.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads what became of operations.
#[derive(Debug)]
pub(super) struct News {
    pub(super) link: Link,
    /// Up to where it was read, as PostgreSQL writes a snapshot, and when the
    /// server began from which it was read.
    read: Mutex<Place>,
    /// How many asked for what is new.
    asked: AtomicU64,
    given: watch::Sender<Given>,
}

/// Everything that a view shows, as it comes.
pub(super) struct Everything {
    rows: Pin<Box<Fuse<RowStream>>>,
    reader: Reader,
    /// Answers as long as somebody has it.
    _client: Arc<Client>,
}

/// Nobody reads any more when it is dropped.
struct End<'a>(&'a watch::Sender<Given>);

/// To how many of those who asked for what is new it was given, or why the last could
/// not have it.
type Given = (u64, Result<(), JournalError>);

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
    async fn begin(&self) -> Result<(), JournalError> {
        let now = "SELECT pg_current_snapshot()::text, pg_postmaster_start_time()::text";
        let row = self
            .link
            .ask(async |client| client.query_typed_one(now, &[]).await)
            .await?;
        *self.read.lock() = Place::of(&row);
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

    /// Begins to read everything that a view shows.
    pub(super) async fn everything(
        &self,
        sql: &Sql,
        view_limit: Option<i64>,
    ) -> Result<Everything, JournalError> {
        self.begin().await?;
        let client = self.link.client().await?;
        let parameters = [(&view_limit as &(dyn ToSql + Sync), Type::INT8)];
        let rows = within(client.query_typed_raw(&sql.replay, parameters)).await?;
        Ok(Everything {
            rows: Box::pin(rows.map_err(refused)?.fuse()),
            reader: Reader::default(),
            _client: client,
        })
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
        let _end = End(&self.given);
        loop {
            let (asked, asked_at) = (self.asked.load(Ordering::Acquire), contact.now());
            let pause = match self.read(sql, view_limit, contact, &apply).await {
                Ok(()) => {
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

    /// Reads what is new. What was not taken in is read again.
    async fn read(
        &self,
        sql: &Sql,
        view_limit: Option<i64>,
        contact: &Contact,
        apply: &Apply,
    ) -> Result<(), JournalError> {
        let asked = contact.now();
        let since = self.read.lock().clone();
        let parameters = [(&since.snapshot as &(dyn ToSql + Sync), TEXT)];
        let rows = self
            .link
            .ask(async |client| client.query_typed(&sql.news, &parameters).await)
            .await?;
        let first = rows.first().ok_or_else(no_meta)?;
        let place = Place::of(first);
        contact.told_time(asked, Timestamp::from_micros(first.get(9)));
        // Another server has taken over, or the same one has begun anew. The numbers
        // of transactions that were lost with the last one may be given again.
        if !first.get::<_, bool>(7) || place.began != since.began {
            info!("reads all operations anew");
            return self.read_all(sql, view_limit, apply).await;
        }
        let is_near = |row: &&Row| row.get::<_, Option<bool>>(6) == Some(true);
        let (near, far): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(is_near);
        let times = rows.iter().filter_map(|row| row.get::<_, Option<i64>>(8));
        let since = times.min().map(Timestamp::from_micros);
        if !near.is_empty() {
            apply(read(near, 2), since).await?;
        }
        let far: Vec<i64> = far.iter().filter_map(|row| row.get(2)).collect();
        for numbers in far.chunks(AT_ONCE) {
            let parameters = [(&numbers as &(dyn ToSql + Sync), Type::INT8_ARRAY)];
            let rows = self
                .link
                .ask(async |client| client.query_typed(&sql.numbered, &parameters).await)
                .await?;
            apply(read(&rows, 0), since).await?;
        }
        *self.read.lock() = place;
        Ok(())
    }

    /// Reads everything that is there, and lets go of everything else.
    async fn read_all(
        &self,
        sql: &Sql,
        view_limit: Option<i64>,
        apply: &Apply,
    ) -> Result<(), JournalError> {
        let before = self.read.lock().clone();
        let mut left = BTreeMap::new();
        let taken = async {
            let mut everything = self.everything(sql, view_limit).await?;
            loop {
                let operations = everything.next().await?;
                if operations.is_empty() {
                    return apply(vec![Changes::Left(left)], None).await;
                }
                let versions = operations.iter();
                left.extend(versions.map(|operation| (operation.number(), operation.version())));
                let news = operations.into_iter().map(Arc::new).map(Changes::Changed);
                apply(news.collect(), None).await?;
            }
        };
        let taken = taken.await;
        if taken.is_err() {
            *self.read.lock() = before;
        }
        taken
    }
}

// === impl Everything ===

impl Everything {
    /// The next thousand, or what is left; none at the end.
    pub(super) async fn next(&mut self) -> Result<Vec<Operation>, JournalError> {
        let mut some = Vec::new();
        while some.len() < AT_ONCE
            && let Some(row) = within(self.rows.next()).await?
        {
            some.push(self.reader.operation(&row.map_err(refused)?, 0)?);
        }
        Ok(some)
    }
}

// === impl Place ===

impl Place {
    /// As the first columns of a row have it.
    fn of(row: &Row) -> Self {
        Self {
            snapshot: row.get(0),
            began: row.get(1),
        }
    }
}

// === impl End ===

impl Drop for End<'_> {
    /// Those who ask from now on are told so.
    fn drop(&mut self) {
        let closed = JournalError("the journal is closed".to_owned());
        drop(self.0.send_replace((u64::MAX, Err(closed))));
    }
}

/// What became of operations, by the rows whose columns for it begin at `at`.
fn read<'a>(rows: impl IntoIterator<Item = &'a Row>, at: usize) -> Vec<Changes> {
    let mut reader = Reader::default();
    let news = rows.into_iter().filter_map(|row| reader.news(row, at));
    news.collect()
}

/// What comes of an answer, unless it takes too long.
async fn within<T>(answer: impl Future<Output = T>) -> Result<T, JournalError> {
    timeout(ANSWER, answer).await.map_err(|_| silent(ANSWER))
}

fn no_meta() -> JournalError {
    JournalError("the table meta is empty; restore it from a backup".to_owned())
}
