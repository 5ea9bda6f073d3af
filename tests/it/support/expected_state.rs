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

use super::rng::TestRng;

/// The label by which an operation is known before it has a name.
pub(crate) const KEY_LABEL: &str = "key";

/// The type of metadata whose value is a number of units.
pub(crate) const UNITS_TYPE_URL: &str = "type.googleapis.com/acme.v1.Units";

/// What a call does if it takes effect.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    Create,
    /// A worker gets the lease.
    AcquireLease,
    /// So many units are done.
    ReportUnits(i64),
    Finish(operation::Result),
    /// It goes back to its queue.
    Requeue,
    Cancel,
    Delete,
}

/// What is known of all operations.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExpectedState {
    operations: BTreeMap<String, ExpectedOperation>,
    names: Vec<String>,
    /// The keys of creations that leave the name to the server.
    expected_keys: BTreeSet<String>,
    last_call_id: u64,
    /// How many operations may have been leased by calls without an answer.
    max_lost_leases: usize,
}

#[derive(Clone, Debug, Default)]
struct ExpectedOperation {
    known: KnownState,
    /// The calls since the last restart that were not refused.
    pending_effects: Vec<(u64, Effect)>,
}

/// What is known of one operation at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownState {
    /// The newest state that anybody saw.
    pub(crate) last_seen: Option<Arc<Operation>>,
    pub(crate) is_deleted: bool,
    /// What acknowledged calls did, at least.
    min_units: i64,
    min_attempt: i32,
    is_cancel_acknowledged: bool,
}

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct TrackedCall {
    name: String,
    id: u64,
}

/// What can be read from an operation.
#[derive(Clone, Debug, PartialEq)]
struct Observation {
    /// Grows with each change.
    version: (i128, bool),
    units: i64,
    /// Not known of an operation with metadata of its producer's own.
    standard_fields: Option<(State, i32, bool)>,
}

// === impl Look ===

impl Observation {
    fn is_cancelling(&self) -> bool {
        self.standard_fields
            .is_some_and(|(_, _, cancelled)| cancelled)
    }
}

/// Whether its metadata is the server's.
pub(crate) fn has_standard_metadata(operation: &Operation) -> bool {
    observation(operation).standard_fields.is_some()
}

/// Metadata of the producer's own type.
pub(crate) fn units_metadata(units: i64) -> Any {
    Any {
        type_url: UNITS_TYPE_URL.into(),
        value: units.to_le_bytes().to_vec(),
    }
}

fn observation(operation: &Operation) -> Observation {
    let metadata = operation.metadata.as_ref().expect("it is always there");
    if metadata.type_url == UNITS_TYPE_URL {
        let units = i64::from_le_bytes(metadata.value.as_slice().try_into().unwrap());
        return Observation {
            version: (units.into(), operation.done),
            units,
            standard_fields: None,
        };
    }
    assert_eq!(metadata.type_url, OperationMetadata::type_url());
    let metadata_fields = OperationMetadata::decode(metadata.value.as_slice()).unwrap();
    let update_time = metadata_fields.update_time.unwrap();
    Observation {
        version: (
            i128::from(update_time.seconds) * 1_000_000_000 + i128::from(update_time.nanos),
            operation.done,
        ),
        units: metadata_fields
            .progress
            .as_ref()
            .map_or(0, |progress| progress.done_units),
        standard_fields: Some((
            metadata_fields.state(),
            metadata_fields.attempt,
            metadata_fields.cancel_requested,
        )),
    }
}

/// The key of an operation that has one.
fn key_label(operation: &Operation) -> Option<String> {
    let metadata = operation.metadata.as_ref()?;
    let metadata_fields = OperationMetadata::decode(metadata.value.as_slice()).ok()?;
    metadata_fields.labels.get(KEY_LABEL).cloned()
}

fn is_cancelled(operation: &Operation) -> bool {
    matches!(&operation.result, Some(operation::Result::Error(error)) if error.code == Code::Cancelled as i32)
}

// === impl Ledger ===

impl ExpectedState {
    /// A call begins.
    pub(crate) fn begin_call(&mut self, name: &str, effect: Effect) -> TrackedCall {
        self.last_call_id += 1;
        if !self.operations.contains_key(name) {
            self.names.push(name.to_owned());
        }
        let expected = self.operations.entry(name.to_owned()).or_default();
        expected.pending_effects.push((self.last_call_id, effect));
        TrackedCall {
            name: name.to_owned(),
            id: self.last_call_id,
        }
    }

