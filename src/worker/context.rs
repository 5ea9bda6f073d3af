//! What a handler is given: its input, and ways to report, to keep a
//! checkpoint and to learn that it should stop. Committing what it reports is
//! done by `attempt`.

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

/// One attempt at one operation. Clones belong to the same attempt; they may
/// be moved to other threads, and outlive the attempt without harm.
#[derive(Clone, Debug)]
pub struct Context {
    leased_operation: Arc<LeasedOperation>,
    report_buffer: Arc<ReportBuffer>,
    clock: Clock,
}

/// What was leased, in this process or from another one.
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

/// Where a handler leaves reports, and finds the wish that it stop. Desks may
/// share the bell that tells of a report.
#[derive(Debug, Default)]
pub(crate) struct ReportBuffer {
    report: Mutex<Option<Report>>,
    wakeup: Arc<Notify>,
    pub(crate) cancellation_token: CancellationToken,
}

// === impl Assignment ===

impl LeasedOperation {
    /// What the holder of the operation's lease has to do; none if nobody holds it.
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
        report_buffer: Arc<ReportBuffer>,
        clock: Clock,
    ) -> Self {
        Self {
            leased_operation: Arc::new(leased_operation),
            report_buffer,
            clock,
        }
    }

    /// The full name of the operation.
    pub fn name(&self) -> &str {
        &self.leased_operation.name
    }

    /// The queue that it was taken from; none if its creator executes it.
    pub fn queue(&self) -> Option<&QueueName> {
        self.leased_operation.queue.as_ref()
    }

    /// What the creator wants to have worked on.
    pub fn input(&self) -> Option<&Any> {
        self.leased_operation.input.as_ref().map(Payload::any)
    }

    /// The input as the message that it should be.
    ///
    /// # Errors
    /// A failure with code INVALID_ARGUMENT and reason `INVALID_INPUT`, if there is
    /// no input, or it is of another type or damaged.
    pub fn input_as<M: prost::Name + Default>(&self) -> Result<M, Failure> {
        let expected_type = M::full_name();
        let invalid_input = |problem: String| {
            let message = format!("the input must be a {expected_type}: {problem}");
            Failure::new(Code::InvalidArgument, message).with_reason("INVALID_INPUT")
        };
        let Some(input) = self.input() else {
            return Err(invalid_input("there is none".to_owned()));
        };
        if input.type_url.rsplit('/').next() != Some(expected_type.as_str()) {
            return Err(invalid_input(format!("it is a {}", input.type_url)));
        }
        M::decode(input.value.as_slice()).map_err(|error| invalid_input(error.to_string()))
    }

    /// The number of this attempt: 1 for the first, and always larger than that
    /// of any attempt before. A fencing number towards other systems.
    pub fn attempt(&self) -> u32 {
        self.leased_operation.attempt
    }

    /// What an attempt before left with [`Context::keep_checkpoint`].
    pub fn checkpoint(&self) -> Option<&Any> {
        self.leased_operation.checkpoint.as_ref().map(Payload::any)
    }

    /// What the creator called the operation by.
    pub fn labels(&self) -> &Labels {
        &self.leased_operation.labels
    }

    /// The method that the operation belongs to, as its creator said; empty if
    /// it did not.
    pub fn method(&self) -> &str {
        &self.leased_operation.method
    }

    /// The trace that the operation belongs to, as its creator said.
    pub fn trace_context(&self) -> &TraceContext {
        &self.leased_operation.trace_context
    }

    /// Proves to the server that this attempt holds the operation.
    pub fn lease_token(&self) -> LeaseToken {
        self.leased_operation.token
    }

    /// How long after a cancellation the server waits before it closes the
    /// operation; none for as long as the lease is kept.
    pub fn cancel_grace_period(&self) -> Option<Duration> {
        self.leased_operation.cancel_grace_period
    }

    /// The time as the server sees it.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Tells how far the work is. Cheap: call it as often as there is news; the
    /// newest report wins, and is shown at once or within 100 ms.
    pub fn report_progress(&self, progress: Progress) {
        self.report_buffer
            .update(|report| report.progress = Some(progress));
    }

    /// Serves metadata of the handler's own type from now on, instead of
    /// `longrunning.v1.OperationMetadata`.
    ///
    /// # Errors
    /// [`InvalidAny`] if the type URL is empty or malformed.
    pub fn set_metadata(&self, metadata: Any) -> Result<(), InvalidAny> {
        let metadata = Payload::new(metadata)?;
        self.report_buffer
            .update(|report| report.metadata = Some(metadata));
        Ok(())
    }

    /// Puts an addition of the handler's own type into the `detail` of
    /// `longrunning.v1.OperationMetadata`.
    ///
    /// # Errors
    /// [`InvalidAny`] if the type URL is empty or malformed.
    pub fn set_detail(&self, detail: Any) -> Result<(), InvalidAny> {
        let detail = Payload::new(detail)?;
        self.report_buffer
            .update(|report| report.detail = Some(detail));
        Ok(())
    }

    /// Keeps a note for the next attempt, in case this one is lost.
    ///
    /// # Errors
    /// [`InvalidAny`] if the type URL is empty or malformed.
    pub fn save_checkpoint(&self, checkpoint: Any) -> Result<(), InvalidAny> {
        let checkpoint = Payload::new(checkpoint)?;
        self.report_buffer
            .update(|report| report.checkpoint = Some(checkpoint));
        Ok(())
    }

    /// Resolves when the work should stop: somebody cancelled the operation, or
    /// the lease is lost. Finish with [`Failure::cancelled`], or with a result
    /// if it is there already.
    ///
    /// [`Failure::cancelled`]: crate::Failure::cancelled
    pub async fn cancelled(&self) {
        self.report_buffer.cancellation_token.cancelled().await;
    }

    /// Whether the work should stop; for loops that do not await.
    pub fn is_cancelled(&self) -> bool {
        self.report_buffer.cancellation_token.is_cancelled()
    }
}

// === impl Desk ===

impl ReportBuffer {
    /// A desk whose reports ring a bell that others ring too.
    pub(crate) fn with_wakeup(wakeup: Arc<Notify>) -> Self {
        Self {
            wakeup,
            ..Self::default()
        }
    }

    /// Adds to the report that nobody fetched yet; the newest value wins.
    fn update(&self, apply: impl FnOnce(&mut Report)) {
        apply(self.report.lock().get_or_insert_default());
        self.wakeup.notify_one();
    }

    /// Fetches what was reported since the last time.
    pub(crate) fn take(&self) -> Option<Report> {
        self.report.lock().take()
    }

    /// Puts back what was fetched and could not be kept, under what came since.
    pub(crate) fn restore(&self, older: Report) {
        self.update(|report| {
            let newer = std::mem::replace(report, older);
            report.merge(&newer);
        });
    }

    /// Waits until there is something to fetch.
    pub(crate) async fn wait_for_report(&self) {
        self.wakeup.notified().await;
    }
}
