//! The expected state of operations, derived from the responses of the server:
//! acknowledged changes are durable, observed versions never go back, and every
//! change has a cause. A call without a response may or may not have taken
//! effect; the first read after a restart settles that.

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

/// The label that identifies an operation before its name is known.
pub(crate) const KEY_LABEL: &str = "key";

/// The type of custom metadata whose value is a number of units.
pub(crate) const UNITS_TYPE_URL: &str = "type.googleapis.com/acme.v1.Units";

/// The effect of a successful call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    Create,
    /// A worker acquires the lease.
    AcquireLease,
    /// The given number of units is reported as done.
    ReportUnits(i64),
    Finish(operation::Result),
    /// The operation returns to its queue.
    Requeue,
    Cancel,
    Delete,
}

/// What is known about all operations.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExpectedState {
    operations: BTreeMap<String, ExpectedOperation>,
    names: Vec<String>,
    /// The keys of created operations whose names the server chooses.
    expected_keys: BTreeSet<String>,
    last_call_id: u64,
    /// The maximum number of leases granted by calls without a response.
    max_lost_leases: usize,
}

#[derive(Clone, Debug, Default)]
struct ExpectedOperation {
    known: KnownState,
    /// Effects of the calls since the last restart that were not rejected.
    pending_effects: Vec<PendingEffect>,
}

#[derive(Clone, Debug)]
struct PendingEffect {
    call_id: u64,
    effect: Effect,
}

/// What is known about one operation at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownState {
    /// The newest observed version.
    pub(crate) last_seen: Option<Arc<Operation>>,
    pub(crate) is_deleted: bool,
    /// Lower bound set by acknowledged reports of the attempt `units_attempt`: the next one starts without progress.
    min_units: i64,
    units_attempt: i32,
    /// Lower bound set by granted leases.
    min_attempt: i32,
    is_cancel_acknowledged: bool,
}

/// A call in progress.
#[derive(Debug)]
pub(crate) struct TrackedCall {
    name: String,
    id: u64,
}

/// What an operation as returned to a client says about its progress.
#[derive(Clone, Debug, PartialEq)]
struct Observation {
    version: ObservedVersion,
    units: i64,
    /// `None` if the operation has custom metadata.
    standard_fields: Option<StandardFields>,
}

/// Increases with each change.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
struct ObservedVersion {
    /// Update time in nanoseconds, or units for custom metadata.
    updated: i128,
    is_done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct StandardFields {
    state: State,
    attempt: i32,
    cancel_requested: bool,
}

// === impl Observation ===

impl Observation {
    fn is_cancelling(&self) -> bool {
        self.standard_fields
            .is_some_and(|fields| fields.cancel_requested)
    }
}

/// Returns `true` if the metadata is an `OperationMetadata` written by the server.
pub(crate) fn has_standard_metadata(operation: &Operation) -> bool {
    observation(operation).standard_fields.is_some()
}

/// Builds custom metadata with a number of units.
pub(crate) fn units_metadata(units: i64) -> Any {
    Any {
        type_url: UNITS_TYPE_URL.into(),
        value: units.to_le_bytes().to_vec(),
    }
}

fn observation(operation: &Operation) -> Observation {
    let metadata = operation.metadata.as_ref().expect("expected metadata");
    if metadata.type_url == UNITS_TYPE_URL {
        let units = i64::from_le_bytes(metadata.value.as_slice().try_into().unwrap());
        return Observation {
            version: ObservedVersion {
                updated: units.into(),
                is_done: operation.done,
            },
            units,
            standard_fields: None,
        };
    }
    assert_eq!(metadata.type_url, OperationMetadata::type_url());
    let metadata_fields = OperationMetadata::decode(metadata.value.as_slice()).unwrap();
    let update_time = metadata_fields.update_time.unwrap();
    Observation {
        version: ObservedVersion {
            updated: i128::from(update_time.seconds) * 1_000_000_000
                + i128::from(update_time.nanos),
            is_done: operation.done,
        },
        units: metadata_fields
            .progress
            .as_ref()
            .map_or(0, |progress| progress.done_units),
        standard_fields: Some(StandardFields {
            state: metadata_fields.state(),
            attempt: metadata_fields.attempt,
            cancel_requested: metadata_fields.cancel_requested,
        }),
    }
}

/// Returns the key label, or `None` if the operation has none or has custom metadata.
fn key_label(operation: &Operation) -> Option<String> {
    let metadata = operation.metadata.as_ref()?;
    let metadata_fields = OperationMetadata::decode(metadata.value.as_slice()).ok()?;
    metadata_fields.labels.get(KEY_LABEL).cloned()
}

fn is_cancelled(operation: &Operation) -> bool {
    matches!(&operation.result, Some(operation::Result::Error(error)) if error.code == Code::Cancelled as i32)
}

// === impl ExpectedState ===

impl ExpectedState {
    /// Registers a call that is about to be made.
    pub(crate) fn begin_call(&mut self, name: &str, effect: Effect) -> TrackedCall {
        self.last_call_id += 1;
        if !self.operations.contains_key(name) {
            self.names.push(name.to_owned());
        }
        let expected = self.operations.entry(name.to_owned()).or_default();
        expected.pending_effects.push(PendingEffect {
            call_id: self.last_call_id,
            effect,
        });
        TrackedCall {
            name: name.to_owned(),
            id: self.last_call_id,
        }
    }

