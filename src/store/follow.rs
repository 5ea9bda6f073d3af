//! Following: what other servers of one journal make of operations is taken over
//! into the view. Which change wins is decided by the journal; here it is only
//! kept from the view that it goes back.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures_util::{FutureExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tracing::{debug, error, warn};

use super::store::Store;
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    journal::journal::{Apply, JournalError, News, Reach, Shared},
    operation::{
        name::OperationName,
        operation::{Operation, Version},
    },
    tasks::Tasks,
};

/// How many pieces of news are taken in side by side: each waits for the turn of
/// its operation.
const AT_ONCE: usize = 256;

/// How new what clients read is, if several servers share the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// What this server knows: what was done through it at once, and what was done
    /// through others within the time that word of it takes.
    #[default]
    View,
    /// All that was done before, through whatever server. Each read asks the
    /// journal what is new; those that come together ask once.
    Fresh,
}

/// What is known of the other servers.
#[derive(Debug, Default)]
pub(super) struct Others {
    graves: Mutex<Graves>,
    pub(super) tasks: Tasks,
}

/// Operations that are gone, for as long as somebody may still be on the way
/// with an older word of them: with news that were read before, or with an answer
/// to a question that was asked before.
#[derive(Debug, Default)]
struct Graves {
    fresh: HashSet<u64>,
    old: HashSet<u64>,
    /// How many ask just now: since the fresh graves are dug, and since before.
    asking: [usize; 2],
    /// Which of the two those are who ask from now on.
    turn: usize,
}

/// Somebody asks the journal.
struct Asking<'a> {
    others: &'a Others,
    turn: usize,
}

// === impl Store ===

impl Store {
    /// Takes in what other servers do, until the store is closed: those who drain are
    /// still asked.
    pub(super) fn follow(self: &Arc<Self>) {
        let Some(others) = &self.others else { return };
        let (store, stopping) = (self.clone(), others.tasks.stopping().clone());
        let apply: Apply = {
            let store = self.clone();
            Arc::new(move |news, since| {
                let store = store.clone();
                Box::pin(async move { store.take_in(news, since).await })
            })
        };
        others.tasks.spawn("follow", async move {
            if let Some(shared) = store.journal.0.shared() {
                let _ = stopping.run_until_cancelled(shared.follow(apply)).await;
            }
        });
    }

    /// Takes in nothing more.
    pub(crate) fn unfollow(&self) {
        if let Some(others) = &self.others {
            others.tasks.stopping().cancel();
        }
    }

    /// The operation as time may judge it: a lease gets its full time again once
    /// the journal is within reach, because until then nobody could renew it.
    pub(super) fn judged(&self, operation: Arc<Operation>) -> Arc<Operation> {
        let now = self.clock.now();
        let is_over = operation.lease().is_some_and(|lease| lease.is_over(now));
        let shared = self.journal.0.shared().filter(|_| is_over);
        let Some(Reach { since, .. }) = shared.and_then(Shared::reach) else {
            return operation;
        };
        let mut resumed = Operation::clone(&operation);
        resumed.resume(since);
        Arc::new(resumed)
    }

    /// Whether an operation was let go of, here or elsewhere.
    pub(crate) fn is_gone(&self, number: u64) -> bool {
        let others = self.others.as_ref();
        others.is_some_and(|others| others.is_gone(number))
    }

    /// Forgets what was let go of elsewhere just before it was shown here: nobody found
    /// it then. The caller has its turn.
    pub(super) fn forget_if_gone(&self, operation: &Operation) {
        if self.is_gone(operation.number()) {
            self.forget(operation);
        }
    }

    /// Up to when everything is shown that other servers did.
    pub(crate) fn read_until(&self) -> Option<Timestamp> {
        Some(self.journal.0.shared()?.reach()?.read)
    }

    /// Whether other servers share the journal.
    pub(crate) fn has_others(&self) -> bool {
        self.others.is_some()
    }

