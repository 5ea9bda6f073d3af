//! The record of one operation: immutable, a new one for each change, with its
//! bytes encoded. How it may change is `stage`'s table; where it is kept is the
//! store's affair.

pub(crate) mod attempt_result;
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
pub(crate) mod retry;
pub(crate) mod spec;
pub(crate) mod trace;
pub(crate) mod transition;

use std::{sync::Arc, time::Duration};

use prost_types::Any;

use self::{
    encoded::{AnyRef, EncodedOperation},
    labels::Labels,
    lease::Lease,
    name::OperationName,
    options::{ExecutionOptions, QueueName},
    outcome::Outcome,
    payload::Payload,
    spec::{Attributes, IdempotencyKey, OperationSpec},
    trace::TraceContext,
    transition::{
        Event, Phase, Report, TerminalState, Transition, TransitionContext, TransitionError,
    },
};
use crate::{
    clock::Timestamp,
    proto::{
        google,
        longrunning::v1::{Progress, operation_metadata::State},
    },
};

/// One operation at one moment.
#[derive(Clone, Debug)]
pub struct Operation {
    pub(super) number: u64,
    pub(super) revision: u32,
    pub(super) attempt: u32,
    /// Attempts that were given back and do not count.
    pub(super) released_attempts: u32,
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

/// Which record of an operation. Others of it are of another version, also those of a
/// database that lost what it had kept, and went on from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationVersion {
    revision: u32,
    update_time: Timestamp,
}

/// What is needed only until the operation is done; most have nothing of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct WorkState {
    pub(super) input: Option<Payload>,
    pub(super) latest_report: Option<Box<Report>>,
}

/// What an event makes of an operation.
#[derive(Debug)]
pub(crate) enum OperationUpdate {
    /// Nothing.
    Unchanged,
    /// This new record.
    Put(Operation),
    /// This new record, whose lease lasts longer and which is otherwise the same.
    RenewLease(Operation),
    /// The record goes away; this is how it ended, if it did so just now.
    Remove(Option<Operation>),
}

// === impl Work ===

