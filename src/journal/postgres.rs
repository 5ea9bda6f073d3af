//! The journal in PostgreSQL, which several servers may share. Each change is
//! kept by compare-and-set on the operation's revision; changes that come at the
//! same time are one statement and one commit.
//!
//! What other servers change is read in `news`, hints to do so at once live in
//! `listen`, what is written for a change in `row`, the statements in `sql`, a
//! connection in `link`, the way to the database in `url`, `tls` and `database`, and
//! what comes first in `opening` and `options`.

mod database;
mod link;
mod listen;
mod news;
mod opening;
pub(crate) mod options;
mod row;
mod sql;
mod tls;
mod url;

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
use tokio::{
    select,
    sync::Notify,
    time::{interval, sleep},
};
use tokio_postgres::{
    Client, Row,
    types::{ToSql, Type},
};
use tracing::{debug, error, info};

use self::{
    database::Database,
    link::{Link, refused},
    listen::Hints,
    news::News,
    opening::{clock_of, prepare},
    options::PostgresOptions,
    row::{Batch, decode},
    sql::{Sql, is_plain},
};
use super::journal::{Apply, BoxFuture, Entry, Journal, JournalError, Shared, Show, Then, Unkept};
use crate::{
    clock::Clock,
    operation::{
        name::{OperationName, Parent},
        operation::Operation,
    },
    tasks::Tasks,
};

/// So many changes, or so many bytes of them, are one commit.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;

