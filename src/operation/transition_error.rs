//! The errors of the state machine.

/// An event that is not allowed in the current phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransitionError {
    /// The operation is done with another result.
    #[error("the operation is already done and its result cannot change; stop working on it")]
    AlreadyDone,
    /// The token is not that of a valid lease.
    #[error("the lease is lost: {0}; stop working on it")]
    LeaseLost(LeaseLostReason),
    /// Another worker holds the lease.
    #[error("another worker holds the lease")]
    LeaseHeld,
    /// The earliest start of the next attempt lies in the future.
    #[error("the next attempt must not start yet")]
    NotReady,
}

/// The reason why a lease is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseLostReason {
    /// The lease was not renewed in time.
    #[error("it expired: no heartbeat arrived in time")]
    Expired,
    /// The operation is pending again.
    #[error("the operation went back to its queue")]
    Requeued,
    /// The token belongs to another attempt.
    #[error("another attempt holds the current lease")]
    Superseded,
}
