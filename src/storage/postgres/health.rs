//! Since when the database has been within reach. Who could not reach it cannot
//! have renewed a lease, so that leases are judged by this.

use std::{mem, time::Duration};

use parking_lot::Mutex;
use tracing::warn;

use crate::{
    clock::{Clock, Timestamp},
    storage::StorageStatus,
};

/// It is asked what is new at least every second. If nothing was heard for longer
/// than this, the database was silent, or we were paused.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// How far our clock may be ahead of that of the database before it is said.
const MAX_CLOCK_LEAD: Duration = Duration::from_secs(1);

/// When the database was within reach.
#[derive(Debug)]
pub(super) struct DatabaseHealth {
    clock: Clock,
    state: Mutex<HealthState>,
}

#[derive(Debug)]
struct HealthState {
    /// Without a break.
    available_since: Timestamp,
    /// When the last answer came.
    last_success: Timestamp,
    /// Up to when all that was changed has been read.
    applied_through: Timestamp,
    /// It was said that our clock is ahead.
    is_clock_lead_logged: bool,
    /// Why what was asked last got no answer.
    read_error: Option<String>,
}

// === impl Contact ===

impl DatabaseHealth {
    /// It begins now.
    pub(super) fn new(clock: Clock) -> Self {
        let now = clock.now();
        Self {
            clock,
            state: Mutex::new(HealthState {
                available_since: now,
                last_success: now,
                applied_through: now,
                is_clock_lead_logged: false,
                read_error: None,
            }),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// It said what was new when it was asked at that time; tells whether it had
    /// been out of reach.
    pub(super) fn record_success(&self, requested_at: Timestamp) -> bool {
        let (mut state, now) = (self.state.lock(), self.now());
        state.available_since = state.available_since(now);
        state.last_success = now;
        state.applied_through = requested_at;
        state.read_error.take().is_some()
    }

    /// Its clock showed `theirs` after it was asked: ours cannot be behind that, and
    /// was ahead if it showed more when we asked.
    pub(super) fn observe_server_time(&self, requested_at: Timestamp, server_time: Timestamp) {
        self.clock.advance_to(server_time);
        let mut state = self.state.lock();
        let lead = requested_at.since(server_time);
        if MAX_CLOCK_LEAD < lead && !mem::replace(&mut state.is_clock_lead_logged, true) {
            warn!(
                seconds = lead.as_secs_f64(),
                "the clock goes faster here than at the database, so that leases may end early; \
                 restart this server"
            );
        }
    }

    /// It did not answer, for this reason; tells whether it had until then.
    pub(super) fn record_failure(&self, error: String) -> bool {
        self.state.lock().read_error.replace(error).is_none()
    }

    /// It takes changes again.
    pub(super) fn reset_available_since(&self) {
        self.state.lock().available_since = self.now();
    }

    /// Since when there was no break, if there is none now; and up to when all that
    /// was changed has been read.
    pub(super) fn status(&self) -> StorageStatus {
        let state = self.state.lock();
        StorageStatus {
            available_since: state.available_since(self.now()),
            applied_through: state.applied_through,
        }
    }

    /// Why it cannot be read at present.
    pub(super) fn read_error(&self) -> Option<String> {
        self.state.lock().read_error.clone()
    }
}

// === impl Heard ===

impl HealthState {
    fn available_since(&self, now: Timestamp) -> Timestamp {
        if self.read_error.is_some() || MAX_SILENCE < now.since(self.last_success) {
            now
        } else {
            self.available_since
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn first_success_after_failure_resets_available_since() {
        let clock = Clock::system();
        let health = DatabaseHealth::new(clock);
        let started = clock.now();
        for _ in 0..10 {
            advance(SECOND).await;
            assert!(!health.record_success(clock.now()));
        }
        assert_eq!(health.status().available_since, started);
        assert!(health.record_failure("gone".to_owned()));
        advance(SECOND).await;
        assert!(!health.record_failure("still gone".to_owned()));
        assert_eq!(
            health.status().available_since,
            clock.now(),
            "it is not over"
        );
        assert_eq!(health.read_error().as_deref(), Some("still gone"));
        assert!(health.record_success(clock.now()));
        assert_eq!(health.read_error(), None);
        let recovered_at = clock.now();
        advance(SECOND).await;
        assert!(!health.record_success(recovered_at));
        assert_eq!(health.status().available_since, recovered_at);
        assert_eq!(health.status().applied_through, recovered_at);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_without_failure_resets_available_since() {
        let clock = Clock::system();
        let health = DatabaseHealth::new(clock);
        advance(2 * MAX_SILENCE).await;
        assert_eq!(health.status().available_since, clock.now());
        health.record_success(clock.now());
        assert_eq!(health.status().available_since, clock.now());
    }
}
