//! The context of an attempt: input, progress reports, checkpoints and
//! cancellation.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use prost_types::Any;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock, Timestamp},
    operation::{
        Operation,
        labels::Labels,
        lease::LeaseToken,
        options::QueueName,
        outcome::Failure,
        payload::{InvalidAny, Payload},
        trace::TraceContext,
        transition::Report,
    },
    proto::{google::rpc::Code, longrunning::v1::Progress},
};

/// One attempt at one operation. Clones refer to the same attempt. They may move
/// to other threads and outlive the attempt; reports are then discarded.
#[derive(Clone, Debug)]
pub struct Context {
    leased_operation: Arc<LeasedOperation>,
    pub(super) state: Arc<AttemptState>,
    clock: Clock,
}

/// A leased operation, from this process or from a remote server.
#[derive(Debug)]
pub(crate) struct LeasedOperation {
    pub(crate) name: String,
    pub(crate) queue: Option<QueueName>,
    pub(crate) token: LeaseToken,
    pub(crate) attempt: u32,
    pub(crate) input: Option<Payload>,
    pub(crate) checkpoint: Option<Payload>,
    pub(crate) labels: Labels,
    pub(crate) method: String,
    pub(crate) trace_context: TraceContext,
    pub(crate) cancel_grace_period: Option<Duration>,
}

/// The state that a handler shares with the task that maintains its lease: the
/// pending report and the cancellation token.
#[derive(Debug, Default)]
pub(crate) struct AttemptState {
    pending_report: Mutex<Option<Report>>,
    /// Notified when a report becomes pending; several attempts may share it.
    wakeup: Arc<Notify>,
    pub(crate) cancellation_token: CancellationToken,
}

// === impl LeasedOperation ===

impl LeasedOperation {
    /// Copies the fields that a handler needs. Returns `None` if no lease is held.
    pub(crate) fn from_operation(operation: &Operation) -> Option<Self> {
        Some(Self {
            name: operation.name().to_owned(),
            queue: operation.queue().cloned(),
            token: operation.lease()?.token,
            attempt: operation.attempt(),
            input: operation.input().cloned(),
            checkpoint: operation.checkpoint().cloned(),
            labels: operation.labels().clone(),
            method: operation.method().to_owned(),
            trace_context: operation.trace_context().clone(),
            cancel_grace_period: operation.options().cancel_grace_period,
        })
    }
}

// === impl Context ===

impl Context {
    pub(crate) fn new(
        leased_operation: LeasedOperation,
        state: Arc<AttemptState>,
        clock: Clock,
    ) -> Self {
        Self {
            leased_operation: Arc::new(leased_operation),
            state,
            clock,
        }
    }

    /// Returns the full name of the operation.
    pub fn name(&self) -> &str {
        &self.leased_operation.name
    }

    /// Returns the queue, or `None` if the creator executes the operation itself.
    pub fn queue(&self) -> Option<&QueueName> {
        self.leased_operation.queue.as_ref()
    }

    /// Returns the input, or `None` if the creator gave none.
    pub fn input(&self) -> Option<&Any> {
        self.leased_operation.input.as_ref().map(Payload::any)
    }

    /// Decodes the input as a message of type `M`.
    ///
    /// # Errors
    /// A failure with code INVALID_ARGUMENT and reason `INVALID_INPUT` if the
    /// input is missing, has another type or cannot be decoded.
    pub fn input_as<M: prost::Name + Default>(&self) -> Result<M, Failure> {
        let expected_type = M::full_name();
        let invalid_input = |problem: String| {
            let message = format!("input must be a {expected_type}: {problem}");
            Failure::new(Code::InvalidArgument, message).with_reason("INVALID_INPUT")
        };
        let Some(input) = self.input() else {
            return Err(invalid_input("it is missing".to_owned()));
        };
        if input.type_url.rsplit('/').next() != Some(expected_type.as_str()) {
            return Err(invalid_input(format!("it is a {}", input.type_url)));
        }
        M::decode(input.value.as_slice()).map_err(|error| invalid_input(error.to_string()))
    }

    /// Returns the attempt number: 1 for the first attempt, larger for every later
    /// one. Pass it to other systems as a fencing token.
    pub fn attempt(&self) -> u32 {
        self.leased_operation.attempt
    }

