//! The operation as an immutable value: every change makes a new one, with its
//! bytes already encoded. Reads no clock, does no I/O and writes no log.

mod accessors;
pub(crate) mod attempt_result;
mod attempts;
pub(crate) mod encoded;
pub(crate) mod labels;
pub(crate) mod lease;
mod metadata;
pub(crate) mod name;
pub(crate) mod options;
pub(crate) mod outcome;
pub(crate) mod payload;
pub(crate) mod progress;
#[cfg(feature = "record")]
pub(crate) mod record;
mod report;
pub(crate) mod retry;
pub(crate) mod spec;
pub(crate) mod trace;
pub(crate) mod transition;
mod transition_error;
mod version;

pub use self::version::OperationVersion;

use std::sync::Arc;

use prost_types::Any;

use self::{
    encoded::{AnyRef, EncodedOperation},
    options::ExecutionOptions,
    outcome::Outcome,
    payload::Payload,
    report::Report,
    spec::{Attributes, InitialLease, OperationSpec},
    transition::{Event, Phase, TerminalState, Transition, TransitionContext},
    transition_error::TransitionError,
};
use crate::{clock::Timestamp, proto::longrunning::v1::operation_metadata::Attempt};

/// An immutable snapshot of one operation.
#[derive(Clone, Debug)]
pub struct Operation {
    pub(super) number: u64,
    pub(super) revision: u32,
    pub(super) attempt: u32,
    /// Attempts that failed or exceeded their timeout, without the one that ended the operation.
    pub(super) failed_attempts: u32,
    /// Attempts whose worker was lost, without the one that ended the operation.
    pub(super) worker_losses: u32,
    /// Leases in a row that their workers did not confirm.
    pub(super) unconfirmed_leases: u32,
    pub(super) cancel_requested: bool,
    pub(super) deleted: bool,
    pub(super) create_time: Timestamp,
    pub(super) start_time: Option<Timestamp>,
    pub(super) update_time: Timestamp,
    pub(super) phase: Phase,
    pub(super) options: Arc<ExecutionOptions>,
    pub(super) attributes: Option<Arc<Attributes>>,
    pub(super) work_state: Option<Arc<WorkState>>,
    pub(super) encoded: EncodedOperation,
}

/// The data that an operation needs only until it is done.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct WorkState {
    pub(super) input: Option<Payload>,
    pub(super) latest_report: Option<Box<Report>>,
    /// The last attempts that ended, at most [`attempts::MAX_ATTEMPTS`].
    pub(super) ended_attempts: Vec<Attempt>,
}

/// The effect of an event on an operation.
#[derive(Debug)]
pub(crate) enum OperationUpdate {
    /// The operation stays as it is.
    Unchanged,
    /// The next revision.
    Put(Operation),
    /// The next revision, which differs only in the expiry of its lease.
    RenewLease(Operation),
    /// The operation is removed, with its last revision if this event finished it.
    Remove(Option<Operation>),
}

// === impl WorkState ===

impl WorkState {
    /// Returns `None` if there is nothing to store.
    pub(super) fn into_shared(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}

// === impl Operation ===

impl Operation {
    /// Creates revision 0, with the first attempt started if `spec` has an initial lease.
    pub(crate) fn new(spec: OperationSpec, now: Timestamp) -> Self {
        let pending = Phase::Pending {
            ready_at: spec.not_before.unwrap_or(now).max(now),
        };
        let report = Report {
            metadata: spec.metadata,
            ..Report::default()
        };
        let mut operation = Self {
            number: spec.number,
            revision: 0,
            attempt: 0,
            failed_attempts: 0,
            worker_losses: 0,
            unconfirmed_leases: 0,
            cancel_requested: false,
            deleted: false,
            create_time: now,
            start_time: None,
            update_time: now,
            phase: pending,
            options: spec.options,
            attributes: spec.attributes,
            work_state: WorkState {
                input: spec.input,
                latest_report: (report != Report::default()).then(|| Box::new(report)),
                ended_attempts: Vec::new(),
            }
            .into_shared(),
            encoded: EncodedOperation::default(),
        };
        if let Some(InitialLease { token, worker }) = spec.initial_lease {
            let context = operation.transition_context(now, false);
            let phase = context.acquire_lease(token, &worker, None);
            operation.enter_phase(phase);
        }
        operation.encode(spec.name.as_str(), None, None);
        operation
    }