    /// Sees to it that what is shown is no older than this call, if reads are to
    /// be fresh.
    pub(crate) async fn freshen(&self) -> Result<()> {
        match (self.reads, self.journal.0.shared()) {
            (Reads::Fresh, Some(shared)) => shared.catch_up().await.map_err(|error| {
                debug!(%error, "cannot read what other servers do");
                Error::StoreUnavailable
            }),
            _ => Ok(()),
        }
    }

    /// Asks the journal how an operation is now.
    pub(crate) async fn ask(&self, name: &OperationName) -> Result<()> {
        let _turn = self.turns.of(name.as_str()).await;
        self.refresh(name).await
    }

    async fn take_in(&self, news: Vec<News>, since: Option<Timestamp>) -> Result<(), JournalError> {
        let is_everything = news.iter().any(|news| matches!(news, News::Left(_)));
        stream::iter(news.into_iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |news| {
                // One operation that cannot be shown must not hide all others.
                let taken = AssertUnwindSafe(self.take_in_one(news)).catch_unwind();
                taken.map(|taken| {
                    taken.unwrap_or_else(|_| {
                        error!("to take in what another server did panicked");
                        Ok(())
                    })
                })
            })
            .await
            .map_err(|error| JournalError(format!("what is new cannot be shown: {error}")))?;
        if let Some(others) = &self.others {
            others.tidy();
        }
        self.shorten().await;
        if is_everything {
            self.view.older.begin();
        }
        if let Some(since) = since {
            let lag = self.clock.now().since(since);
            self.view.metrics.follow_seconds.observe(lag.as_secs_f64());
        }
        Ok(())
    }

    async fn take_in_one(&self, news: News) -> Result<()> {
        match news {
            News::Changed(operation) => {
                let _turn = self.turns.of(operation.name()).await;
                let is_shown = self.view.index.get(operation.number()).is_some();
                if is_shown || !self.is_old(&operation) {
                    self.take_over(&operation).await?;
                }
            }
            News::Renewed {
                number,
                revision,
                until,
            } => self.renew(number, revision, until).await,
            News::Gone(number) => self.let_go(number).await,
            News::Left(versions) => self.keep_only(&versions).await?,
        }
        Ok(())
    }

    /// Asks the journal how an operation is now. The caller has its turn: whoever shows
    /// something newer waits for it, so that what was just read is the truth even if it
    /// is older, for a database may have lost what it said it had kept.
    pub(super) async fn refresh(&self, name: &OperationName) -> Result<()> {
        let (Some(others), Some(shared)) = (&self.others, self.journal.0.shared()) else {
            return Ok(());
        };
        let _asking = others.ask();
        let found = shared.fetch(name).await.map_err(|error| {
            warn!(operation.name = %name, %error, "cannot ask the journal for an operation");
            Error::StoreUnavailable
        })?;
        // It went while the answer was on its way.
        if found
            .as_ref()
            .is_some_and(|found| others.is_gone(found.number()))
        {
            return Ok(());
        }
        match (self.view.find(name.as_str()), found) {
            (Some(shown), Some(found)) if shown.number() == found.number() => {
                if shown.version() != found.version() {
                    self.view.publish(&found);
                }
            }
            (shown, found) => {
                if let Some(shown) = shown {
                    self.forget(&shown);
                }
                if let Some(found) = found {
                    self.show_again(&found);
                }
            }
        }
        Ok(())
    }

    /// Looks at what another server has made of an operation, so that a change of
    /// ours can be tried again, unless that was tried too often.
    pub(super) async fn meet(
        self: &Arc<Self>,
        winner: Option<Arc<Operation>>,
        name: &OperationName,
        tries: &mut usize,
    ) -> Result<()> {
        *tries = tries.checked_sub(1).ok_or(Error::StoreUnavailable)?;
        // A request id may have been taken by an operation of another name. Since
        // it was in the way, it may have changed again.
        let name = winner.map_or_else(|| name.clone(), |winner| winner.owned_name());
        self.ask(&name).await
    }

