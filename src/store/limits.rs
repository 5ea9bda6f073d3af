//! Limits: how much a store accepts.

use prost::Message;

use crate::{
    error::{Error, Result},
    operation::{
        Operation,
        outcome::Outcome,
        transition::{Event, Report},
    },
    proto::{google::rpc::Code, longrunning::v1::operation_metadata::State},
};

/// An error of at most this size is accepted whatever the limits are: an operation must be able to end.
const ALWAYS_ACCEPTED_ERROR_BYTES: usize = 4096;

/// How much one server accepts. With shared storage each limit applies to the operations in the memory of one server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum number of operations. Default 1 000 000. Creations above it fail with STORE_FULL.
    pub max_operations: usize,
    /// Maximum total size of encoded operations, inputs and labels, in bytes. Default 1 GiB. Creations and reports
    /// above it fail with STORE_FULL; outcomes never do.
    pub max_total_bytes: usize,
    /// Maximum size of one operation with its input, in bytes. Default 3 MiB, because clients reject messages over
    /// 4 MiB. Larger ones fail with TOO_LARGE.
    pub max_operation_bytes: usize,
    /// Maximum number of pending operations in one queue. Default 100 000. Creations above it fail with QUEUE_FULL.
    pub max_queue_length: usize,
    /// Maximum number of open waits and watches, and separately of waiting LeaseOperations calls and WatchDirectives
    /// streams. Default 100 000. Above it a wait returns the current state at once, which AIP-151 allows; the others
    /// fail with TOO_MANY_WAITERS.
    pub max_waiters: usize,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_operations: 1_000_000,
            max_total_bytes: 1 << 30,
            max_operation_bytes: 3 << 20,
            max_queue_length: 100_000,
            max_waiters: 100_000,
        }
    }
}

impl Limits {
    /// Sets [`max_operations`](Self::max_operations).
    #[must_use]
    pub fn with_max_operations(mut self, max_operations: usize) -> Self {
        self.max_operations = max_operations;
        self
    }

    /// Sets [`max_total_bytes`](Self::max_total_bytes).
    #[must_use]
    pub fn with_max_total_bytes(mut self, max_total_bytes: usize) -> Self {
        self.max_total_bytes = max_total_bytes;
        self
    }

    /// Sets [`max_operation_bytes`](Self::max_operation_bytes).
    #[must_use]
    pub fn with_max_operation_bytes(mut self, max_operation_bytes: usize) -> Self {
        self.max_operation_bytes = max_operation_bytes;
        self
    }

    /// Sets [`max_queue_length`](Self::max_queue_length).
    #[must_use]
    pub fn with_max_queue_length(mut self, max_queue_length: usize) -> Self {
        self.max_queue_length = max_queue_length;
        self
    }

    /// Sets [`max_waiters`](Self::max_waiters).
    #[must_use]
    pub fn with_max_waiters(mut self, max_waiters: usize) -> Self {
        self.max_waiters = max_waiters;
        self
    }

    /// Checks that the change from `current` to `next` fits, with `total_bytes` in the store before it.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if it does not.
    pub(super) fn check_capacity(
        &self,
        total_bytes: usize,
        event: &Event,
        current: &Operation,
        next: &Operation,
    ) -> Result<()> {
        match event {
            Event::Report(_, report) | Event::Heartbeat(_, report) if !report.is_empty() => {
                self.check_size("report", next)?;
                let growth = next.size().saturating_sub(current.size());
                if growth != 0 && total_bytes + growth > self.max_total_bytes {
                    return Err(Error::StoreFull {
                        unit: "bytes",
                        limit: self.max_total_bytes,
                    });
                }
                Ok(())
            }
            Event::Finish(_, outcome @ Outcome::Error(_), report)
                if report.is_empty() && outcome.size() <= ALWAYS_ACCEPTED_ERROR_BYTES =>
            {
                Ok(())
            }
            Event::Finish(..) => self.check_size("response", next),
            // The history of attempts is small, and what is pending keeps its size.
            Event::Fail { report, .. } if report.is_empty() && !next.is_done() => Ok(()),
            Event::Fail { error, report, .. }
                if report.is_empty()
                    && (next.state() == State::Cancelled
                        || error.encoded_len() <= ALWAYS_ACCEPTED_ERROR_BYTES) =>
            {
                Ok(())
            }
            Event::Fail { .. } => self.check_size("error", next),
            Event::ReleaseLease(_, report) if !report.is_empty() => {
                self.check_size("metadata", next)
            }
            _ => Ok(()),
        }
    }

    /// Returns what to record instead of the end of an attempt that is too large: first the same without its report,
    /// then an error, which [`check_capacity`](Self::check_capacity) always admits. Returns `None` for other events.
    pub(super) fn smaller_event(&self, event: &Event) -> Option<Event> {
        match event {
            Event::Finish(..) | Event::Fail { .. } | Event::ReleaseLease(..)
                if event.has_report() =>
            {
                Some(event.clone().without_report())
            }
            Event::Finish(token, ..) | Event::Fail { token, .. } => {
                let too_large = self.too_large_outcome();
                Some(Event::Finish(*token, too_large, Report::default()))
            }
            _ => None,
        }
    }

    /// Returns `true` if a done operation has the error that [`smaller_event`](Self::smaller_event) records for
    /// `event`.
    pub(super) fn has_replaced_outcome(&self, operation: &Operation, event: &Event) -> bool {
        let size = match event {
            Event::Finish(_, outcome, _) => outcome.size(),
            Event::Fail { error, .. } => error.encoded_len(),
            _ => return false,
        };
        let may_be_too_large = operation.size() + size > self.max_operation_bytes;
        may_be_too_large && operation.has_outcome(&self.too_large_outcome())
    }

    /// The same for every result, so that repeating a finish is OK.
    fn too_large_outcome(&self) -> Outcome {
        let limit = self.max_operation_bytes;
        let message = format!(
            "the result makes the operation larger than the limit of {limit} bytes; store it elsewhere and return its address"
        );
        Outcome::server_error(Code::ResourceExhausted, "TOO_LARGE", message)
    }

    /// Checks the size of one operation; `field` names the part of the request that made it large.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED with TOO_LARGE.
    pub(super) fn check_size(&self, field: &'static str, operation: &Operation) -> Result<()> {
        let (size, limit) = (operation.size(), self.max_operation_bytes);
        if size > limit {
            return Err(Error::TooLarge { field, size, limit });
        }
        Ok(())
    }
}
