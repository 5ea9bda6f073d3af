//! Parsing of request parameters that several calls share.

use std::time::Duration;

use prost_types::Any;

use crate::{
    clock::parse_duration,
    error::{Error, Result},
    operation::{
        name::{InvalidName, OperationName},
        payload::Payload,
    },
};

/// The bounds of the margin before the client's deadline at which a wait returns.
/// Without a margin tonic's own timer could win, and would answer CANCELLED, which
/// reads as "the operation was cancelled".
const MIN_DEADLINE_MARGIN: Duration = Duration::from_millis(20);
const MAX_DEADLINE_MARGIN: Duration = Duration::from_millis(500);

/// The default and the maximum timeout of waits.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct WaitLimits {
    /// The timeout of requests without a timeout and a deadline. Default 30 s.
    pub default_timeout: Duration,
    /// The maximum timeout. Default 10 min.
    pub max_timeout: Duration,
}

// === impl WaitLimits ===

impl Default for WaitLimits {
    fn default() -> Self {
        Self {
            default_timeout: Duration::from_secs(30),
            max_timeout: Duration::from_secs(600),
        }
    }
}

impl WaitLimits {
    /// Sets the timeout of requests without a timeout and a deadline.
    #[must_use]
    pub fn with_default_timeout(mut self, timeout: Duration) -> Self {
        self.default_timeout = timeout;
        self
    }

    /// Sets the maximum timeout.
    #[must_use]
    pub fn with_max_timeout(mut self, timeout: Duration) -> Self {
        self.max_timeout = timeout;
        self
    }

    /// Returns the time after which a wait must return: `timeout`, but before the
    /// client's `deadline`, and at most `max_timeout`.
    pub(crate) fn effective_timeout(
        self,
        timeout: Option<Duration>,
        deadline: Option<Duration>,
    ) -> Duration {
        let deadline = deadline.map(|deadline| {
            let margin = (deadline / 50).clamp(MIN_DEADLINE_MARGIN, MAX_DEADLINE_MARGIN);
            deadline.saturating_sub(margin)
        });
        let requested = match (timeout, deadline) {
            (Some(timeout), Some(deadline)) => timeout.min(deadline),
            (Some(limit), None) | (None, Some(limit)) => limit,
            (None, None) => self.default_timeout,
        };
        requested.min(self.max_timeout)
    }
}

/// Parses the name of an operation to look up.
///
/// # Errors
/// NOT_FOUND for a malformed name, which no operation can have; INVALID_ARGUMENT
/// for an empty one.
pub(crate) fn parse_lookup_name(name: String) -> Result<OperationName> {
    match OperationName::parse(name) {
        Ok(name) => Ok(name),
        Err(InvalidName::Malformed(name)) => Err(Error::not_found(name)),
        Err(error) => Err(error.into()),
    }
}

/// Parses the duration in `field`, if there is one.
///
/// # Errors
/// INVALID_ARGUMENT with `reason` if it is negative or malformed.
pub(crate) fn parse_duration_field(
    field: &'static str,
    reason: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Duration>> {
    let duration = duration.map(parse_duration).transpose();
    duration.map_err(|error| Error::invalid(field, reason, error))
}

/// Parses the `Any` in `field`, if there is one.
///
/// # Errors
/// INVALID_ARGUMENT if its type URL is malformed.
pub(crate) fn parse_payload(field: &'static str, any: Option<Any>) -> Result<Option<Payload>> {
    let payload = any.map(Payload::new).transpose();
    payload.map_err(|error| Error::invalid(field, "INVALID_ANY", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: WAIT-5
    #[test]
    fn wait_ends_20_to_500_ms_before_client_deadline() {
        let limits = WaitLimits::default();
        let ms = Duration::from_millis;
        assert_eq!(limits.effective_timeout(None, Some(ms(300))), ms(280));
        assert_eq!(limits.effective_timeout(None, Some(ms(10))), ms(0));
        assert_eq!(limits.effective_timeout(None, Some(ms(5_000))), ms(4_900));
        assert_eq!(
            limits.effective_timeout(None, Some(ms(100_000))),
            ms(99_500)
        );
        assert_eq!(
            limits.effective_timeout(Some(ms(50)), Some(ms(300))),
            ms(50)
        );
    }

    // Rules: WAIT-3, WAIT-6
    #[test]
    fn wait_without_timeout_uses_default_and_never_exceeds_max_timeout() {
        let limits = WaitLimits::default();
        assert_eq!(
            limits.effective_timeout(None, None),
            Duration::from_secs(30)
        );
        assert_eq!(
            limits.effective_timeout(Some(Duration::MAX), None),
            Duration::from_secs(600)
        );
        assert_eq!(
            limits.effective_timeout(None, Some(Duration::from_secs(86_400))),
            Duration::from_secs(600)
        );
        assert_eq!(
            limits.effective_timeout(Some(Duration::ZERO), None),
            Duration::ZERO
        );
    }

    // Rules: WAIT-7
    #[test]
    fn negative_or_malformed_wait_timeout_is_rejected() {
        let parse = |seconds, nanos| {
            let timeout = prost_types::Duration { seconds, nanos };
            parse_duration_field("timeout", "INVALID_TIMEOUT", Some(timeout))
        };
        let parsed = parse(1, 500_000_000).unwrap();
        assert_eq!(parsed, Some(Duration::from_millis(1500)));
        let longest = 315_576_000_000;
        let parsed = parse(longest, 0).unwrap();
        assert_eq!(parsed, Some(Duration::from_secs(315_576_000_000)));
        for (seconds, nanos) in [
            (-1, 0),
            (0, -1),
            (1, -1),
            (-1, 1),
            (0, 1_000_000_000),
            (longest + 1, 0),
            (i64::MIN, i32::MIN),
        ] {
            assert_eq!(
                parse(seconds, nanos).unwrap_err().reason(),
                "INVALID_TIMEOUT"
            );
        }
    }
}