    /// A call was acknowledged: what it did stays.
    pub(crate) fn acknowledge(&mut self, call: &TrackedCall) {
        let expected = self.operations.get_mut(&call.name).unwrap();
        let mut effects = expected.pending_effects.iter();
        let (_, effect) = effects.find(|pending| pending.0 == call.id).unwrap();
        let known = &mut expected.known;
        match effect {
            Effect::ReportUnits(units) => known.min_units = known.min_units.max(*units),
            Effect::Cancel => known.is_cancel_acknowledged = true,
            Effect::Delete => known.is_deleted = true,
            // Their answers have more to say.
            Effect::Create | Effect::AcquireLease | Effect::Finish(_) | Effect::Requeue => {}
        }
    }

    /// A call was refused: it did nothing.
    pub(crate) fn reject(&mut self, call: &TrackedCall) {
        let expected = self.operations.get_mut(&call.name).unwrap();
        expected
            .pending_effects
            .retain(|pending| pending.0 != call.id);
    }

    /// An operation with this label is about to be created.
    pub(crate) fn expect_key(&mut self, key: &str) {
        self.expected_keys.insert(key.to_owned());
    }

    /// A lease was got.
    pub(crate) fn record_lease(&mut self, name: &str, attempt: i32) {
        self.begin_call(name, Effect::AcquireLease);
        let known = &mut self.operations.get_mut(name).unwrap().known;
        known.min_attempt = known.min_attempt.max(attempt);
    }

    /// Nobody knows who got so many leases at the most.
    pub(crate) fn allow_lost_leases(&mut self, max: usize) {
        self.max_lost_leases += max;
    }

    /// What is known of an operation now.
    pub(crate) fn known(&self, name: &str) -> KnownState {
        self.operations
            .get(name)
            .map_or_else(KnownState::default, |expected| expected.known.clone())
    }

    /// What is known of all of them now.
    pub(crate) fn known_operations(&self) -> BTreeMap<String, KnownState> {
        let with_known_state = |(name, expected): (&String, &ExpectedOperation)| {
            (name.clone(), expected.known.clone())
        };
        self.operations.iter().map(with_known_state).collect()
    }

    /// One that is there, if the dice find it.
    pub(crate) fn choose_existing(&self, rng: &mut TestRng) -> Option<&str> {
        let candidates = (0..20).filter_map(|_| rng.choose(&self.names));
        candidates.map(String::as_str).find(|name| {
            let known = &self.operations[*name].known;
            known.last_seen.is_some() && !known.is_deleted
        })
    }

    /// An answer showed an operation, or that there is none. `before` is what
    /// was known when it was asked for.
    pub(crate) fn observe(
        &mut self,
        name: &str,
        before: &KnownState,
        operation: Option<&Operation>,
    ) {
        let is_expected = operation
            .and_then(key_label)
            .is_some_and(|key| self.expected_keys.contains(&key));
        if !self.operations.contains_key(name) && is_expected {
            self.begin_call(name, Effect::Create);
        }
        let Some(expected) = self.operations.get_mut(name) else {
            assert!(operation.is_none(), "nobody created {operation:?}");
            return;
        };
        match operation {
            Some(operation) => {
                before
                    .check_observation(operation)
                    .unwrap_or_else(|violation| {
                        panic!("{name}: {violation}\nbefore: {before:#?}\nnow: {operation:#?}")
                    });
                expected.known.record(operation);
            }
            None if before.last_seen.is_some() => {
                assert!(
                    expected.may_be_deleted(),
                    "{name} has vanished: {expected:#?}"
                );
                expected.known.is_deleted = true;
            }
            None => {}
        }
    }

    /// After a restart: nothing is under way, and this is all that there is.
    pub(crate) fn reconcile(&mut self, operations: &BTreeMap<String, Operation>) {
        for (name, operation) in operations {
            let before = self.known(name);
            if let Some(expected) = self.operations.get(name) {
                let result = expected.check_explained(operation).or_else(|violation| {
                    let is_lost_lease =
                        expected.has_unrecorded_lease(operation) && self.max_lost_leases != 0;
                    self.max_lost_leases -= usize::from(is_lost_lease);
                    is_lost_lease.then_some(()).ok_or(violation)
                });
                result.unwrap_or_else(|violation| {
                    panic!("{name}: {violation}\nbefore: {expected:#?}\nnow: {operation:#?}")
                });
            }
            self.observe(name, &before, Some(operation));
        }
        for (name, expected) in &mut self.operations {
            if !operations.contains_key(name) {
                assert!(
                    expected.known.last_seen.is_none() || expected.may_be_deleted(),
                    "{name} is lost: {expected:#?}"
                );
                // What was not there after a restart does not appear any more.
                expected.known.is_deleted = expected.known.last_seen.is_some();
            }
            expected.pending_effects.clear();
        }
        self.max_lost_leases = 0;
    }
}

