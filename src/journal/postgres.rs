//! The journal in PostgreSQL, which several servers may share. Each change is
//! kept by compare-and-set on the operation's revision; changes that come at the
//! same time are one statement and one commit. What other servers change is read
//! in `news`, what is written for a change is made in `row`.

mod link;
mod news;
mod row;

use std::{
    collections::HashMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::TryStreamExt;
use parking_lot::Mutex;
use tokio::{select, sync::Notify, time::sleep};
use tokio_postgres::{Client, types::ToSql};
use tracing::{error, info};

use self::{
    link::{Link, refused},
    news::News as Reader,
    row::{Batch, decode},
};
use super::journal::{
    Apply, BoxFuture, Entry, Journal, JournalError, Shared, Show, Then, Unkept,
};
use crate::{
    clock::{Clock, Timestamp},
    operation::{name::OperationName, operation::Operation},
    tasks::Tasks,
};

const SCHEMA: &str = include_str!("postgres/schema.sql");
const COMMIT: &str = include_str!("postgres/commit.sql");

/// The version of the tables.
const VERSION: i32 = 1;

/// So many changes, or so many bytes of them, are one commit.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;

/// The pause before a database that could not be reached is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// A number is a time in microseconds and so many bits of chance, so that servers
/// need not agree on each.
const CHANCE_BITS: u32 = 10;

/// Keeps operations in PostgreSQL, for all servers that are given the same
/// database.
#[derive(Debug)]
pub struct PostgresJournal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    line: Mutex<Line>,
    /// Somebody stands in line.
    comers: Notify,
    writer: Link,
    /// Answers questions, beside the writer.
    reader: Link,
    news: Reader,
    clock: Clock,
    numbers: AtomicU64,
    trouble: Mutex<Option<String>>,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Line {
    waiting: Vec<(Entry, Then)>,
    is_closed: bool,
}

// === impl PostgresJournal ===

impl PostgresJournal {
    /// Connects to a database, `postgres://USER:PASSWORD@HOST/DATABASE`, and makes
    /// the tables in its schema `longrunning` if there are none.
    ///
    /// # Errors
    /// A sentence that says why the database cannot be used.
    pub async fn open(url: &str) -> Result<Self, JournalError> {
        let (writer, reader) = (Link::new(url)?, Link::new(url)?);
        let client = writer.client().await?;
        prepare(&client).await?;
        let clock = clock_of(&client).await?;
        let journal = Self(Arc::new(Inner {
            line: Mutex::default(),
            comers: Notify::new(),
            news: Reader::new(Link::new(url)?),
            writer,
            reader,
            clock,
            numbers: AtomicU64::new(0),
            trouble: Mutex::default(),
            tasks: Tasks::default(),
        }));
        let inner = journal.0.clone();
        journal.0.tasks.spawn("postgres", async move { inner.write().await });
        let inner = journal.0.clone();
        journal.0.tasks.spawn("postgres hints", async move {
            let stopping = inner.tasks.stopping();
            select! {
                () = inner.news.hint(&inner.reader) => {}
                () = stopping.cancelled() => {}
            }
        });
        Ok(journal)
    }
}

/// Makes the tables, one server at a time, or looks whether they are ours.
async fn prepare(client: &Client) -> Result<(), JournalError> {
    let version = "SELECT version FROM longrunning.meta";
    let find = "SELECT to_regclass('longrunning.meta') IS NOT NULL";
    let make = format!(
        "BEGIN; SELECT pg_advisory_xact_lock(hashtext('longrunning'));
         DO $longrunning$ BEGIN IF to_regclass('longrunning.meta') IS NULL THEN {SCHEMA} END IF; END $longrunning$;
         COMMIT"
    );
    let row = client.query_typed_one(find, &[]).await.map_err(refused)?;
    if !row.get::<_, bool>(0) {
        client.batch_execute(&make).await.map_err(refused)?;
    }
    let row = client.query_typed_one(version, &[]).await.map_err(refused)?;
    match row.get::<_, i32>(0) {
        VERSION => Ok(()),
        other => Err(JournalError(format!(
            "the tables of the database are of version {other}, and this program knows version {VERSION}"
        ))),
    }
}

/// The clock of the database, as far as the way there can be measured.
async fn clock_of(client: &Client) -> Result<Clock, JournalError> {
    let clock = Clock::system();
    let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let asked = clock.now();
    let row = client.query_typed_one(now, &[]).await.map_err(refused)?;
    let way = clock.now().since(asked) / 2;
    let micros: i64 = row.get(0);
    Ok(Clock::at(Timestamp::from_nanos(micros.saturating_mul(1000)) + way))
}

impl Journal for PostgresJournal {
    fn replay(&self, show: Show) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(self.0.replay(show))
    }

    fn append(&self, entry: Entry, then: Then) {
        let mut line = self.0.line.lock();
        if line.is_closed {
            drop(line);
            return then.call(Err(JournalError("the journal is closed".to_owned()).into()));
        }
        // While the database is out of reach, nobody waits for it.
        if let Some(trouble) = self.trouble() {
            drop(line);
            return then.call(Err(JournalError(trouble).into()));
        }
        line.waiting.push((entry, then));
        drop(line);
        self.0.comers.notify_one();
    }

    fn trouble(&self) -> Option<String> {
        self.0.trouble.lock().clone()
    }

    fn shared(&self) -> Option<&dyn Shared> {
        Some(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.line.lock().is_closed = true;
            self.0.comers.notify_one();
            self.0.tasks.stop().await;
        })
    }
}

