//! A journal whose every step the test decides: it can hold appends back, let
//! them fail, and begin again with what it kept.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use longrunning::{BoxFuture, Entry, Journal, JournalError, Operation, Show, Then, Timestamp};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Clones are the same journal.
#[derive(Clone)]
pub(crate) struct TestJournal(Arc<Inner>);

struct Inner {
    gate: Mutex<Gate>,
    /// What came while the gate was shut.
    held_back: Mutex<Vec<(Entry, Then)>>,
    /// How many appends have begun.
    begun: watch::Sender<usize>,
    kept: Mutex<BTreeMap<String, Arc<Operation>>>,
    log: Mutex<Vec<String>>,
    replay: Mutex<Vec<Operation>>,
    replay_takes: Mutex<Duration>,
    newest: Mutex<Option<Timestamp>>,
}

/// What happens to appends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Gate {
    Open,
    /// They pend.
    Shut,
    /// They fail.
    Broken,
}

// === impl TestJournal ===

impl TestJournal {
    pub(crate) fn new() -> Self {
        Self::with(Vec::new())
    }

    /// A journal that kept these operations before.
    pub(crate) fn with(replay: Vec<Operation>) -> Self {
        Self(Arc::new(Inner {
            gate: Mutex::new(Gate::Open),
            held_back: Mutex::default(),
            begun: watch::Sender::new(0),
            kept: Mutex::default(),
            log: Mutex::default(),
            replay: Mutex::new(replay),
            replay_takes: Mutex::default(),
            newest: Mutex::default(),
        }))
    }

    /// The same journal, which reads for so long.
    pub(crate) fn slow(self, time: Duration) -> Self {
        *self.0.replay_takes.lock() = time;
        self
    }

    /// The same journal, with changes up to this time.
    pub(crate) fn up_to(self, time: Timestamp) -> Self {
        *self.0.newest.lock() = Some(time);
        self
    }

    /// Sets what happens to appends from now on, those that pend included.
    pub(crate) fn set(&self, gate: Gate) {
        let mut held_back = self.0.held_back.lock();
        *self.0.gate.lock() = gate;
        if gate == Gate::Shut {
            return;
        }
        let held_back = std::mem::take(&mut *held_back);
        for (entry, then) in held_back {
            self.0.go_on(gate, entry, then);
        }
    }

    /// Waits until so many appends have begun in all.
    pub(crate) async fn begun(&self, count: usize) {
        let mut begun = self.0.begun.subscribe();
        begun.wait_for(|begun| count <= *begun).await.unwrap();
    }

    /// How many appends have begun in all.
    pub(crate) fn count(&self) -> usize {
        *self.0.begun.borrow()
    }

    /// What was kept, as `put NAME rREVISION` and `forget NAME`.
    pub(crate) fn log(&self) -> Vec<String> {
        self.0.log.lock().clone()
    }

    /// Whether no server uses it any more.
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// What a new server would read. Everybody else must have let go of it.
    pub(crate) fn into_kept(self) -> Vec<Operation> {
        let kept = std::mem::take(&mut *self.0.kept.lock());
        let alone = |operation| Arc::try_unwrap(operation).expect("the old server is gone");
        kept.into_values().map(alone).collect()
    }
}

impl Journal for TestJournal {
    fn replay(&self, show: Show) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(async move {
            let kept = std::mem::take(&mut *self.0.replay.lock());
            kept.into_iter().for_each(|operation| show(operation));
            let time = *self.0.replay_takes.lock();
            tokio::time::sleep(time).await;
            Ok(())
        })
    }

    fn newest(&self) -> Option<Timestamp> {
        *self.0.newest.lock()
    }

    fn append(&self, entry: Entry, then: Then) {
        // Broken or open is decided under the lock, so that `set` misses nobody.
        let mut held_back = self.0.held_back.lock();
        self.0.begun.send_modify(|begun| *begun += 1);
        let gate = *self.0.gate.lock();
        if gate == Gate::Shut {
            held_back.push((entry, then));
            return;
        }
        drop(held_back);
        self.0.go_on(gate, entry, then);
    }
}

// === impl Inner ===

impl Inner {
    fn go_on(&self, gate: Gate, entry: Entry, then: Then) {
        if gate == Gate::Broken {
            return then.call(Err(JournalError("the test broke it".into()).into()));
        }
        match entry {
            Entry::Put(operation) | Entry::Renew(operation) => {
                let line = format!("put {} r{}", operation.name(), operation.revision());
                self.log.lock().push(line);
                self.kept
                    .lock()
                    .insert(operation.name().to_owned(), operation);
            }
            Entry::Forget(operation) => {
                self.log.lock().push(format!("forget {}", operation.name()));
                self.kept.lock().remove(operation.name());
            }
        }
        then.call(Ok(()));
    }
}
