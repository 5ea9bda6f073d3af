//! What must be true of operations, going by the answers that were given about
//! them: acknowledged changes stay, what was seen does not go back, and what
//! nobody asked for does not happen. Calls whose answer was lost may have had
//! their effect, or not; a look after the restart decides it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use longrunning::proto::{
    google::{longrunning::Operation, longrunning::operation, rpc::Code},
    longrunning::v1::{OperationMetadata, operation_metadata::State},
};
use prost::{Message, Name};
use prost_types::Any;

use super::dice::Dice;

/// The label by which an operation is known before it has a name.
pub(crate) const KEY: &str = "key";

/// The type of metadata whose value is a number of units.
pub(crate) const UNITS: &str = "type.googleapis.com/acme.v1.Units";

/// What a call does if it takes effect.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    Create,
    /// A worker gets the lease.
    Claim,
    /// So many units are done.
    Units(i64),
    Finish(operation::Result),
    /// It goes back to its queue.
    Return,
    Cancel,
    Delete,
}

/// What is known of all operations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    entries: BTreeMap<String, Entry>,
    names: Vec<String>,
    /// The keys of creations that leave the name to the server.
    keys: BTreeSet<String>,
    tickets: u64,
    /// How many operations may have been leased by calls without an answer.
    lost_claims: usize,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    known: Known,
    /// The calls since the last restart that were not refused.
    calls: Vec<(u64, Effect)>,
}

/// What is known of one operation at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// The newest state that anybody saw.
    pub(crate) seen: Option<Arc<Operation>>,
    pub(crate) gone: bool,
    /// What acknowledged calls did, at least.
    units: i64,
    attempt: i32,
    cancelled: bool,
}

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct Ticket {
    name: String,
    number: u64,
}

/// What can be read from an operation.
#[derive(Clone, Debug, PartialEq)]
struct Look {
    /// Grows with each change.
    age: (i128, bool),
    units: i64,
    /// Not known of an operation with metadata of its producer's own.
    ours: Option<(State, i32, bool)>,
}

// === impl Look ===

impl Look {
    fn is_cancelling(&self) -> bool {
        self.ours.is_some_and(|(_, _, cancelled)| cancelled)
    }
}

/// Whether its metadata is the server's.
pub(crate) fn is_ours(operation: &Operation) -> bool {
    look(operation).ours.is_some()
}

/// Metadata of the producer's own type.
pub(crate) fn units(units: i64) -> Any {
    Any {
        type_url: UNITS.into(),
        value: units.to_le_bytes().to_vec(),
    }
}

fn look(operation: &Operation) -> Look {
    let metadata = operation.metadata.as_ref().expect("it is always there");
    if metadata.type_url == UNITS {
        let units = i64::from_le_bytes(metadata.value.as_slice().try_into().unwrap());
        return Look {
            age: (units.into(), operation.done),
            units,
            ours: None,
        };
    }
    assert_eq!(metadata.type_url, OperationMetadata::type_url());
    let ours = OperationMetadata::decode(metadata.value.as_slice()).unwrap();
    let at = ours.update_time.unwrap();
    Look {
        age: (
            i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos),
            operation.done,
        ),
        units: ours.progress.as_ref().map_or(0, |made| made.done_units),
        ours: Some((ours.state(), ours.attempt, ours.cancel_requested)),
    }
}

/// The key of an operation that has one.
fn key(operation: &Operation) -> Option<String> {
    let metadata = operation.metadata.as_ref()?;
    let ours = OperationMetadata::decode(metadata.value.as_slice()).ok()?;
    ours.labels.get(KEY).cloned()
}

fn is_cancelled(operation: &Operation) -> bool {
    matches!(&operation.result, Some(operation::Result::Error(error)) if error.code == Code::Cancelled as i32)
}

// === impl Ledger ===

impl Ledger {
    /// A call begins.
    pub(crate) fn begin(&mut self, name: &str, effect: Effect) -> Ticket {
        self.tickets += 1;
        if !self.entries.contains_key(name) {
            self.names.push(name.to_owned());
        }
        let entry = self.entries.entry(name.to_owned()).or_default();
        entry.calls.push((self.tickets, effect));
        Ticket {
            name: name.to_owned(),
            number: self.tickets,
        }
    }

