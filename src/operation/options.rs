//! The terms of an operation: what its creator fixed for its whole life. Many
//! operations share one set, so it stands behind an `Arc`.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    name::excerpt,
    retry::{InvalidRetryPolicy, RetryPolicy},
};

/// The name of a queue: `[A-Za-z0-9]([A-Za-z0-9._-]{0,62})`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName(Arc<str>);

/// Timeouts, retries and retention of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecutionOptions {
    /// The queue it waits in; none if its creator executes it. Comes from
    /// [`NewOperation`](crate::NewOperation); as a default it means nothing.
    pub queue: Option<QueueName>,
    /// Higher is leased first. Default 0.
    pub priority: i32,
    /// From create to done; over → DEADLINE_EXCEEDED. Default none.
    pub total_timeout: Option<Duration>,
    /// One attempt; over → the attempt has failed. Default none.
    pub attempt_timeout: Option<Duration>,
    /// How long a worker may be silent. Default 30 s, at least 1 s.
    pub lease_duration: Duration,
    /// What happens after a failed attempt. Default: nothing, one attempt.
    pub retry_policy: RetryPolicy,
    /// How long a done operation can be read. Default 24 h.
    pub retention: Duration,
    /// How long after a cancellation the server waits for the worker before it
    /// closes the operation itself. Default none: it waits for the worker.
    pub cancel_grace_period: Option<Duration>,
}

/// Why terms are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidExecutionOptions {
    /// The queue's name has another form.
    #[error(
        "{0:?} is not a queue name: use 1 to 63 of A-Z, a-z, 0-9, ., _ and -, beginning with a letter or digit"
    )]
    Queue(String),
    /// The lease is too short to be renewed in time.
    #[error("a lease_duration of {0:?} is too short: use at least 1s")]
    LeaseDuration(Duration),
    /// A timeout of zero is over before it begins.
    #[error("{0} must be more than 0; leave it out for no limit")]
    ZeroTimeout(&'static str),
    /// The retry policy is out of range.
    #[error("the retry policy is out of range: {0}")]
    RetryPolicy(#[from] InvalidRetryPolicy),
}

// === impl Terms ===

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
    /// The queue it waits in; none if its creator executes it.
    pub fn queue(&self) -> Option<&QueueName> {
        self.queue.as_ref()
    }

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
    /// Parses a queue's name.
    ///
    /// # Errors
    /// [`InvalidTerms::Queue`] if it has another form.
    pub fn parse(text: &str) -> Result<Self, InvalidExecutionOptions> {
        let is_allowed_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let starts_alphanumeric = text
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric);
        if text.len() <= 63 && starts_alphanumeric && text.bytes().all(is_allowed_byte) {
            return Ok(Self(text.into()));
        }
        Err(InvalidExecutionOptions::Queue(excerpt(text)))
    }

    /// The name.
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

    #[test]
    fn queue_name_over_63_bytes_or_with_invalid_bytes_is_rejected() {
        for good in ["checksum", "A.b-c_9", "0"] {
            assert_eq!(QueueName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".a", "a b", "é", &"q".repeat(64)] {
            assert!(QueueName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lease_duration_below_1_s_and_zero_timeouts_are_rejected() {
        let good = ExecutionOptions::default();
        assert_eq!(good.lease_duration, Duration::from_secs(30));
        assert_eq!(good.retention, Duration::from_secs(86_400));
        assert_eq!(good.check(), Ok(()));
        let zero = Some(Duration::ZERO);
        for bad in [
            ExecutionOptions {
                lease_duration: Duration::from_millis(999),
                ..good.clone()
            },
            ExecutionOptions {
                total_timeout: zero,
                ..good.clone()
            },
            ExecutionOptions {
                attempt_timeout: zero,
                ..good.clone()
            },
            ExecutionOptions {
                retry_policy: RetryPolicy::with_max_attempts(0),
                ..good.clone()
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
