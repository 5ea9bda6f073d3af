//! Read access to the fields of an [`Operation`].

use std::{sync::LazyLock, time::Duration};

use super::{
    Operation,
    encoded::EncodedOperation,
    labels::Labels,
    lease::Lease,
    name::OperationName,
    options::{ExecutionOptions, QueueName},
    outcome::Outcome,
    payload::Payload,
    spec::{Attributes, IdempotencyKey},
    trace::TraceContext,
    transition::{Phase, Report},
    version::OperationVersion,
};
use crate::{
    clock::Timestamp,
    proto::{
        google,
        longrunning::v1::{
            Progress,
            operation_metadata::{Attempt, State},
        },
    },
};

// === impl Operation ===

impl Operation {
    /// Returns the full name: `operations/{id}` or `{parent}/operations/{id}`.
    pub fn name(&self) -> &str {
        self.encoded.name()
    }

    /// Returns a parsed copy of the full name.
    pub fn name_owned(&self) -> OperationName {
        OperationName::parse(self.name()).expect("only parsed names are encoded")
    }

    /// Returns the encoded `google.longrunning.Operation`.
    pub fn bytes(&self) -> &[u8] {
        self.encoded.as_bytes()
    }

    /// Decodes [`bytes`](Self::bytes).
    pub fn to_proto(&self) -> google::longrunning::Operation {
        prost::Message::decode(self.bytes()).expect("the bytes are an encoded operation")
    }

    /// Returns the encoded operation, which filters read field by field.
    pub(crate) fn encoded(&self) -> &EncodedOperation {
        &self.encoded
    }

    /// Returns `true` if the operation has its final result.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done(_))
    }

    /// Returns the state as clients see it.
    ///
    /// An operation with a requested cancellation is still `Running`: see [`cancel_requested`](Self::cancel_requested).
    pub fn state(&self) -> State {
        self.phase.state()
    }

    /// Returns the phase: the state with its lease and its ready time.
    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Returns the current lease, or `None` if no worker holds one. An expired lease is returned
    /// until the expiry is recorded.
    pub fn lease(&self) -> Option<&Lease> {
        self.phase.lease()
    }

    /// Returns the number of changes since the creation.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Returns the version, which differs between any two revisions.
    pub fn version(&self) -> OperationVersion {
        OperationVersion {
            revision: self.revision,
            update_time: self.update_time,
        }
    }

    /// Returns the number of the current or last attempt, or 0 before the first. Never decreases.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns `true` if CancelOperation was called before the operation was done.
    pub fn cancel_requested(&self) -> bool {
        self.cancel_requested
    }

    /// Returns `true` if the operation is done with this outcome.
    pub(crate) fn has_outcome(&self, outcome: &Outcome) -> bool {
        self.is_done() && self.encoded.has_outcome(outcome)
    }

    /// Returns the timeouts, the retry policy and the retention.
    pub fn options(&self) -> &ExecutionOptions {
        &self.options
    }

    /// Returns the queue, or `None` if the creator executes the operation.
    pub fn queue(&self) -> Option<&QueueName> {
        self.options.queue.as_ref()
    }

    /// Returns the labels that the creator set.
    pub fn labels(&self) -> &Labels {
        &self.attributes().labels
    }

    /// Returns the time of the creation.
    pub fn create_time(&self) -> Timestamp {
        self.create_time
    }

    /// Returns the start of the first attempt, or `None` before it.
    pub fn start_time(&self) -> Option<Timestamp> {
        self.start_time
    }

    /// Returns the time of the last change, lease renewals excluded.
    pub fn update_time(&self) -> Timestamp {
        self.update_time
    }

    /// Returns the time of the completion, or `None` if the operation is not done.
    pub fn end_time(&self) -> Option<Timestamp> {
        self.is_done().then_some(self.update_time)
    }

    /// Returns the rest of the retention at `now`, or `None` if the operation is
    /// not done.
    pub fn expires_in(&self, now: Timestamp) -> Option<Duration> {
        Some((self.end_time()? + self.options.retention).since(now))
    }

    /// Returns the input of the worker, or `None` if there is none or the
    /// operation is done.
    pub fn input(&self) -> Option<&Payload> {
        self.work_state.as_ref()?.input.as_ref()
    }

    /// Returns the latest progress, or `None` if there is none or the operation
    /// is done. The metadata of a done operation still contains it.
    pub fn progress(&self) -> Option<&Progress> {
        self.latest_report()?.progress.as_ref()
    }

    /// Returns the worker's addition to the server's metadata.
    pub(super) fn detail(&self) -> Option<&Payload> {
        self.latest_report()?.detail.as_ref()
    }

    /// Returns the latest checkpoint, or `None` if there is none or the operation
    /// is done.
    pub fn checkpoint(&self) -> Option<&Payload> {
        self.latest_report()?.checkpoint.as_ref()
    }

    pub(super) fn latest_report(&self) -> Option<&Report> {
        self.work_state.as_ref()?.latest_report.as_deref()
    }

    /// Returns the attempts that ended, oldest first, or none if the operation is done. The metadata of a done
    /// operation still contains them.
    pub(super) fn ended_attempts(&self) -> &[Attempt] {
        let work = self.work_state.as_ref();
        work.map_or(&[], |work| &work.ended_attempts)
    }

    /// Returns the history entry of the attempt that runs, or `None` if none does: a lease that its worker has not
    /// confirmed is no attempt.
    pub(super) fn current_attempt(&self) -> Option<Attempt> {
        let lease = self.lease().filter(|lease| lease.is_confirmed())?;
        Some(Attempt {
            number: i32::try_from(self.attempt).unwrap_or(i32::MAX),
            worker_id: lease.holder.as_str().to_owned(),
            start_time: Some(lease.start_time.into()),
            end_time: None,
            status: None,
        })
    }

    /// Returns the method that the creator named, or `""`.
    pub fn method(&self) -> &str {
        &self.attributes().method
    }

    /// Returns the trace context that the creator set.
    pub fn trace_context(&self) -> &TraceContext {
        &self.attributes().trace_context
    }

    fn attributes(&self) -> &Attributes {
        static NONE: LazyLock<Attributes> = LazyLock::new(Attributes::default);
        self.attributes.as_deref().unwrap_or_else(|| &NONE)
    }

    pub(crate) fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.attributes().idempotency_key.as_ref()
    }

    /// Returns the request id of the creation (AIP-155), unique within its parent, or `None`.
    pub fn request_id(&self) -> Option<&str> {
        self.idempotency_key().map(|key| &*key.request_id)
    }

    /// Returns the position in the order of creation.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns `true` if the operation was deleted while it was not done: it
    /// continues, invisible to clients.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// Returns the size of the labels, the request id, the method and the trace
    /// context in bytes.
    pub(crate) fn attributes_size(&self) -> usize {
        self.attributes().size()
    }

    /// Returns the size of all user-supplied content in bytes.
    pub(crate) fn size(&self) -> usize {
        // The encoded bytes contain all that clients see of the latest report.
        let hidden_size = self.work_state.as_ref().map_or(0, |work| {
            let input = work.input.as_ref().map_or(0, Payload::size);
            let report = work.latest_report.as_ref();
            let attempts = match report {
                Some(report) if report.metadata.is_some() => &*work.ended_attempts,
                _ => &[],
            };
            let attempts: usize = attempts.iter().map(prost::Message::encoded_len).sum();
            input + attempts + report.map_or(0, |report| report.hidden_size())
        });
        self.encoded.as_bytes().len() + self.attributes_size() + hidden_size
    }
}