    /// A call was acknowledged: what it did stays.
    pub(crate) fn acknowledged(&mut self, ticket: &Ticket) {
        let entry = self.entries.get_mut(&ticket.name).unwrap();
        let mut calls = entry.calls.iter();
        let (_, effect) = calls.find(|call| call.0 == ticket.number).unwrap();
        let known = &mut entry.known;
        match effect {
            Effect::Units(units) => known.units = known.units.max(*units),
            Effect::Cancel => known.cancelled = true,
            Effect::Delete => known.gone = true,
            // Their answers have more to say.
            Effect::Create | Effect::Claim | Effect::Finish(_) | Effect::Return => {}
        }
    }

    /// A call was refused: it did nothing.
    pub(crate) fn refused(&mut self, ticket: &Ticket) {
        let entry = self.entries.get_mut(&ticket.name).unwrap();
        entry.calls.retain(|call| call.0 != ticket.number);
    }

    /// An operation with this label is about to be created.
    pub(crate) fn expect_key(&mut self, key: &str) {
        self.keys.insert(key.to_owned());
    }

    /// A lease was got.
    pub(crate) fn claimed(&mut self, name: &str, attempt: i32) {
        self.begin(name, Effect::Claim);
        let known = &mut self.entries.get_mut(name).unwrap().known;
        known.attempt = known.attempt.max(attempt);
    }

    /// Nobody knows who got so many leases at the most.
    pub(crate) fn claims_lost(&mut self, most: usize) {
        self.lost_claims += most;
    }

    /// What is known of an operation now.
    pub(crate) fn known(&self, name: &str) -> Known {
        self.entries
            .get(name)
            .map_or_else(Known::default, |entry| entry.known.clone())
    }

    /// What is known of all of them now.
    pub(crate) fn all(&self) -> BTreeMap<String, Known> {
        let known = |(name, entry): (&String, &Entry)| (name.clone(), entry.known.clone());
        self.entries.iter().map(known).collect()
    }

    /// One that is there, if the dice find it.
    pub(crate) fn any(&self, dice: &mut Dice) -> Option<&str> {
        let some = (0..20).filter_map(|_| dice.one_of(&self.names));
        some.map(String::as_str).find(|name| {
            let known = &self.entries[*name].known;
            known.seen.is_some() && !known.gone
        })
    }

    /// An answer showed an operation, or that there is none. `before` is what
    /// was known when it was asked for.
    pub(crate) fn saw(&mut self, name: &str, before: &Known, operation: Option<&Operation>) {
        let is_expected = operation
            .and_then(key)
            .is_some_and(|key| self.keys.contains(&key));
        if !self.entries.contains_key(name) && is_expected {
            self.begin(name, Effect::Create);
        }
        let Some(entry) = self.entries.get_mut(name) else {
            assert!(operation.is_none(), "nobody created {operation:?}");
            return;
        };
        match operation {
            Some(operation) => {
                before.allows(operation).unwrap_or_else(|wrong| {
                    panic!("{name}: {wrong}\nbefore: {before:#?}\nnow: {operation:#?}")
                });
                entry.known.learn(operation);
            }
            None if before.seen.is_some() => {
                assert!(entry.may_be_gone(), "{name} has vanished: {entry:#?}");
                entry.known.gone = true;
            }
            None => {}
        }
    }

    /// After a restart: nothing is under way, and this is all that there is.
    pub(crate) fn settle(&mut self, all: &BTreeMap<String, Operation>) {
        for (name, operation) in all {
            let before = self.known(name);
            if let Some(entry) = self.entries.get(name) {
                let explained = entry.explains(operation).or_else(|wrong| {
                    let is_claimed = entry.is_claimed_by(operation) && self.lost_claims != 0;
                    self.lost_claims -= usize::from(is_claimed);
                    is_claimed.then_some(()).ok_or(wrong)
                });
                explained.unwrap_or_else(|wrong| {
                    panic!("{name}: {wrong}\nbefore: {entry:#?}\nnow: {operation:#?}")
                });
            }
            self.saw(name, &before, Some(operation));
        }
        for (name, entry) in &mut self.entries {
            if !all.contains_key(name) {
                assert!(
                    entry.known.seen.is_none() || entry.may_be_gone(),
                    "{name} is lost: {entry:#?}"
                );
                // What was not there after a restart does not appear any more.
                entry.known.gone = entry.known.seen.is_some();
            }
            entry.calls.clear();
        }
        self.lost_claims = 0;
    }
}

