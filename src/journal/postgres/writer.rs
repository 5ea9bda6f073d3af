//! The one that writes: changes that come at the same time are one statement and
//! one commit.

use std::{
    collections::HashSet,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};
use tokio_postgres::{Client, Error, error::SqlState, types::Type};
use tracing::{error, info};

use super::{
    Inner,
    link::Link,
    opening::{VERSION, check_version},
    row::{self, Batch},
    sql::Sql,
};
use crate::journal::journal::{Entry, JournalError, Then, Unkept};

/// So many changes, or so many bytes of them, are one commit.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;

/// How often a batch is tried again that met another one in the database.
const TRIES: usize = 8;

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
    /// Why nothing can be kept for good.
    broken: OnceLock<&'static str>,
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
            broken: OnceLock::new(),
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
        let broken = self.broken.get().map(ToString::to_string);
        broken.or_else(|| self.trouble.lock().clone())
    }

    /// Nobody may stand in line any more.
    pub(super) fn close(&self) {
        self.line.lock().is_closed = true;
        self.comers.notify_one();
    }

    /// Keeps nothing any more, for this reason.
    pub(super) fn fail(&self, why: &'static str) {
        self.broken.get_or_init(|| why);
        self.refuse(Vec::new(), &JournalError(why.to_owned()));
    }

    /// Commits what stands in line, until the line is closed and empty.
    pub(super) async fn write(&self, journal: &Inner) {
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
            let mut thens: Vec<Option<Then>> = thens.into_iter().map(Some).collect();
            let mut told = |at: usize, kept| {
                if let Some(then) = thens[at].take() {
                    tell(then, kept);
                }
            };
            let committed = self.commit(&entries, &journal.sql, &mut told).await;
            // That a lease lasts longer, nobody waits for.
            if entries
                .iter()
                .any(|entry| !matches!(entry, Entry::Renew(_)))
            {
                journal.hints.tell();
            }
            if let Err(error) = committed {
                error!(%error, "changes cannot be kept");
                self.refuse(thens.into_iter().flatten().collect(), &error);
                self.heal(journal).await;
            }
        }
    }

    /// Keeps changes, and says of each, by its place, whether it was kept; those that
    /// came too late hear what was there. Of the others nothing is known after an error.
    async fn commit(
        &self,
        entries: &[Entry],
        sql: &Sql,
        told: &mut impl FnMut(usize, Result<(), Unkept>),
    ) -> Result<(), JournalError> {
        let batch = Batch::of(entries);
        let write = async |client: &Client| {
            let mut tries = TRIES;
            loop {
                let kept = client.query_typed(&sql.commit, &batch.parameters()).await;
                match kept {
                    Err(error) if tries != 0 && may_go_well(&error) => tries -= 1,
                    kept => return kept,
                }
            }
        };
        let kept = self.link.ask(write).await?;
        let kept: HashSet<i64> = kept.iter().map(|row| row.get(0)).collect();
        let late = batch.late(&kept);
        for at in (0..entries.len()).filter(|at| !late.contains(at)) {
            told(at, Ok(()));
        }
        if late.is_empty() {
            return Ok(());
        }
        // Nothing is kept in tables that a newer program has made its own.
        if kept.is_empty() {
            check_version(&self.link, sql).await?;
        }
        for (at, kept) in batch.met(&late, &self.link, sql).await? {
            told(at, kept);
        }
        Ok(())
    }

    /// Nothing can be kept: says so to these, to those who stand in line, and to those
    /// who come.
    fn refuse(&self, thens: Vec<Then>, error: &JournalError) {
        *self.trouble.lock() = Some(error.0.clone());
        let waiting = mem::take(&mut self.line.lock().waiting);
        let waiting = waiting.into_iter().map(|(_, then)| then);
        for then in thens.into_iter().chain(waiting) {
            tell(then, Err(error.clone().into()));
        }
    }

    /// Waits until the database can be reached again, or the journal is closed.
    async fn heal(&self, journal: &Inner) {
        loop {
            let look = async {
                sleep(PAUSE).await;
                self.look(&journal.sql).await
            };
            let Some(looked) = journal.tasks.stopping().run_until_cancelled(look).await else {
                return;
            };
            if self.line.lock().is_closed {
                return;
            }
            if let Err(error) = looked {
                *self.trouble.lock() = Some(error.0);
                // One that only reads has given its place to another, which a new
                // connection may find.
                self.link.renew().await;
                continue;
            }
            journal.reconnect().await;
            journal.contact.begin();
            *self.trouble.lock() = None;
            return info!("changes can be kept again");
        }
    }

    /// Looks whether the database takes our changes, and why it does not.
    async fn look(&self, sql: &Sql) -> Result<(), JournalError> {
        let parameters = [(&VERSION as _, Type::INT4)];
        let ask = async |client: &Client| client.query_typed_one(&sql.can_write, &parameters).await;
        if self.link.ask(ask).await?.get(0) {
            return Ok(());
        }
        check_version(&self.link, sql).await?;
        let words =
            "the database is read-only: is it a standby, or has another one taken its place?";
        Err(JournalError(words.to_owned()))
    }
}

/// Whether the database says that two batches waited for each other, or met in another
/// way that does not come again.
fn may_go_well(error: &Error) -> bool {
    let codes = [
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
    ];
    error.code().is_some_and(|code| codes.contains(code))
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