    /// Records that a call was acknowledged, so its effect is durable.
    pub(crate) fn acknowledge(&mut self, call: &TrackedCall) {
        let expected = self.operations.get_mut(&call.name).unwrap();
        let mut effects = expected.pending_effects.iter();
        let pending = effects.find(|pending| pending.call_id == call.id).unwrap();
        let known = &mut expected.known;
        match &pending.effect {
            Effect::ReportUnits(units) => {
                known.min_units = known.min_units.max(*units);
                known.units_attempt = known.min_attempt.max(1);
            }
            Effect::Cancel => known.is_cancel_acknowledged = true,
            Effect::Delete => known.is_deleted = true,
            // Their responses are recorded by `observe` and `record_lease`.
            Effect::Create | Effect::AcquireLease | Effect::Finish(_) | Effect::Requeue => {}
        }
    }

    /// Records that a call was rejected, so it had no effect.
    pub(crate) fn reject(&mut self, call: &TrackedCall) {
        let expected = self.operations.get_mut(&call.name).unwrap();
        expected
            .pending_effects
            .retain(|pending| pending.call_id != call.id);
    }

    /// Registers the key of an operation about to be created under a name chosen by the server.
    pub(crate) fn expect_key(&mut self, key: &str) {
        self.expected_keys.insert(key.to_owned());
    }

    /// Records that a worker received a lease. `key` is that of the operation, whose creation may have had no response yet.
    pub(crate) fn record_lease(&mut self, name: &str, attempt: i32, key: Option<&str>) {
        let is_expected = key.is_some_and(|key| self.expected_keys.contains(key));
        if !self.operations.contains_key(name) && is_expected {
            self.begin_call(name, Effect::Create);
        }
        self.begin_call(name, Effect::AcquireLease);
        let known = &mut self.operations.get_mut(name).unwrap().known;
        known.min_attempt = known.min_attempt.max(attempt);
    }

    /// Allows up to `max` more leases to have been granted by a call without a response.
    pub(crate) fn allow_lost_leases(&mut self, max: usize) {
        self.max_lost_leases += max;
    }

    /// Returns what is known about an operation.
    pub(crate) fn known(&self, name: &str) -> KnownState {
        self.operations
            .get(name)
            .map_or_else(KnownState::default, |expected| expected.known.clone())
    }

    /// Returns what is known about all operations, by name.
    pub(crate) fn known_operations(&self) -> BTreeMap<String, KnownState> {
        let with_known_state = |(name, expected): (&String, &ExpectedOperation)| {
            (name.clone(), expected.known.clone())
        };
        self.operations.iter().map(with_known_state).collect()
    }

    /// Returns a random existing operation, or `None` if a few random choices find none.
    pub(crate) fn choose_existing(&self, rng: &mut TestRng) -> Option<&str> {
        let candidates = (0..20).filter_map(|_| rng.choose(&self.names));
        candidates.map(String::as_str).find(|name| {
            let known = &self.operations[*name].known;
            known.last_seen.is_some() && !known.is_deleted
        })
    }

