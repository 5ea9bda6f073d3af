//! What every transport makes of a request before it asks the handle: the name
//! to look up, and how long a wait may take.

use std::time::Duration;

use crate::{
    clock::parse_duration,
    error::{Error, Result},
    operation::name::{InvalidName, OperationName},
};

/// How much earlier than the client's deadline a wait answers: 2 % of it, and
/// this at the least and at the most. If the server's own timer won, tonic
/// would answer CANCELLED, which means "the operation was cancelled".
const MIN_DEADLINE_MARGIN: Duration = Duration::from_millis(20);
const MAX_DEADLINE_MARGIN: Duration = Duration::from_millis(500);

/// How long waits last.
#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    /// Without a timeout and without a deadline. Default 30 s.
    pub default_timeout: Duration,
    /// At the most. Default 10 min.
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
    /// How long a wait may take, so that it answers in time.
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

/// The name of an operation to look up. What cannot be a name belongs to no
/// operation, so that only the empty one is an invalid argument.
pub(crate) fn parse_lookup_name(name: String) -> Result<OperationName> {
    match OperationName::parse(name) {
        Ok(name) => Ok(name),
        Err(InvalidName::Malformed(name)) => Err(Error::not_found(name)),
        Err(error) => Err(error.into()),
    }
}

/// The `timeout` of a wait.
pub(crate) fn parse_timeout(timeout: prost_types::Duration) -> Result<Duration> {
    parse_duration(timeout).map_err(|error| Error::invalid("timeout", "INVALID_TIMEOUT", error))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn negative_or_malformed_wait_timeout_is_rejected() {
        let parse = |seconds, nanos| parse_timeout(prost_types::Duration { seconds, nanos });
        assert_eq!(parse(1, 500_000_000).unwrap(), Duration::from_millis(1500));
        let longest = 315_576_000_000;
        assert_eq!(parse(longest, 0).unwrap().as_secs(), 315_576_000_000);
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