    /// Returns the checkpoint that an earlier attempt saved with
    /// [`Context::save_checkpoint`], or `None`.
    pub fn checkpoint(&self) -> Option<&Any> {
        self.leased_operation.checkpoint.as_ref().map(Payload::any)
    }

    /// Returns the labels of the operation.
    pub fn labels(&self) -> &Labels {
        &self.leased_operation.labels
    }

    /// Returns the API method that created the operation, or an empty string if
    /// the creator gave none.
    pub fn method(&self) -> &str {
        &self.leased_operation.method
    }

    /// Returns the trace context that the creator set.
    pub fn trace_context(&self) -> &TraceContext {
        &self.leased_operation.trace_context
    }

    /// Returns the token that authorizes writes under this lease.
    pub fn lease_token(&self) -> LeaseToken {
        self.leased_operation.token
    }

    /// Returns the time between a cancellation request and the server ending the
    /// operation, or `None` if it ends only with the lease.
    pub fn cancel_grace_period(&self) -> Option<Duration> {
        self.leased_operation.cancel_grace_period
    }

    /// Returns the current time of the server's clock; in a remote worker, of the
    /// local clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Reports progress. Never blocks. Reports are merged, and the newest value is
    /// committed at most every 100 ms; a remote worker sends it at most every
    /// 200 ms.
    pub fn report_progress(&self, progress: Progress) {
        self.state
            .update_report(|report| report.progress = Some(progress));
    }

    /// Replaces the operation's metadata with a message of the handler's own type.
    /// Clients then see it instead of `longrunning.v1.OperationMetadata`.
    ///
    /// # Errors
    /// [`InvalidAny`] if the type URL is empty or malformed.
    pub fn set_metadata(&self, metadata: Any) -> Result<(), InvalidAny> {
        let metadata = Payload::new(metadata)?;
        self.state
            .update_report(|report| report.metadata = Some(metadata));
        Ok(())
    }

    /// Sets the field `detail` of `longrunning.v1.OperationMetadata` to a message
    /// of the handler's own type.
    ///
    /// # Errors
    /// [`InvalidAny`] if the type URL is empty or malformed.
    pub fn set_detail(&self, detail: Any) -> Result<(), InvalidAny> {
        let detail = Payload::new(detail)?;
        self.state
            .update_report(|report| report.detail = Some(detail));
        Ok(())
    }

    /// Saves a checkpoint, from which the next attempt can resume. It becomes
    /// durable with the next report.
    ///
    /// # Errors
    /// [`InvalidAny`] if the type URL is empty or malformed.
    pub fn save_checkpoint(&self, checkpoint: Any) -> Result<(), InvalidAny> {
        let checkpoint = Payload::new(checkpoint)?;
        self.state
            .update_report(|report| report.checkpoint = Some(checkpoint));
        Ok(())
    }

    /// Waits until the handler should stop: a client cancelled the operation, the
    /// lease was lost, or the worker shuts down. Return [`Failure::cancelled`]
    /// then, or the result if it is complete. Cancel safe.
    ///
    /// [`Failure::cancelled`]: crate::Failure::cancelled
    pub async fn cancelled(&self) {
        self.state.cancellation_token.cancelled().await;
    }

    /// Returns `true` if the handler should stop; for loops that do not await.
    pub fn is_cancelled(&self) -> bool {
        self.state.cancellation_token.is_cancelled()
    }
}

// === impl AttemptState ===

impl AttemptState {
    /// Creates a state whose reports notify the shared `wakeup`.
    #[cfg(feature = "client")]
    pub(crate) fn with_wakeup(wakeup: Arc<Notify>) -> Self {
        Self {
            wakeup,
            ..Self::default()
        }
    }

    /// Changes the pending report and notifies the lease task.
    fn update_report(&self, apply: impl FnOnce(&mut Report)) {
        apply(self.pending_report.lock().get_or_insert_default());
        self.wakeup.notify_one();
    }

    /// Takes the pending report, or `None` if nothing was reported since the last
    /// call.
    pub(crate) fn take_report(&self) -> Option<Report> {
        self.pending_report.lock().take()
    }

    /// Puts back a report that could not be sent. Newer values win.
    pub(crate) fn restore_report(&self, older: Report) {
        self.update_report(|report| {
            let newer = std::mem::replace(report, older);
            report.merge(&newer);
        });
    }

    /// Waits until a report becomes pending. May wake up spuriously.
    pub(crate) async fn wait_for_report(&self) {
        self.wakeup.notified().await;
    }
}