    /// Checks and records a read: `operation` is its result, `before` what was
    /// known when the read began.
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
            assert!(
                operation.is_none(),
                "expected no operation that was not created: {operation:?}"
            );
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
                    "expected {name} to exist: {expected:#?}"
                );
                expected.known.is_deleted = true;
            }
            None => {}
        }
    }

    /// Checks and records all operations that exist after a restart, when no call is in progress.
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
                    "expected {name} to survive the restart: {expected:#?}"
                );
                // A pending effect that is absent after a restart never appears later.
                expected.known.is_deleted = expected.known.last_seen.is_some();
            }
            expected.pending_effects.clear();
        }
        self.max_lost_leases = 0;
    }
}

// === impl KnownState ===

impl KnownState {
    /// Checks an operation that was read after this state was known.
    pub(crate) fn check_observation(&self, operation: &Operation) -> Result<(), String> {
        let current = observation(operation);
        if self.is_deleted {
            return Err("a deleted operation reappeared".to_owned());
        }
        if let Some(seen) = &self.last_seen {
            let previous = observation(seen);
            if current.version < previous.version {
                return Err("an older version reappeared".to_owned());
            }
            if current.version == previous.version && **seen != *operation {
                return Err("the same version has different bytes".to_owned());
            }
            if seen.done && seen.result != operation.result {
                return Err("the outcome changed".to_owned());
            }
        }
        // Custom metadata lasts longer than an attempt.
        let is_same_attempt = current.standard_fields.is_none_or(|fields| {
            let may_be_requeued = [State::Pending, State::Cancelled].contains(&fields.state);
            !may_be_requeued && fields.attempt == self.units_attempt
        });
        if is_same_attempt && current.units < self.min_units {
            return Err(format!(
                "expected at least {} acknowledged units",
                self.min_units
            ));
        }
        let Some(fields) = current.standard_fields else {
            return Ok(());
        };
        if fields.attempt < self.min_attempt {
            return Err(format!("expected at least attempt {}", self.min_attempt));
        }
        if self.is_cancel_acknowledged && !fields.cancel_requested && !operation.done {
            return Err("an acknowledged cancellation is missing".to_owned());
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

// === impl ExpectedOperation ===

impl ExpectedOperation {
    fn has_effect(&self, effect: &Effect) -> bool {
        self.pending_effects
            .iter()
            .any(|pending| pending.effect == *effect)
    }

    fn may_be_deleted(&self) -> bool {
        self.known.is_deleted || self.has_effect(&Effect::Delete)
    }

    fn has_unrecorded_lease(&self, operation: &Operation) -> bool {
        let fields = observation(operation).standard_fields;
        fields.is_some_and(|fields| fields.state == State::Running)
            && !self.has_effect(&Effect::AcquireLease)
    }

    /// Checks that the calls since the last reconciliation explain each change.
    fn check_explained(&self, operation: &Operation) -> Result<(), String> {
        let current = observation(operation);
        let before = self.known.last_seen.as_deref().map(observation);
        if before.is_none() && !self.has_effect(&Effect::Create) {
            return Err("no call created it".to_owned());
        }
        let units = before.as_ref().map_or(0, |before| before.units);
        let is_cleared = current.units == 0 && self.has_effect(&Effect::Requeue);
        if units != current.units
            && !is_cleared
            && !self.has_effect(&Effect::ReportUnits(current.units))
        {
            return Err("no call reported this many units".to_owned());
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
            return Err("no call caused this outcome".to_owned());
        }
        let Some(fields) = current.standard_fields else {
            return Ok(());
        };
        let before = before.and_then(|before| before.standard_fields);
        let is_new_attempt = before.is_some_and(|before| before.attempt != fields.attempt);
        if is_new_attempt && !self.has_effect(&Effect::AcquireLease) {
            return Err("no call leased it".to_owned());
        }
        let was_running = before.is_some_and(|before| before.state == State::Running);
        if was_running && fields.state == State::Pending && !self.has_effect(&Effect::Requeue) {
            return Err("no call returned it to its queue".to_owned());
        }
        let was_cancel_flagged = before.is_some_and(|before| before.cancel_requested);
        if fields.cancel_requested && !was_cancel_flagged && !self.has_effect(&Effect::Cancel) {
            return Err("no call cancelled it".to_owned());
        }
        Ok(())
    }
}