    /// Shows what another server has made of an operation, instead of our change.
    pub(super) async fn concede(
        &self,
        winner: Option<Arc<Operation>>,
        name: &OperationName,
    ) -> Result<()> {
        let _turn = self.turns.of(name.as_str()).await;
        let shown = self.view.find(name.as_str());
        match (shown, winner) {
            (Some(shown), Some(winner))
                if shown.number() == winner.number() && shown.revision() < winner.revision() =>
            {
                self.view.publish(&winner);
                Ok(())
            }
            _ => self.refresh(name).await,
        }
    }

    /// Shows an operation as the journal has it, unless something newer is shown.
    /// The caller has its turn.
    async fn take_over(&self, operation: &Arc<Operation>) -> Result<()> {
        let others = self.others.as_ref();
        if others.is_some_and(|others| others.is_gone(operation.number())) {
            return Ok(());
        }
        match self.view.find(operation.name()) {
            None => self.show_again(operation),
            Some(shown) if shown.number() == operation.number() => {
                if shown.revision() < operation.revision() {
                    self.view.publish(operation);
                }
            }
            // The name was free for a while. Clocks do not tell who had it first.
            Some(_) => self.refresh(&operation.owned_name()).await?,
        }
        Ok(())
    }

    /// A lease was renewed elsewhere, which is all that was new until then.
    async fn renew(&self, number: u64, revision: u32, until: Timestamp) {
        let Some(shown) = self.view.index.get(number) else {
            return;
        };
        let _turn = self.turns.of(shown.name()).await;
        if let Some(shown) = self.view.index.get(number)
            && shown.revision() < revision
        {
            let mut renewed = Operation::clone(&shown);
            renewed.renew(revision, until);
            self.view.publish(&Arc::new(renewed));
        }
    }

    /// Another server has let go of an operation.
    async fn let_go(&self, number: u64) {
        // Before it is looked for, so that whoever shows it later knows.
        if let Some(others) = &self.others {
            others.bury(number);
        }
        let Some(shown) = self.view.index.get(number) else {
            return;
        };
        let _turn = self.turns.of(shown.name()).await;
        if let Some(shown) = self.view.index.get(number) {
            self.forget(&shown);
        }
    }

    /// Only these are left of what was there. What is otherwise here may be newer
    /// than that, so that it is asked for.
    async fn keep_only(&self, left: &BTreeMap<u64, Version>) -> Result<()> {
        let numbers = self.view.index.numbers().into_iter().map(Ok);
        let check = async |number| match self.view.index.get(number) {
            Some(shown) if left.get(&number) != Some(&shown.version()) => {
                self.ask(&shown.owned_name()).await
            }
            _ => Ok(()),
        };
        stream::iter(numbers)
            .try_for_each_concurrent(AT_ONCE, check)
            .await
    }
}

// === impl Others ===

impl Others {
    /// Remembers that an operation is gone.
    pub(super) fn bury(&self, number: u64) {
        self.graves.lock().fresh.insert(number);
    }

    pub(super) fn is_gone(&self, number: u64) -> bool {
        let graves = self.graves.lock();
        graves.fresh.contains(&number) || graves.old.contains(&number)
    }

    fn ask(&self) -> Asking<'_> {
        let mut graves = self.graves.lock();
        let turn = graves.turn;
        graves.asking[turn] += 1;
        Asking { others: self, turn }
    }

    /// All news that were read are taken in, and those that will be read know
    /// what is gone. When the questions from before the last time are answered,
    /// so do all answers to come know of the old graves.
    fn tidy(&self) {
        let mut graves = self.graves.lock();
        let before = 1 - graves.turn;
        if graves.asking[before] == 0 {
            graves.old = mem::take(&mut graves.fresh);
            graves.turn = before;
        }
    }
}

// === impl Asking ===

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.others.graves.lock().asking[self.turn] -= 1;
    }
}