    /// Applies `event` at `now`. Time never runs backwards: `now` counts as at
    /// least the last update.
    ///
    /// # Errors
    /// [`TransitionError`] if the event is not allowed; the operation stays as it is.
    pub(crate) fn apply(
        &self,
        event: &Event,
        now: Timestamp,
    ) -> Result<OperationUpdate, TransitionError> {
        let now = now.max(self.update_time);
        let expires_at = self.deleted_pending_expires_at();
        if *event == Event::TimerFired && expires_at.is_some_and(|at| at <= now) {
            return Ok(OperationUpdate::Remove(None));
        }
        let transition = transition::transition(
            &self.phase,
            event,
            self.transition_context(now, self.has_same_outcome(event)),
        )?;
        let mut changed = match transition {
            Transition::Unchanged => return Ok(OperationUpdate::Unchanged),
            Transition::Remove => return Ok(OperationUpdate::Remove(None)),
            Transition::To(_)
            | Transition::RenewLease { .. }
            | Transition::Requeue { .. }
            | Transition::MergeReport
            | Transition::Finish(_) => self.next_revision(now),
        };
        let is_confirmation = event.report().is_some() && changed.confirm_lease(event, now);
        if let Event::RequestCancel = event {
            changed.cancel_requested = true;
        }
        // A report that repeats known values changes nothing.
        let has_new_data = |report: &&Report| {
            let latest = self.latest_report();
            !latest.map_or_else(|| report.is_empty(), |latest| latest.contains(report))
        };
        let report = event.report().filter(has_new_data);
        if let Some(report) = report {
            changed.merge_report(report);
        }
        match transition {
            Transition::To(phase) => changed.enter_phase(phase),
            Transition::RenewLease { expires_at } => {
                if let Some(lease) = changed.phase.lease_mut() {
                    lease.expires_at = expires_at;
                }
            }
            Transition::Requeue { ready_at, reason } => changed.requeue(ready_at, &reason, now),
            Transition::Finish(outcome) => {
                let status = match (event, &outcome) {
                    (Event::Fail { error, .. }, _) | (_, Outcome::Error(error)) => Some(&**error),
                    (_, Outcome::Response(_)) => None,
                };
                let last_attempt = changed.ended_attempt(status, now);
                return Ok(changed.finish(self.name(), &outcome, last_attempt.as_ref()));
            }
            Transition::Unchanged | Transition::MergeReport | Transition::Remove => {}
        }
        if matches!(event, Event::Heartbeat(..)) && report.is_none() && !is_confirmation {
            // A heartbeat without a report changes nothing visible to clients.
            changed.update_time = self.update_time;
            changed.encoded = self.encoded.clone();
            return Ok(OperationUpdate::RenewLease(changed));
        }
        changed.encode(self.name(), None, None);
        Ok(OperationUpdate::Put(changed))
    }

    /// Deletes the operation: removes it if it is done, else hides it from clients
    /// until it is done and then removes it.
    pub(crate) fn delete(&self, now: Timestamp) -> OperationUpdate {
        if self.is_done() {
            return OperationUpdate::Remove(None);
        }
        OperationUpdate::Put(Self {
            deleted: true,
            encoded: self.encoded.clone(),
            ..self.next_revision(now.max(self.update_time))
        })
    }

    /// Applies a revision of another server that only renewed the lease.
    pub(crate) fn apply_lease_renewal(&mut self, revision: u32, expires_at: Timestamp) {
        self.revision = revision;
        if let Some(lease) = self.phase.lease_mut() {
            lease.expires_at = expires_at;
        }
    }

    /// Extends the lease to its full duration, because its holder could not renew
    /// it while the server was unavailable.
    pub(crate) fn restart_lease(&mut self, now: Timestamp) {
        if let Some(lease) = self.phase.lease_mut() {
            lease.restart(now, self.options.lease_duration);
        }
    }

