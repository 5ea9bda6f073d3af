//! Retry policies: the number of attempts and the backoff between them.

use std::time::Duration;

/// The maximum of `max_backoff`.
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(366 * 86_400);

/// The limits of failed attempts and of lost workers, with exponential backoff after each.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// The maximum number of attempts that fail or exceed their timeout, including the last; at least 1. Default 1: a
    /// failure is final.
    pub max_attempts: u32,
    /// How often the operation is tried again after its worker was lost: the lease expired without a heartbeat.
    /// Lost workers do not count against `max_attempts`. Default 3; 0: never.
    pub max_worker_losses: u32,
    /// The delay after the first failed attempt, and after the first lost worker. Default 1 s.
    pub initial_backoff: Duration,
    /// The maximum delay, from `initial_backoff` to 366 days. Default 60 s.
    pub max_backoff: Duration,
    /// The factor by which the delay grows per attempt, 1 to 1000. Default 2.
    pub multiplier: f64,
    /// The random part of the delay, 0.0 to 1.0. Default 0.2: a delay of 10 s
    /// becomes 8 to 10 s.
    pub jitter: f64,
}

/// A [`RetryPolicy`] with a value out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRetryPolicy(&'static str);

// === impl RetryPolicy ===

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 1,
            max_worker_losses: 3,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(60),
            multiplier: 2.0,
            jitter: 0.2,
        }
    }
}

impl RetryPolicy {
    /// Makes a policy of `max_attempts` attempts with the default backoff.
    pub fn with_max_attempts(max_attempts: u32) -> Self {
        Self {
            max_attempts,
            ..Self::default()
        }
    }

    /// Sets how often the operation is tried again after its worker was lost.
    #[must_use]
    pub fn with_max_worker_losses(mut self, losses: u32) -> Self {
        self.max_worker_losses = losses;
        self
    }

    /// Sets the delay after the first failed attempt.
    #[must_use]
    pub fn with_initial_backoff(mut self, backoff: Duration) -> Self {
        self.initial_backoff = backoff;
        self
    }

    /// Sets the maximum delay.
    #[must_use]
    pub fn with_max_backoff(mut self, backoff: Duration) -> Self {
        self.max_backoff = backoff;
        self
    }

    /// Sets the factor by which the delay grows per attempt.
    #[must_use]
    pub fn with_multiplier(mut self, multiplier: f64) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// Sets the random part of the delay.
    #[must_use]
    pub fn with_jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    /// # Errors
    /// [`InvalidRetryPolicy`] for the first value out of range.
    pub(crate) fn check(&self) -> Result<(), InvalidRetryPolicy> {
        let problem = if self.max_attempts == 0 {
            "max_attempts must be at least 1"
        } else if !(1.0..=1000.0).contains(&self.multiplier) {
            "multiplier must be from 1 to 1000"
        } else if !(0.0..=1.0).contains(&self.jitter) {
            "jitter must be from 0.0 to 1.0"
        } else if self.max_backoff > MAX_BACKOFF {
            "max_backoff must be at most 366 days"
        } else if self.max_backoff < self.initial_backoff {
            "max_backoff must be at least initial_backoff"
        } else {
            return Ok(());
        };
        Err(InvalidRetryPolicy(problem))
    }

    /// Returns the delay after `attempts` attempts. `jitter_fraction` in 0.0..1.0
    /// selects the value within the jitter.
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

    // Rules: STATE-5
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

    // Rules: CREATE-10
    #[test]
    fn out_of_range_retry_policy_is_rejected() {
        let valid = RetryPolicy::default();
        assert!(valid.check().is_ok());
        for invalid in [
            RetryPolicy {
                max_attempts: 0,
                ..valid.clone()
            },
            RetryPolicy {
                multiplier: 0.5,
                ..valid.clone()
            },
            RetryPolicy {
                multiplier: f64::NAN,
                ..valid.clone()
            },
            RetryPolicy {
                jitter: 1.1,
                ..valid.clone()
            },
            RetryPolicy {
                max_backoff: Duration::MAX,
                ..valid.clone()
            },
            RetryPolicy {
                max_backoff: Duration::ZERO,
                ..valid.clone()
            },
        ] {
            assert!(invalid.check().is_err(), "{invalid:?}");
        }
    }

    proptest! {
        // Rules: STATE-5
        #[test]
        fn backoff_stays_within_jitter_and_max_backoff(attempts: u32, fraction in 0.0..1.0f64, jitter in 0.0..=1.0f64) {
            let policy = RetryPolicy { jitter, ..RetryPolicy::with_max_attempts(u32::MAX) };
            let delay = policy.backoff(attempts, fraction);
            prop_assert!(delay <= policy.max_backoff);
            prop_assert!(delay + Duration::from_nanos(2) >= policy.initial_backoff.mul_f64(1.0 - jitter));
        }
    }
}