// === impl Known ===

impl Known {
    /// Whether an operation that was asked for afterwards may look like this.
    pub(crate) fn allows(&self, operation: &Operation) -> Result<(), String> {
        let now = look(operation);
        if self.gone {
            return Err("it was deleted, and is back".to_owned());
        }
        if let Some(seen) = &self.seen {
            let then = look(seen);
            if now.age < then.age {
                return Err("an older state is back".to_owned());
            }
            if now.age == then.age && **seen != *operation {
                return Err("the same state has other bytes".to_owned());
            }
            if seen.done && seen.result != operation.result {
                return Err("the outcome is another one".to_owned());
            }
        }
        if now.units < self.units {
            return Err(format!("{} units were acknowledged", self.units));
        }
        let Some((_, attempt, cancelled)) = now.ours else {
            return Ok(());
        };
        if attempt < self.attempt {
            return Err(format!("attempt {} was given out", self.attempt));
        }
        if self.cancelled && !cancelled && !operation.done {
            return Err("a cancellation was acknowledged".to_owned());
        }
        Ok(())
    }

    fn learn(&mut self, operation: &Operation) {
        let is_newer = |seen: &Arc<Operation>| look(seen).age < look(operation).age;
        if self.seen.as_ref().is_none_or(is_newer) {
            self.seen = Some(Arc::new(operation.clone()));
        }
    }
}

// === impl Entry ===

impl Entry {
    fn called(&self, effect: &Effect) -> bool {
        self.calls.iter().any(|call| call.1 == *effect)
    }

    fn may_be_gone(&self) -> bool {
        self.known.gone || self.called(&Effect::Delete)
    }

    fn is_claimed_by(&self, operation: &Operation) -> bool {
        let running = matches!(look(operation).ours, Some((State::Running, ..)));
        running && !self.called(&Effect::Claim)
    }

    /// Whether the calls since the last look can have led to this.
    fn explains(&self, operation: &Operation) -> Result<(), String> {
        let now = look(operation);
        let before = self.known.seen.as_deref().map(look);
        if before.is_none() && !self.called(&Effect::Create) {
            return Err("nobody created it".to_owned());
        }
        let units = before.as_ref().map_or(0, |before| before.units);
        if units != now.units && !self.called(&Effect::Units(now.units)) {
            return Err("nobody reported so many units".to_owned());
        }
        let was_done = self.known.seen.as_ref().is_some_and(|seen| seen.done);
        let finished =
            || (operation.result.clone()).is_some_and(|end| self.called(&Effect::Finish(end)));
        let was_asked = before.as_ref().is_some_and(Look::is_cancelling) || self.known.cancelled;
        let cancelled = || is_cancelled(operation) && (was_asked || self.called(&Effect::Cancel));
        if operation.done && !was_done && !finished() && !cancelled() {
            return Err("nobody ended it like this".to_owned());
        }
        let Some((state, attempt, flag)) = now.ours else {
            return Ok(());
        };
        let before = before.and_then(|before| before.ours);
        let (was, attempts, flagged) = before.unwrap_or((State::Pending, 0, false));
        let is_new = before.is_none();
        if attempt != attempts && !is_new && !self.called(&Effect::Claim) {
            return Err("nobody leased it".to_owned());
        }
        if state == State::Pending && was == State::Running && !self.called(&Effect::Return) {
            return Err("nobody gave it back".to_owned());
        }
        if flag && !flagged && !self.called(&Effect::Cancel) {
            return Err("nobody cancelled it".to_owned());
        }
        Ok(())
    }
}