    /// Returns the next time after which a timer may change the operation or make
    /// it ready.
    pub(crate) fn next_deadline(&self, now: Timestamp) -> Timestamp {
        let total_timeout = self.options.total_timeout;
        let total_deadline = total_timeout.map(|timeout| self.create_time + timeout);
        let phase_deadline = match &self.phase {
            Phase::Pending { ready_at } if *ready_at > now => Some(*ready_at),
            Phase::Pending { .. } => None,
            Phase::Running(lease) | Phase::Cancelling(lease) => Some(lease.next_deadline()),
            Phase::Done(_) => return self.update_time + self.options.retention,
        };
        let expires_at = self.deleted_pending_expires_at();
        let deadlines = [phase_deadline, total_deadline, expires_at];
        let deadlines = deadlines.into_iter().flatten();
        deadlines.min().unwrap_or(Timestamp::from_nanos(i64::MAX))
    }

    /// Returns when an operation is removed that was deleted while pending, unless a worker acquires it.
    fn deleted_pending_expires_at(&self) -> Option<Timestamp> {
        let is_pending = matches!(self.phase, Phase::Pending { .. });
        (self.deleted && is_pending).then(|| self.update_time + self.options.retention)
    }

    /// Returns `true` if a worker may acquire the lease at `now`.
    pub(crate) fn is_ready(&self, now: Timestamp) -> bool {
        matches!(self.phase, Phase::Pending { ready_at } if ready_at <= now)
    }

    fn transition_context(&self, now: Timestamp, same_outcome: bool) -> TransitionContext<'_> {
        TransitionContext {
            now,
            options: &self.options,
            create_time: self.create_time,
            update_time: self.update_time,
            failed_attempts: self.failed_attempts,
            worker_losses: self.worker_losses,
            unconfirmed_leases: self.unconfirmed_leases,
            same_outcome,
        }
    }

    fn has_same_outcome(&self, event: &Event) -> bool {
        match event {
            Event::Finish(_, outcome, _) => self.has_outcome(outcome),
            Event::Fail { error, .. } if self.is_done() => {
                self.has_outcome(&Outcome::Error(error.clone()))
                    || self.has_outcome(&Outcome::cancelled_after(error))
            }
            _ => false,
        }
    }

    fn next_revision(&self, now: Timestamp) -> Self {
        Self {
            number: self.number,
            revision: self.revision + 1,
            attempt: self.attempt,
            failed_attempts: self.failed_attempts,
            worker_losses: self.worker_losses,
            unconfirmed_leases: self.unconfirmed_leases,
            cancel_requested: self.cancel_requested,
            deleted: self.deleted,
            create_time: self.create_time,
            start_time: self.start_time,
            update_time: now,
            phase: self.phase.clone(),
            options: self.options.clone(),
            attributes: self.attributes.clone(),
            work_state: self.work_state.clone(),
            // The caller encodes it after its changes.
            encoded: EncodedOperation::default(),
        }
    }

    fn finish(
        mut self,
        name: &str,
        outcome: &Outcome,
        last_attempt: Option<&Attempt>,
    ) -> OperationUpdate {
        self.phase = Phase::Done(TerminalState::from(outcome));
        self.encode(name, Some(outcome), last_attempt);
        self.work_state = None;
        if self.deleted {
            OperationUpdate::Remove(Some(self))
        } else {
            OperationUpdate::Put(self)
        }
    }

    /// Merges a report; fields that it leaves unset stay.
    fn merge_report(&mut self, report: &Report) {
        self.change_work_state(|work| work.latest_report.get_or_insert_default().merge(report));
    }

    fn change_work_state(&mut self, change: impl FnOnce(&mut WorkState)) {
        let mut work = self.work_state.as_deref().cloned().unwrap_or_default();
        change(&mut work);
        self.work_state = work.into_shared();
    }

    /// Encodes the operation, which shows `last_attempt` after the ended ones if it is done.
    fn encode(&mut self, name: &str, outcome: Option<&Outcome>, last_attempt: Option<&Attempt>) {
        let latest = self.latest_report();
        self.encoded = match latest.and_then(|latest| latest.metadata.as_ref()) {
            Some(custom_metadata) => {
                let Any { type_url, value } = custom_metadata.any();
                EncodedOperation::encode(name, AnyRef { type_url, value }, outcome)
            }
            None => {
                let (type_url, value) =
                    (metadata::TYPE_URL, &*metadata::encode(self, last_attempt));
                EncodedOperation::encode(name, AnyRef { type_url, value }, outcome)
            }
        };
    }
}

#[cfg(test)]
mod tests;
