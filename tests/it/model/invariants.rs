//! Invariants checked on the responses of the service alone: an outcome never changes,
//! attempts increase, and there is one lease at a time.

use std::collections::{BTreeMap, BTreeSet};

use longrunning::proto::longrunning::v1::operation_metadata::State;

use super::{
    responses::{ModelLease, ModelMetadata, ModelResponse, ModelSnapshot},
    steps::ModelStep,
};

/// What the responses so far contained.
#[derive(Debug, Default)]
pub(super) struct Invariants {
    /// Done operations by name.
    done: BTreeMap<String, ModelSnapshot>,
    lease_ids: BTreeSet<usize>,
    /// The latest lease of each operation, by name.
    live: BTreeMap<String, LiveLease>,
}

#[derive(Debug)]
struct LiveLease {
    attempt: i32,
    /// The earliest end, in milliseconds since the start.
    ends_at: i64,
}

// === impl Invariants ===

impl Invariants {
    /// Checks that no outcome has changed.
    pub(super) fn check_list(&mut self, list: &[ModelSnapshot]) -> Result<(), String> {
        for listed in list {
            match self.done.get(&listed.name) {
                Some(done) if done != listed => {
                    return Err(format!("{done:?} changed to {listed:?}"));
                }
                Some(_) => {}
                None if listed.outcome.is_some() => {
                    self.live.remove(&listed.name);
                    self.done.insert(listed.name.clone(), listed.clone());
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Checks the leases in the response to a step.
    pub(super) fn check_response(
        &mut self,
        step: &ModelStep,
        response: &ModelResponse,
        now: i64,
    ) -> Result<(), String> {
        let confirm_within = match step {
            ModelStep::Lease { confirm_within, .. } => confirm_within.unwrap_or(i64::MAX),
            _ => i64::MAX,
        };
        match response {
            ModelResponse::Leases(leases) => leases
                .iter()
                .try_for_each(|lease| self.check_lease(lease, confirm_within, now)),
            ModelResponse::Created {
                operation,
                lease,
                already_existed: false,
            } => {
                // The name may have belonged to a removed operation.
                self.live.remove(&operation.name);
                self.done.remove(&operation.name);
                let mut leases = lease.iter();
                leases.try_for_each(|lease| self.check_lease(lease, i64::MAX, now))
            }
            // A finish or a release ends the lease.
            ModelResponse::Operation(ModelSnapshot {
                name,
                metadata:
                    ModelMetadata::Standard {
                        state: State::Pending,
                        ..
                    }
                    | ModelMetadata::Custom(_),
                ..
            }) => {
                self.live.remove(name);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_lease(
        &mut self,
        lease: &ModelLease,
        confirm_within: i64,
        now: i64,
    ) -> Result<(), String> {
        if !self.lease_ids.insert(lease.lease_id) {
            return Err(format!("a token was granted twice: {lease:?}"));
        }
        let remaining_ms = lease.attempt_remaining_ms.unwrap_or(i64::MAX);
        let live = LiveLease {
            attempt: lease.attempt,
            ends_at: now + remaining_ms.min(lease.remaining_ms).min(confirm_within),
        };
        match self.live.insert(lease.name.clone(), live) {
            Some(previous) if lease.attempt <= previous.attempt => {
                Err(format!("the attempt did not increase: {lease:?}"))
            }
            Some(previous) if now < previous.ends_at => {
                Err(format!("two leases at the same time: {lease:?}"))
            }
            _ => Ok(()),
        }
    }
}
