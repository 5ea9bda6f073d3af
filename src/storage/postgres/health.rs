//! Tracks the availability of the database. Leases do not expire for the time of an outage, in which they could not be
//! renewed.

use std::{mem, time::Duration};

use parking_lot::Mutex;
use tracing::warn;

use crate::{
    clock::{Clock, Timestamp},
    storage::StorageStatus,
};

/// The change log is read at least every second. After a longer silence, the database did not answer or this process
/// was paused.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// How far the local clock may be ahead of the clock of the database without a warning.
const MAX_CLOCK_LEAD: Duration = Duration::from_secs(1);

/// The availability of the database, as this server sees it.
#[derive(Debug)]
pub(super) struct DatabaseHealth {
    clock: Clock,
    state: Mutex<HealthState>,
}

#[derive(Debug)]
struct HealthState {
    /// The start of the current period without interruption.
    available_since: Timestamp,
    /// When the change log was read last.
    last_success: Timestamp,
    /// The time up to which all changes were applied.
    applied_through: Timestamp,
    is_clock_lead_logged: bool,
    /// Why the change log could not be read, or `None` after a success.
    read_error: Option<String>,
}

// === impl DatabaseHealth ===

impl DatabaseHealth {
    /// Returns the health of a database that is available since now.
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

    /// Returns the time of the shared clock.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Records that all changes from before `requested_at` are applied. Returns `true` if this ends a failure.
    pub(super) fn record_success(&self, requested_at: Timestamp) -> bool {
        let (mut state, now) = (self.state.lock(), self.now());
        state.available_since = state.available_since(now);
        state.last_success = now;
        state.applied_through = requested_at;
        state.read_error.take().is_some()
    }

    /// Advances the shared clock to a time that the database sent, and warns once if it is ahead: the database read
    /// its clock after `requested_at`.
    pub(super) fn observe_server_time(&self, requested_at: Timestamp, server_time: Timestamp) {
        self.clock.advance_to(server_time);
        let mut state = self.state.lock();
        let lead = requested_at.since(server_time);
        if lead > MAX_CLOCK_LEAD && !mem::replace(&mut state.is_clock_lead_logged, true) {
            warn!(
                lead_secs = lead.as_secs_f64(),
                "local clock is ahead of the database clock; leases may expire early; restart this server"
            );
        }
    }

    /// Records that the change log could not be read. Returns `true` for the first failure after a success.
    pub(super) fn record_failure(&self, error: String) -> bool {
        self.state.lock().read_error.replace(error).is_none()
    }

    /// Records that the database accepts writes again.
    pub(super) fn reset_available_since(&self) {
        self.state.lock().available_since = self.now();
    }

    /// Returns the availability, which begins now during an interruption.
    pub(super) fn status(&self) -> StorageStatus {
        let state = self.state.lock();
        StorageStatus {
            available_since: state.available_since(self.now()),
            applied_through: state.applied_through,
        }
    }

    /// Returns why the change log cannot be read at present, or `None` if it can.
    pub(super) fn read_error(&self) -> Option<String> {
        self.state.lock().read_error.clone()
    }
}

// === impl HealthState ===

impl HealthState {
    fn available_since(&self, now: Timestamp) -> Timestamp {
        if self.read_error.is_some() || now.since(self.last_success) > MAX_SILENCE {
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
            "expected the failure to last"
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
