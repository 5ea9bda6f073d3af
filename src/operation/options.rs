//! The execution options of an operation, fixed at its creation.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    name::excerpt,
    retry::{InvalidRetryPolicy, RetryPolicy},
};

/// The name of a queue: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName(Arc<str>);

/// A malformed queue name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid queue name {0:?}: use 1 to 63 of A-Z, a-z, 0-9, ., _ and -, starting with a letter or digit"
)]
pub struct InvalidQueueName(String);

/// The timeouts, retries and retention of an operation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ExecutionOptions {
    /// The queue, or `None` if the creator executes the operation. Ignored in the
    /// defaults of a server: [`NewOperation`](crate::NewOperation) names it.
    pub queue: Option<QueueName>,
    /// The priority: higher is leased first. Default 0.
    pub priority: i32,
    /// The maximum time from creation to completion. When exceeded, the operation
    /// fails with DEADLINE_EXCEEDED. Default: no limit.
    pub total_timeout: Option<Duration>,
    /// The maximum time of one attempt. When exceeded, the attempt fails. Default:
    /// no limit.
    pub attempt_timeout: Option<Duration>,
    /// The time from a heartbeat to the expiry of the lease, at least 1 s. Default 30 s.
    pub lease_duration: Duration,
    /// The retry policy. Default: one attempt.
    pub retry_policy: RetryPolicy,
    /// The time from completion to deletion. Default 24 h.
    pub retention: Duration,
    /// The time after a requested cancellation at which the server finishes the
    /// operation as cancelled. Default: none; the server waits for the worker.
    pub cancel_grace_period: Option<Duration>,
}

/// Execution options that are out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidExecutionOptions {
    /// The lease duration is below 1 s.
    #[error("lease_duration {0:?} is too short: use at least 1s")]
    LeaseDuration(Duration),
    /// A timeout, whose field is named, is zero.
    #[error("{0} must be greater than 0; leave it unset for no limit")]
    ZeroTimeout(&'static str),
    /// The retry policy is out of range.
    #[error("invalid retry policy: {0}")]
    RetryPolicy(#[from] InvalidRetryPolicy),
}

// === impl ExecutionOptions ===

impl Default for ExecutionOptions {
    fn default() -> Self {
        Self {
            queue: None,
            priority: 0,
            total_timeout: None,
            attempt_timeout: None,
            lease_duration: Duration::from_secs(30),
            retry_policy: RetryPolicy::default(),
            retention: Duration::from_secs(24 * 60 * 60),
            cancel_grace_period: None,
        }
    }
}

impl ExecutionOptions {
    /// Sets the priority.
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the maximum time from creation to completion.
    #[must_use]
    pub fn with_total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(timeout);
        self
    }

    /// Sets the maximum time of one attempt.
    #[must_use]
    pub fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Sets the time from a heartbeat to the expiry of the lease.
    #[must_use]
    pub fn with_lease_duration(mut self, duration: Duration) -> Self {
        self.lease_duration = duration;
        self
    }

    /// Sets the retry policy.
    #[must_use]
    pub fn with_retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry_policy = policy;
        self
    }

    /// Sets the time from completion to deletion.
    #[must_use]
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Sets the time that a worker has to stop after a requested cancellation.
    #[must_use]
    pub fn with_cancel_grace_period(mut self, grace_period: Duration) -> Self {
        self.cancel_grace_period = Some(grace_period);
        self
    }

    /// Validates the lease duration, the timeouts and the retry policy.
    pub(crate) fn check(&self) -> Result<(), InvalidExecutionOptions> {
        if self.lease_duration < Duration::from_secs(1) {
            return Err(InvalidExecutionOptions::LeaseDuration(self.lease_duration));
        }
        if self.total_timeout == Some(Duration::ZERO) {
            return Err(InvalidExecutionOptions::ZeroTimeout("total_timeout"));
        }
        if self.attempt_timeout == Some(Duration::ZERO) {
            return Err(InvalidExecutionOptions::ZeroTimeout("attempt_timeout"));
        }
        Ok(self.retry_policy.check()?)
    }
}

// === impl QueueName ===

impl QueueName {
    /// Parses a queue name.
    ///
    /// # Errors
    /// [`InvalidQueueName`] if it is malformed.
    pub fn parse(text: &str) -> Result<Self, InvalidQueueName> {
        let is_allowed_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let starts_alphanumeric = text
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric);
        if text.len() <= 63 && starts_alphanumeric && text.bytes().all(is_allowed_byte) {
            return Ok(Self(text.into()));
        }
        Err(InvalidQueueName(excerpt(text)))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: NAME-7
    #[test]
    fn queue_name_over_63_bytes_or_with_invalid_bytes_is_rejected() {
        for valid in ["checksum", "A.b-c_9", "0"] {
            assert_eq!(QueueName::parse(valid).unwrap().as_str(), valid);
        }
        for invalid in ["", ".a", "a b", "é", &"q".repeat(64)] {
            assert!(QueueName::parse(invalid).is_err(), "{invalid:?}");
        }
    }

    // Rules: CREATE-10
    #[test]
    fn lease_duration_below_1_s_and_zero_timeouts_are_rejected() {
        let valid = ExecutionOptions::default();
        assert_eq!(valid.lease_duration, Duration::from_secs(30));
        assert_eq!(valid.retention, Duration::from_secs(86_400));
        assert_eq!(valid.check(), Ok(()));
        let zero = Some(Duration::ZERO);
        for invalid in [
            ExecutionOptions {
                lease_duration: Duration::from_millis(999),
                ..valid.clone()
            },
            ExecutionOptions {
                total_timeout: zero,
                ..valid.clone()
            },
            ExecutionOptions {
                attempt_timeout: zero,
                ..valid.clone()
            },
            ExecutionOptions {
                retry_policy: RetryPolicy::with_max_attempts(0),
                ..valid.clone()
            },
        ] {
            assert!(invalid.check().is_err(), "{invalid:?}");
        }
    }
}