impl Shared for PostgresJournal {
    fn fetch<'a>(
        &'a self,
        name: &'a OperationName,
    ) -> BoxFuture<'a, Result<Option<Arc<Operation>>, JournalError>> {
        Box::pin(self.0.fetch(name))
    }

    fn number(&self) -> u64 {
        let micros = self.0.clock.now().nanos() / 1000;
        let time = u64::try_from(micros).unwrap_or(0) << CHANCE_BITS;
        let chance = uuid::Uuid::new_v4().as_u64_pair().1 & ((1 << CHANCE_BITS) - 1);
        let next = |last: u64| Some((last + 1).max(time | chance));
        let numbers = &self.0.numbers;
        let last = numbers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        next(last.unwrap_or_else(|last| last)).unwrap_or(time)
    }

    fn clock(&self) -> Option<Clock> {
        Some(self.0.clock)
    }

    fn follow(&self, apply: Apply) -> BoxFuture<'_, ()> {
        Box::pin(self.0.news.follow(apply))
    }
}

impl Drop for PostgresJournal {
    fn drop(&mut self) {
        self.0.line.lock().is_closed = true;
        self.0.comers.notify_one();
        self.0.tasks.stopping().cancel();
    }
}

// === impl Inner ===

impl Inner {
    async fn replay(&self, show: Show) -> Result<(), JournalError> {
        let client = self.reader.client().await?;
        self.news.begin(&client).await?;
        let all = "SELECT number, record FROM longrunning.operations ORDER BY number";
        let none: [(&(dyn ToSql + Sync), _); 0] = [];
        let rows = client.query_typed_raw(all, none).await.map_err(refused)?;
        let mut rows = std::pin::pin!(rows);
        let mut reader = row::Reader::default();
        while let Some(row) = rows.try_next().await.map_err(refused)? {
            show(decode(&mut reader, row.get(0), row.get(1))?);
        }
        Ok(())
    }

    async fn fetch(&self, name: &OperationName) -> Result<Option<Arc<Operation>>, JournalError> {
        let client = self.reader.client().await?;
        let named = "SELECT number, record FROM longrunning.operations WHERE name = $1";
        let name = name.as_str();
        let parameters = [(&name as &(dyn ToSql + Sync), row::TEXT)];
        let row = client.query_typed_opt(named, &parameters).await.map_err(refused)?;
        let read = |row: tokio_postgres::Row| {
            decode(&mut row::Reader::default(), row.get(0), row.get(1)).map(Arc::new)
        };
        row.map(read).transpose()
    }

    /// Commits what stands in line, until the journal is closed and nobody does.
    async fn write(&self) {
        loop {
            let batch = {
                let mut line = self.line.lock();
                if line.waiting.is_empty() && line.is_closed {
                    return;
                }
                let count = fits(&line.waiting);
                let rest = line.waiting.split_off(count);
                mem::replace(&mut line.waiting, rest)
            };
            if batch.is_empty() {
                self.comers.notified().await;
                continue;
            }
            let (entries, thens): (Vec<Entry>, Vec<Then>) = batch.into_iter().unzip();
            match self.commit(&entries).await {
                Ok(mut stale) => {
                    for (at, then) in thens.into_iter().enumerate() {
                        tell(then, stale.remove(&at).map_or(Ok(()), Err));
                    }
                    self.news.tell();
                }
                Err(error) => {
                    error!(%error, "changes cannot be kept");
                    *self.trouble.lock() = Some(error.to_string());
                    let waiting = mem::take(&mut self.line.lock().waiting);
                    let waiting = waiting.into_iter().map(|(_, then)| then);
                    for then in thens.into_iter().chain(waiting) {
                        tell(then, Err(error.clone().into()));
                    }
                    self.heal().await;
                }
            }
        }
    }

    /// Keeps changes; those that came too late, by their places, with what was
    /// there.
    async fn commit(&self, entries: &[Entry]) -> Result<HashMap<usize, Unkept>, JournalError> {
        let client = self.writer.client().await?;
        let batch = Batch::of(entries);
        let kept = client
            .query_typed(COMMIT, &batch.parameters())
            .await
            .map_err(refused)?;
        if kept.len() == entries.len() {
            return Ok(HashMap::new());
        }
        let kept = kept.iter().map(|row| row.get(0)).collect();
        batch.stale(&client, &kept).await
    }

    /// Waits until the database can be reached again, or the journal is closed.
    async fn heal(&self) {
        loop {
            select! {
                () = sleep(PAUSE) => {}
                () = self.tasks.stopping().cancelled() => return,
            }
            if self.line.lock().is_closed {
                return;
            }
            if let Ok(client) = self.writer.client().await
                && client.query_typed_one("SELECT 1", &[]).await.is_ok()
            {
                info!("changes can be kept again");
                *self.trouble.lock() = None;
                return;
            }
        }
    }
}

/// A bug that one of them meets must not keep the others waiting.
fn tell(then: Then, kept: Result<(), Unkept>) {
    if catch_unwind(AssertUnwindSafe(|| then.call(kept))).is_err() {
        error!("showing a change panicked");
    }
}

/// How many of the waiting changes fit in one commit, and at least one.
fn fits(waiting: &[(Entry, Then)]) -> usize {
    let mut bytes = 0;
    let count = waiting.iter().take(BATCH).take_while(|(entry, _)| {
        let fits = bytes < BATCH_BYTES;
        bytes += row::size(entry);
        fits
    });
    count.count()
}