// === impl Known ===

impl KnownState {
    /// Whether an operation that was asked for afterwards may look like this.
    pub(crate) fn check_observation(&self, operation: &Operation) -> Result<(), String> {
        let current = observation(operation);
        if self.is_deleted {
            return Err("it was deleted, and is back".to_owned());
        }
        if let Some(seen) = &self.last_seen {
            let previous = observation(seen);
            if current.version < previous.version {
                return Err("an older state is back".to_owned());
            }
            if current.version == previous.version && **seen != *operation {
                return Err("the same state has other bytes".to_owned());
            }
            if seen.done && seen.result != operation.result {
                return Err("the outcome is another one".to_owned());
            }
        }
        if current.units < self.min_units {
            return Err(format!("{} units were acknowledged", self.min_units));
        }
        let Some((_, attempt, cancel_requested)) = current.standard_fields else {
            return Ok(());
        };
        if attempt < self.min_attempt {
            return Err(format!("attempt {} was given out", self.min_attempt));
        }
        if self.is_cancel_acknowledged && !cancel_requested && !operation.done {
            return Err("a cancellation was acknowledged".to_owned());
        }
        Ok(())
    }

    fn record(&mut self, operation: &Operation) {
        let is_newer =
            |seen: &Arc<Operation>| observation(seen).version < observation(operation).version;
        if self.last_seen.as_ref().is_none_or(is_newer) {
            self.last_seen = Some(Arc::new(operation.clone()));
        }
    }
}

// === impl Entry ===

impl ExpectedOperation {
    fn has_effect(&self, effect: &Effect) -> bool {
        self.pending_effects
            .iter()
            .any(|pending| pending.1 == *effect)
    }

    fn may_be_deleted(&self) -> bool {
        self.known.is_deleted || self.has_effect(&Effect::Delete)
    }

    fn has_unrecorded_lease(&self, operation: &Operation) -> bool {
        let is_running = matches!(
            observation(operation).standard_fields,
            Some((State::Running, ..))
        );
        is_running && !self.has_effect(&Effect::AcquireLease)
    }

    /// Whether the calls since the last look can have led to this.
    fn check_explained(&self, operation: &Operation) -> Result<(), String> {
        let current = observation(operation);
        let before = self.known.last_seen.as_deref().map(observation);
        if before.is_none() && !self.has_effect(&Effect::Create) {
            return Err("nobody created it".to_owned());
        }
        let units = before.as_ref().map_or(0, |before| before.units);
        if units != current.units && !self.has_effect(&Effect::ReportUnits(current.units)) {
            return Err("nobody reported so many units".to_owned());
        }
        let was_done = self.known.last_seen.as_ref().is_some_and(|seen| seen.done);
        let is_finished = || {
            (operation.result.clone())
                .is_some_and(|result| self.has_effect(&Effect::Finish(result)))
        };
        let was_cancel_requested = before.as_ref().is_some_and(Observation::is_cancelling)
            || self.known.is_cancel_acknowledged;
        let is_cancel_explained = || {
            is_cancelled(operation) && (was_cancel_requested || self.has_effect(&Effect::Cancel))
        };
        if operation.done && !was_done && !is_finished() && !is_cancel_explained() {
            return Err("nobody ended it like this".to_owned());
        }
        let Some((state, attempt, cancel_requested)) = current.standard_fields else {
            return Ok(());
        };
        let before = before.and_then(|before| before.standard_fields);
        let (previous_state, previous_attempt, was_cancel_flagged) =
            before.unwrap_or((State::Pending, 0, false));
        let is_new = before.is_none();
        if attempt != previous_attempt && !is_new && !self.has_effect(&Effect::AcquireLease) {
            return Err("nobody leased it".to_owned());
        }
        if state == State::Pending
            && previous_state == State::Running
            && !self.has_effect(&Effect::Requeue)
        {
            return Err("nobody gave it back".to_owned());
        }
        if cancel_requested && !was_cancel_flagged && !self.has_effect(&Effect::Cancel) {
            return Err("nobody cancelled it".to_owned());
        }
        Ok(())
    }
}
