//! Limits: how much a store takes in, and what is refused over them.

use super::store::Store;
use crate::{
    error::{Error, Result},
    operation::{Operation, outcome::Outcome, transition::Event},
};

/// An error of at most so many bytes always has room.
const ALWAYS_ACCEPTED_ERROR_BYTES: usize = 4096;

/// How much a store takes in.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Operations in all. Default 1 000 000. Over → STORE_FULL.
    pub max_operations: usize,
    /// Bytes of encoded operations, inputs and labels in all. Default 1 GiB.
    /// Over, creations and reports are refused with STORE_FULL; outcomes never.
    pub max_total_bytes: usize,
    /// Bytes of one operation, its input included. Default 3 MiB, because
    /// clients refuse messages over 4 MiB. Over → TOO_LARGE.
    pub max_operation_bytes: usize,
    /// Operations that wait in one queue. Default 100 000. Over → QUEUE_FULL.
    pub max_queue_length: usize,
    /// Open waits and watches. Default 100 000. Over, a wait answers at once
    /// with the current state, which AIP-151 allows.
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

// === impl Store ===

impl Store {
    /// Whether there is room for what a worker says. For a short error there
    /// always is: an operation must be able to end.
    pub(super) fn check_capacity(
        &self,
        event: &Event,
        current: &Operation,
        next: &Operation,
    ) -> Result<()> {
        match event {
            Event::Report(_, report) | Event::RenewLease(_, report) if !report.is_empty() => {
                self.check_size("report", next)?;
                let growth = next.size().saturating_sub(current.size());
                if growth != 0 && self.limits.max_total_bytes < self.view.total_bytes() + growth {
                    return Err(Error::StoreFull {
                        unit: "bytes",
                        limit: self.limits.max_total_bytes,
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
            Event::Fail { .. } => self.check_size("error", next),
            Event::ReleaseLease(_, report) if !report.is_empty() => {
                self.check_size("metadata", next)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_size(&self, field: &'static str, operation: &Operation) -> Result<()> {
        let (size, limit) = (operation.size(), self.limits.max_operation_bytes);
        if size <= limit {
            Ok(())
        } else {
            Err(Error::TooLarge { field, size, limit })
        }
    }
}