/// The pause before a database that could not be reached is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// How often what has expired goes, and old changes are forgotten.
const TRIMS: Duration = Duration::from_secs(20);

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
    news: News,
    hints: Hints,
    sql: Sql,
    view_limit: Option<usize>,
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
    /// Connects to a database, and makes the tables if there are none.
    ///
    /// # Errors
    /// A sentence that says why the database cannot be used.
    pub async fn open(options: &PostgresOptions) -> Result<Self, JournalError> {
        let PostgresOptions {
            url,
            listen_url,
            view_limit,
            schema,
        } = options;
        if !is_plain(schema) {
            return Err(JournalError(format!(
                "{schema:?} is no name for a schema: use 1 to 63 letters a to z, digits and _, beginning \
                 with a letter"
            )));
        }
        let listening = Database::new(listen_url.as_deref().unwrap_or(url))?;
        let (hints, database) = (Hints::new(&listening), Database::new(url)?);
        let (writer, sql) = (Link::new(&database), Sql::new(schema));
        prepare(&writer, &sql).await?;
        let clock = clock_of(&writer).await?;
        let inner = Arc::new(Inner {
            line: Mutex::default(),
            comers: Notify::new(),
            news: News::new(&database),
            hints,
            sql,
            writer,
            reader: Link::new(&database),
            view_limit: *view_limit,
            clock,
            numbers: AtomicU64::new(0),
            trouble: Mutex::default(),
            tasks: Tasks::default(),
        });
        inner.spawn("postgres", async |inner| inner.write().await);
        inner.spawn("postgres hints", async |inner| {
            let stopping = inner.tasks.stopping();
            select! {
                () = inner.hints.give(&inner.reader, &inner.sql) => {}
                () = inner.hints.listen(&inner.reader, &inner.sql) => {}
                () = inner.trim() => {}
                () = stopping.cancelled() => {}
            }
        });
        Ok(Self(inner))
    }
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

    fn view_limit(&self) -> Option<usize> {
        self.0.view_limit
    }

    fn older<'a>(
        &'a self,
        parent: Option<&'a Parent>,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Arc<Operation>>, JournalError>> {
        Box::pin(self.0.older(parent, before, limit))
    }

    fn catch_up(&self) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(self.0.news.catch_up(&self.0.hints))
    }

    fn follow(&self, apply: Apply) -> BoxFuture<'_, ()> {
        Box::pin(self.0.follow(apply))
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
    /// Begins a task, which ends when it is told to stop.
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        title: &'static str,
        task: impl FnOnce(Arc<Self>) -> F,
    ) {
        self.tasks.spawn(title, task(self.clone()));
    }

    /// Forgets what everybody has read long ago.
    async fn trim(&self) {
        let mut times = interval(TRIMS);
        loop {
            times.tick().await;
            for text in [&self.sql.expire, &self.sql.trim] {
                let ask = async |client: &Client| client.execute_typed(text, &[]).await;
                // As long as there are many, by small batches.
                loop {
                    match self.reader.ask(ask).await {
                        Ok(1000..) => self.hints.tell(),
                        Ok(_) => break,
                        Err(error) => {
                            debug!(%error, "cannot let go of what is old");
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn replay(&self, show: Show) -> Result<(), JournalError> {
        self.news.begin().await?;
        let client = self.reader.client().await?;
        let limit = self.view_limit.map(count);
        let parameters = [(&limit as &(dyn ToSql + Sync), Type::INT8)];
        let rows = client
            .query_typed_raw(&self.sql.replay, parameters)
            .await
            .map_err(refused)?;
        let mut rows = std::pin::pin!(rows);
        let mut reader = row::Reader::default();
        while let Some(row) = rows.try_next().await.map_err(refused)? {
            show(decode(&mut reader, row.get(0), row.get(1))?);
        }
        Ok(())
    }

    async fn fetch(&self, name: &OperationName) -> Result<Option<Arc<Operation>>, JournalError> {
        let name = name.as_str();
        let parameters = [(&name as &(dyn ToSql + Sync), row::TEXT)];
        let row = self
            .reader
            .ask(async |client| client.query_typed_opt(&self.sql.named, &parameters).await)
            .await?;
        let read = |row: tokio_postgres::Row| {
            decode(&mut row::Reader::default(), row.get(0), row.get(1)).map(Arc::new)
        };
        row.map(read).transpose()
    }

    async fn follow(&self, apply: Apply) {
        let limit = self.view_limit.map(count);
        self.news.follow(&self.hints, &self.sql, limit, apply).await;
    }

    async fn older(
        &self,
        parent: Option<&Parent>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Operation>>, JournalError> {
        let (before, limit) = (i64::try_from(before).unwrap_or(i64::MAX), count(limit));
        let (text, parent) = match parent {
            Some(parent) => (&self.sql.older, Some(parent.as_str())),
            None => (&self.sql.older_everywhere, None),
        };
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&before, Type::INT8)];
        if let Some(parent) = &parent {
            parameters.push((parent, row::TEXT));
        }
        parameters.push((&limit, Type::INT8));
        let rows = self
            .reader
            .ask(async |client| client.query_typed(text, &parameters).await)
            .await?;
        let mut reader = row::Reader::default();
        let mut read = |row: &Row| Ok(Arc::new(decode(&mut reader, row.get(0), row.get(1))?));
        rows.iter().map(&mut read).collect()
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
                    self.hints.tell();
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
        let batch = Batch::of(entries);
        let kept = self
            .writer
            .ask(async |client| {
                client
                    .query_typed(&self.sql.commit, &batch.parameters())
                    .await
            })
            .await?;
        if kept.len() == entries.len() {
            return Ok(HashMap::new());
        }
        let kept = kept.iter().map(|row| row.get(0)).collect();
        batch.stale(&self.writer, &self.sql, &kept).await
    }

    /// Whether the database takes changes. One that only reads has given its place to
    /// another, which a new connection may find.
    async fn can_write(&self) -> bool {
        let question = "SELECT current_setting('transaction_read_only') = 'off'";
        let ask = async |client: &Client| client.query_typed_one(question, &[]).await;
        match (self.writer.ask(ask).await, self.writer.client().await) {
            (Ok(row), _) if row.get(0) => true,
            (Ok(_), Ok(client)) => {
                self.writer.give_up(&client).await;
                false
            }
            _ => false,
        }
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
            if self.can_write().await {
                info!("changes can be kept again");
                *self.trouble.lock() = None;
                return;
            }
        }
    }
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
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
