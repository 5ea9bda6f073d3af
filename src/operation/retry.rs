//! When and how often a failed attempt is tried again.

use std::time::Duration;

/// The longest pause that is accepted.
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(366 * 86_400);

/// Exponential backoff with a bound on the attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; at least 1. Default 1: no retry.
    pub max_attempts: u32,
    /// The pause after the first failed attempt. Default 1 s.
    pub initial_backoff: Duration,
    /// The longest pause, at most 366 days. Default 60 s.
    pub max_backoff: Duration,
    /// How much longer each pause is than the one before; at least 1. Default 2.
    pub multiplier: f64,
    /// The part of the pause that is random, 0.0 to 1.0. Default 0.2: a pause
    /// of 10 s becomes 8 to 10 s.
    pub jitter: f64,
}

/// A value of a retry policy is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRetryPolicy(&'static str);

// === impl RetryPolicy ===

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 1,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(60),
            multiplier: 2.0,
            jitter: 0.2,
        }
    }
}

impl RetryPolicy {
    /// This many attempts, with the default pauses.
    pub fn with_max_attempts(max_attempts: u32) -> Self {
        Self {
            max_attempts,
            ..Self::default()
        }
    }

    pub(crate) fn check(&self) -> Result<(), InvalidRetryPolicy> {
        if self.max_attempts == 0 {
            return Err(InvalidRetryPolicy("max_attempts must be at least 1"));
        }
        if !(1.0..=1000.0).contains(&self.multiplier) {
            return Err(InvalidRetryPolicy("the multiplier must be 1 to 1000"));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(InvalidRetryPolicy("the jitter must be 0.0 to 1.0"));
        }
        if MAX_BACKOFF < self.max_backoff {
            return Err(InvalidRetryPolicy("max_backoff must be at most 366 days"));
        }
        if self.max_backoff < self.initial_backoff {
            return Err(InvalidRetryPolicy(
                "max_backoff must not be below initial_backoff",
            ));
        }
        Ok(())
    }

    /// The pause after `attempts` attempts; `fraction` (0.0..1.0) places it
    /// within the jitter.
    pub(crate) fn backoff(&self, attempts: u32, jitter_fraction: f64) -> Duration {
        let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let factor = self.multiplier.powi(exponent).min(f64::from(u32::MAX));
        let delay = Duration::try_from_secs_f64(self.initial_backoff.as_secs_f64() * factor);
        let delay = delay.unwrap_or(Duration::MAX).min(self.max_backoff);
        delay.mul_f64(1.0 - self.jitter * jitter_fraction)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn backoff_grows_by_multiplier_up_to_max_backoff() {
        let policy = RetryPolicy {
            jitter: 0.0,
            max_backoff: Duration::from_secs(5),
            ..RetryPolicy::with_max_attempts(9)
        };
        let delays: Vec<u64> = (1..=5).map(|n| policy.backoff(n, 0.9).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5]);
    }

    #[test]
    fn out_of_range_retry_policy_is_rejected() {
        let good = RetryPolicy::default();
        assert!(good.check().is_ok());
        for bad in [
            RetryPolicy {
                max_attempts: 0,
                ..good.clone()
            },
            RetryPolicy {
                multiplier: 0.5,
                ..good.clone()
            },
            RetryPolicy {
                multiplier: f64::NAN,
                ..good.clone()
            },
            RetryPolicy {
                jitter: 1.1,
                ..good.clone()
            },
            RetryPolicy {
                max_backoff: Duration::MAX,
                ..good.clone()
            },
            RetryPolicy {
                max_backoff: Duration::ZERO,
                ..good.clone()
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn backoff_stays_within_jitter_and_max_backoff(attempts: u32, fraction in 0.0..1.0f64, jitter in 0.0..=1.0f64) {
            let policy = RetryPolicy { jitter, ..RetryPolicy::with_max_attempts(u32::MAX) };
            let delay = policy.backoff(attempts, fraction);
            prop_assert!(delay <= policy.max_backoff);
            prop_assert!(policy.initial_backoff.mul_f64(1.0 - jitter) <= delay + Duration::from_nanos(2));
        }
    }
}