impl WorkState {
    pub(super) fn into_shared(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}

// === impl Operation ===

impl Operation {
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
            released_attempts: 0,
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
            }
            .into_shared(),
            encoded: EncodedOperation::default(),
        };
        if let Some((token, worker)) = spec.initial_lease {
            let context = operation.transition_context(now, false);
            let acquire = Event::AcquireLease { token, worker };
            if let Ok(Transition::To(phase)) =
                transition::transition(&Phase::Pending { ready_at: now }, &acquire, context)
            {
                operation.enter_phase(phase, now);
            }
        }
        operation.encode(spec.name.as_str(), None);
        operation
    }

    /// What `event` makes of this operation.
    pub(crate) fn apply(
        &self,
        event: &Event,
        now: Timestamp,
    ) -> Result<OperationUpdate, TransitionError> {
        let now = now.max(self.update_time);
        if *event == Event::TimerFired && self.is_abandoned(now) {
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
            Transition::To(_) | Transition::MergeReport | Transition::Finish(_) => {
                self.next_revision(now)
            }
        };
        if let Event::RequestCancel = event {
            changed.cancel_requested = true;
        }
        if let Event::ReleaseLease(..) = event {
            changed.released_attempts += 1;
        }
        // To say again what is known already is no news.
        let has_new_data = |report: &&Report| {
            let latest = self.latest_report();
            !latest.map_or_else(|| report.is_empty(), |latest| latest.contains(report))
        };
        let report = event.report().filter(has_new_data);
        if let Some(report) = report {
            changed.merge_report(report);
        }
        match transition {
            Transition::To(phase) => changed.enter_phase(phase, now),
            Transition::Finish(outcome) => return Ok(changed.finish(self.name(), &outcome)),
            Transition::Unchanged | Transition::MergeReport | Transition::Remove => {}
        }
        if matches!(event, Event::RenewLease(..)) && report.is_none() {
            // A sign of life changes nothing that clients see.
            changed.update_time = self.update_time;
            changed.encoded = self.encoded.clone();
            return Ok(OperationUpdate::RenewLease(changed));
        }
        changed.encode(self.name(), None);
        Ok(OperationUpdate::Put(changed))
    }

    /// Hides the operation from clients; it goes on, and is forgotten when done.
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

    /// The lease was renewed, which is all that is new in this revision.
    pub(crate) fn apply_lease_renewal(&mut self, revision: u32, expires_at: Timestamp) {
        self.revision = revision;
        if let Phase::Running(lease) | Phase::Cancelling(lease) = &mut self.phase {
            lease.expires_at = expires_at;
        }
    }

    /// Goes on after a restart: a lease gets its full time again, because its
    /// holder could not reach the server.
    pub(crate) fn restart_lease(&mut self, now: Timestamp) {
        let expires_at = now + self.options.lease_duration;
        if let Phase::Running(lease) | Phase::Cancelling(lease) = &mut self.phase {
            lease.expires_at = lease.expires_at.max(expires_at);
        }
    }

    /// The next moment, seen from `now`, at which time alone may change the
    /// operation or make it ready.
    pub(crate) fn next_deadline(&self, now: Timestamp) -> Timestamp {
        let total_deadline = self
            .options
            .total_timeout
            .map(|timeout| self.create_time + timeout);
        let phase_deadline = match &self.phase {
            Phase::Pending { ready_at } if now < *ready_at => Some(*ready_at),
            Phase::Pending { .. } => None,
            Phase::Running(lease) | Phase::Cancelling(lease) => Some(lease.next_deadline()),
            Phase::Done(_) => return self.update_time + self.options.retention,
        };
        let is_pending = matches!(self.phase, Phase::Pending { .. });
        let abandoned_at =
            (self.deleted && is_pending).then(|| self.update_time + self.options.retention);
        let deadlines = [phase_deadline, total_deadline, abandoned_at]
            .into_iter()
            .flatten();
        deadlines.min().unwrap_or(Timestamp::from_nanos(i64::MAX))
    }

    /// Whether it was deleted, and no worker took it up in the time for which
    /// anybody would have kept its result.
    fn is_abandoned(&self, now: Timestamp) -> bool {
        let is_pending = matches!(self.phase, Phase::Pending { .. });
        self.deleted && is_pending && self.update_time + self.options.retention <= now
    }

    /// Whether a worker may take it now.
    pub(crate) fn is_ready(&self, now: Timestamp) -> bool {
        matches!(self.phase, Phase::Pending { ready_at } if ready_at <= now)
    }

    fn transition_context(&self, now: Timestamp, same_outcome: bool) -> TransitionContext<'_> {
        TransitionContext {
            now,
            options: &self.options,
            create_time: self.create_time,
            update_time: self.update_time,
            counted_attempts: self.attempt - self.released_attempts,
            same_outcome,
        }
    }

    fn has_same_outcome(&self, event: &Event) -> bool {
        match event {
            _ if !self.is_done() => false,
            Event::Finish(_, outcome, _) => self.encoded.has_outcome(outcome),
            Event::Fail { error, .. } => self.encoded.has_outcome(&Outcome::Error(error.clone())),
            _ => false,
        }
    }

    fn next_revision(&self, now: Timestamp) -> Self {
        Self {
            number: self.number,
            revision: self.revision + 1,
            attempt: self.attempt,
            released_attempts: self.released_attempts,
            cancel_requested: self.cancel_requested,
            deleted: self.deleted,
            create_time: self.create_time,
            start_time: self.start_time,
            update_time: now,
            phase: self.phase.clone(),
            options: self.options.clone(),
            attributes: self.attributes.clone(),
            work_state: self.work_state.clone(),
            // Whoever asks for a successor fills it in.
            encoded: EncodedOperation::default(),
        }
    }

    /// Enters a stage. A token that was not there before begins an attempt.
    fn enter_phase(&mut self, phase: Phase, now: Timestamp) {
        let token = |phase: &Phase| phase.lease().map(|lease| lease.token);
        if token(&phase).is_some_and(|new| token(&self.phase) != Some(new)) {
            self.attempt += 1;
            self.start_time = self.start_time.or(Some(now));
        }
        self.phase = phase;
    }

    fn finish(mut self, name: &str, outcome: &Outcome) -> OperationUpdate {
        self.phase = Phase::Done(TerminalState::from(outcome));
        self.encode(name, Some(outcome));
        self.work_state = None;
        if self.deleted {
            OperationUpdate::Remove(Some(self))
        } else {
            OperationUpdate::Put(self)
        }
    }

    /// Takes over what a report says; what it leaves out stays.
    fn merge_report(&mut self, report: &Report) {
        let mut work = self.work_state.as_deref().cloned().unwrap_or_default();
        work.latest_report.get_or_insert_default().merge(report);
        self.work_state = work.into_shared();
    }

    fn encode(&mut self, name: &str, outcome: Option<&Outcome>) {
        let custom_metadata = self
            .latest_report()
            .and_then(|latest| latest.metadata.as_ref());
        self.encoded = match custom_metadata {
            Some(custom_metadata) => {
                let Any { type_url, value } = custom_metadata.any();
                EncodedOperation::encode(name, AnyRef { type_url, value }, outcome)
            }
            None => {
                let (type_url, value) = (metadata::TYPE_URL, &*metadata::encode(self));
                EncodedOperation::encode(name, AnyRef { type_url, value }, outcome)
            }
        };
    }

    fn latest_report(&self) -> Option<&Report> {
        self.work_state.as_ref()?.latest_report.as_deref()
    }

    // What everybody may ask.

    /// The full name.
    pub fn name(&self) -> &str {
        self.encoded.name()
    }

    /// The full name, owned.
    pub fn name_owned(&self) -> OperationName {
        encoded::name_owned(&self.encoded)
    }

    /// The encoded `google.longrunning.Operation`.
    pub fn bytes(&self) -> &[u8] {
        self.encoded.as_bytes()
    }

    /// The decoded `google.longrunning.Operation`.
    pub fn to_proto(&self) -> google::longrunning::Operation {
        encoded::decode(self.bytes())
    }

    /// The parts of the encoded operation, for filters.
    pub(crate) fn encoded(&self) -> &EncodedOperation {
        &self.encoded
    }

    /// Whether it is over.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done(_))
    }

    /// Where it stands, as clients see it.
    pub fn state(&self) -> State {
        self.phase.state()
    }

    /// Where it stands, with the lease.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The lease, while somebody holds one.
    pub fn lease(&self) -> Option<&Lease> {
        self.phase.lease()
    }

    /// How often it changed.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Which record of the operation this is.
    pub fn version(&self) -> OperationVersion {
        OperationVersion {
            revision: self.revision,
            update_time: self.update_time,
        }
    }

    /// The number of the current or last attempt; 0 before the first. It only grows.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether somebody called CancelOperation before it was done.
    pub fn cancel_requested(&self) -> bool {
        self.cancel_requested
    }

    /// Timeouts, retries, retention.
    pub fn options(&self) -> &ExecutionOptions {
        &self.options
    }

    /// The queue it waits in or came from.
    pub fn queue(&self) -> Option<&QueueName> {
        self.options.queue.as_ref()
    }

    /// What its creator called it by.
    pub fn labels(&self) -> &Labels {
        static NONE: Labels = Labels::NONE;
        self.attributes
            .as_ref()
            .map_or(&NONE, |attributes| &attributes.labels)
    }

    /// When it was created.
    pub fn create_time(&self) -> Timestamp {
        self.create_time
    }

    /// When its first attempt began.
    pub fn start_time(&self) -> Option<Timestamp> {
        self.start_time
    }

    /// When it last changed.
    pub fn update_time(&self) -> Timestamp {
        self.update_time
    }

    /// When it was done.
    pub fn end_time(&self) -> Option<Timestamp> {
        self.is_done().then_some(self.update_time)
    }

    /// How long it can still be read at `now`; none while it is not done.
    pub fn expires_in(&self, now: Timestamp) -> Option<Duration> {
        Some((self.end_time()? + self.options.retention).since(now))
    }

    /// What the worker gets to work on; none once it is done.
    pub fn input(&self) -> Option<&Payload> {
        self.work_state.as_ref()?.input.as_ref()
    }

    /// The latest progress; none once it is done, the metadata keeps it.
    pub fn progress(&self) -> Option<&Progress> {
        self.latest_report()?.progress.as_ref()
    }

    /// What the producer added to the metadata.
    pub(super) fn detail(&self) -> Option<&Payload> {
        self.latest_report()?.detail.as_ref()
    }

    /// The latest checkpoint; none once it is done.
    pub fn checkpoint(&self) -> Option<&Payload> {
        self.latest_report()?.checkpoint.as_ref()
    }

    /// The method that it belongs to, as its creator said; empty if it did not.
    pub fn method(&self) -> &str {
        self.attributes
            .as_ref()
            .map_or("", |attributes| &attributes.method)
    }

    /// The trace that it belongs to, as its creator said.
    pub fn trace_context(&self) -> &TraceContext {
        static NONE: TraceContext = TraceContext::NONE;
        self.attributes
            .as_ref()
            .map_or(&NONE, |attributes| &attributes.trace_context)
    }

    pub(crate) fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.attributes.as_ref()?.idempotency_key.as_ref()
    }

    /// The request id that its creator gave, by which it is found within its
    /// parent (AIP-155); none if it did not.
    pub fn request_id(&self) -> Option<&str> {
        self.idempotency_key().map(|key| &*key.request_id)
    }

    /// Its place in the order of creation.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it was deleted and goes on unseen.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// How many bytes it is called by, besides its name.
    pub(crate) fn attributes_size(&self) -> usize {
        self.attributes
            .as_ref()
            .map_or(0, |attributes| attributes.size())
    }

    /// How many bytes it holds that vary with what people put in.
    pub(crate) fn size(&self) -> usize {
        // What clients see is in the encoded bytes already.
        let hidden_size = self.work_state.as_ref().map_or(0, |work| {
            let input = work.input.as_ref().map_or(0, Payload::size);
            input
                + work
                    .latest_report
                    .as_ref()
                    .map_or(0, |latest| latest.hidden_size())
        });
        self.encoded.as_bytes().len() + self.attributes_size() + hidden_size
    }
}

#[cfg(test)]
mod tests;
