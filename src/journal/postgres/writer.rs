//! The one that writes: changes that come at the same time are one statement and
//! one commit.

use std::{
    collections::HashMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{select, sync::Notify, time::sleep};
use tokio_postgres::{Client, types::Type};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    contact::Contact,
    link::Link,
    listen::Hints,
    opening::{VERSION, check_version},
    row::{self, Batch},
    sql::Sql,
};
use crate::journal::journal::{Entry, JournalError, Then, Unkept};

/// So many changes, or so many bytes of them, are one commit.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;

/// The pause before a database that could not be reached is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Changes that wait to be kept, and how they are.
#[derive(Debug)]
pub(super) struct Writer {
    link: Link,
    line: Mutex<Line>,
    /// Somebody stands in line, or the line is closed.
    comers: Notify,
    trouble: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: Vec<(Entry, Then)>,
    is_closed: bool,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            line: Mutex::default(),
            comers: Notify::new(),
            trouble: Mutex::default(),
        }
    }

    /// Lets a change stand in line.
    pub(super) fn append(&self, entry: Entry, then: Then) {
        let mut line = self.line.lock();
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
        self.comers.notify_one();
    }

    /// Why changes cannot be kept at present.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Nobody may stand in line any more.
    pub(super) fn close(&self) {
        self.line.lock().is_closed = true;
        self.comers.notify_one();
    }

    /// Commits what stands in line, until the line is closed and empty.
    pub(super) async fn write(
        &self,
        sql: &Sql,
        hints: &Hints,
        contact: &Contact,
        stopping: &CancellationToken,
    ) {
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
            match self.commit(&entries, sql).await {
                Ok(mut stale) => {
                    for (at, then) in thens.into_iter().enumerate() {
                        tell(then, stale.remove(&at).map_or(Ok(()), Err));
                    }
                    // That a lease lasts longer, nobody waits for.
                    if entries
                        .iter()
                        .any(|entry| !matches!(entry, Entry::Renew(_)))
                    {
                        hints.tell();
                    }
                }
                Err(error) => {
                    error!(%error, "changes cannot be kept");
                    *self.trouble.lock() = Some(error.to_string());
                    let waiting = mem::take(&mut self.line.lock().waiting);
                    let waiting = waiting.into_iter().map(|(_, then)| then);
                    for then in thens.into_iter().chain(waiting) {
                        tell(then, Err(error.clone().into()));
                    }
                    self.heal(sql, contact, stopping).await;
                }
            }
        }
    }

    /// Keeps changes; those that came too late, by their places, with what was
    /// there.
    async fn commit(
        &self,
        entries: &[Entry],
        sql: &Sql,
    ) -> Result<HashMap<usize, Unkept>, JournalError> {
        let batch = Batch::of(entries);
        let write =
            async |client: &Client| client.query_typed(&sql.commit, &batch.parameters()).await;
        let kept = self.link.ask(write).await?;
        if kept.len() == entries.len() {
            return Ok(HashMap::new());
        }
        // Nothing is kept in tables that a newer program has made its own.
        if kept.is_empty() {
            check_version(&self.link, sql).await?;
        }
        let kept = kept.iter().map(|row| row.get(0)).collect();
        batch.stale(&self.link, sql, &kept).await
    }

    /// Waits until the database can be reached again, or the journal is closed.
    async fn heal(&self, sql: &Sql, contact: &Contact, stopping: &CancellationToken) {
        loop {
            select! {
                () = sleep(PAUSE) => {}
                () = stopping.cancelled() => return,
            }
            if self.line.lock().is_closed {
                return;
            }
            if self.can_write(sql).await {
                info!("changes can be kept again");
                contact.begin();
                *self.trouble.lock() = None;
                return;
            }
        }
    }

    /// Whether the database takes our changes. One that only reads has given its
    /// place to another, which a new connection may find.
    async fn can_write(&self, sql: &Sql) -> bool {
        let parameters = [(&VERSION as _, Type::INT4)];
        let ask = async |client: &Client| client.query_typed_one(&sql.can_write, &parameters).await;
        match (self.link.ask(ask).await, self.link.client().await) {
            (Ok(row), _) if row.get(0) => true,
            (Ok(_), Ok(client)) => {
                self.link.give_up(&client).await;
                false
            }
            _ => false,
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
