//! The journal in PostgreSQL, which several servers may share. Each change is
//! kept by compare-and-set on the operation's revision; changes that come at the
//! same time are one statement and one commit.
//!
//! Changes are written in `writer`, and what is written for one in `row`. What other
//! servers change is read in `news`, and hints to do so at once live in `listen`.
//! Since when all of that has worked is in `contact`, the statements are in `sql`, a
//! connection in `link`, the way to the database in `url`, `tls` and `database`, and
//! what comes first in `opening` and `options`.

mod contact;
mod database;
mod hosts;
mod link;
mod listen;
mod news;
mod opening;
pub(crate) mod options;
mod row;
mod sql;
mod tls;
mod url;
mod writer;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{join, time::interval};
use tokio_postgres::{
    Client,
    types::{ToSql, Type},
};
use tracing::{debug, error};

use self::{
    contact::Contact,
    database::Database,
    link::Link,
    listen::Hints,
    news::News,
    opening::{clock_of, prepare},
    options::PostgresOptions,
    sql::{Sql, is_plain},
    writer::Writer,
};
use super::journal::{Apply, BoxFuture, Entry, Journal, JournalError, Reach, Shared, Show, Then};
use crate::{
    clock::Clock,
    operation::{
        name::{OperationName, Parent},
        operation::Operation,
    },
    tasks::Tasks,
};

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
    writer: Writer,
    /// Answers questions, beside the writer.
    reader: Link,
    /// Lets go of what is old, beside both.
    sweeper: Link,
    news: News,
    hints: Hints,
    contact: Contact,
    sql: Sql,
    view_limit: Option<usize>,
    clock: Clock,
    numbers: AtomicU64,
    tasks: Tasks,
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
            writer: Writer::new(writer),
            contact: Contact::new(clock),
            news: News::new(&database),
            hints,
            sql,
            reader: Link::new(&database),
            sweeper: Link::new(&database),
            view_limit: *view_limit,
            clock,
            numbers: AtomicU64::new(0),
            tasks: Tasks::default(),
        });
        inner.spawn("postgres", async |inner| {
            inner.writer.write(&inner).await;
        });
        inner.spawn("postgres hints", async |inner| {
            let Inner {
                hints, reader, sql, ..
            } = &*inner;
            let stopping = inner.tasks.stopping();
            let all = async {
                join!(
                    hints.give(reader, sql),
                    hints.listen(reader, sql),
                    inner.trim()
                )
            };
            let _ = stopping.run_until_cancelled(all).await;
        });
        Ok(Self(inner))
    }
}

impl Journal for PostgresJournal {
    fn replay(&self, show: Show) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(self.0.replay(show))
    }

    fn append(&self, entry: Entry, then: Then) {
        self.0.writer.append(entry, then);
    }

    fn trouble(&self) -> Option<String> {
        let Inner {
            writer, contact, ..
        } = &*self.0;
        writer.trouble().or_else(|| contact.trouble())
    }

    fn shared(&self) -> Option<&dyn Shared> {
        Some(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.writer.close();
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

    fn reach(&self) -> Option<Reach> {
        Some(self.0.reach())
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
        self.0.writer.close();
        self.0.tasks.stopping().cancel();
    }
}

// === impl Inner ===

impl Inner {
    /// Begins a task. Without it the journal is of no use, so that its panic is trouble.
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        title: &'static str,
        task: impl FnOnce(Arc<Self>) -> F,
    ) {
        let (inner, task) = (self.clone(), task(self.clone()));
        self.tasks.spawn(title, async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                error!(task = title, "a task of the journal panicked");
                inner
                    .writer
                    .fail("the journal has met a bug of ours; restart this server");
            }
        });
    }

    /// Makes all connections anew: the server at their other end may have given its
    /// place to another one, and go on to answer.
    async fn reconnect(&self) {
        join!(
            self.reader.renew(),
            self.sweeper.renew(),
            self.news.link.renew(),
            self.hints.ear.renew(),
        );
    }

    /// Lets go of what has expired, and of changes that everybody has read long ago.
    async fn trim(&self) {
        let mut times = interval(TRIMS);
        loop {
            times.tick().await;
            for text in [&self.sql.expire, &self.sql.trim] {
                let ask = async |client: &Client| client.execute_typed(text, &[]).await;
                // As long as there are many, by small batches.
                loop {
                    match self.sweeper.ask(ask).await {
                        Ok(0) => break,
                        Ok(_) => self.hints.tell(),
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
        let limit = self.view_limit.map(count);
        let mut everything = self.news.everything(&self.sql, limit).await?;
        loop {
            let operations = everything.next().await?;
            if operations.is_empty() {
                return Ok(());
            }
            operations.into_iter().for_each(|operation| show(operation));
        }
    }

    async fn fetch(&self, name: &OperationName) -> Result<Option<Arc<Operation>>, JournalError> {
        let name = name.as_str();
        let parameters = [(&name as &(dyn ToSql + Sync), row::TEXT)];
        let row = self
            .reader
            .ask(async |client| client.query_typed_opt(&self.sql.named, &parameters).await)
            .await?;
        let mut reader = row::Reader::default();
        let row = row.map(|row| reader.operation(&row, 0));
        row.transpose().map(|found| found.map(Arc::new))
    }

    async fn follow(&self, apply: Apply) {
        let limit = self.view_limit.map(count);
        let Self {
            hints,
            sql,
            contact,
            ..
        } = self;
        self.news.follow(hints, sql, limit, contact, apply).await;
    }

    /// As long as the database takes no changes, it is not within reach.
    fn reach(&self) -> Reach {
        let mut reach = self.contact.reach();
        if self.writer.trouble().is_some() {
            reach.since = self.clock.now();
        }
        reach
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
        let read = |row| Ok(Arc::new(reader.operation(row, 0)?));
        rows.iter().map(read).collect()
    }
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
