//! Pauses of the process: SIGSTOP, a frozen container, the migration of a virtual machine. Workers cannot renew their
//! leases meanwhile.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a jump of paused time in a test is no pause"
)]

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::warn;

/// How often the monitor shows that the process runs.
const TICK_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest gap between two ticks that counts as a pause.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// The monitor of this process, once it is started. A pause concerns every store in it.
static MONITOR: OnceLock<PauseMonitor> = OnceLock::new();

/// Notices pauses by a thread whose ticks are missing. Times are nanoseconds since `started_at`.
#[derive(Debug)]
struct PauseMonitor {
    started_at: Instant,
    ticked_at_ns: AtomicU64,
    /// The end of the last pause, or 0 before the first.
    resumed_at_ns: AtomicU64,
}

/// Starts the monitor of this process, unless it runs.
///
/// # Errors
/// The operating system has no thread left.
pub(super) fn start_monitor() -> io::Result<()> {
    if MONITOR.get().is_some() {
        return Ok(());
    }
    let thread = thread::Builder::new().name("pause-monitor".to_owned());
    thread.spawn(|| {
        let monitor = PauseMonitor::new(Instant::now());
        // Two stores that open at the same time start one thread each.
        if MONITOR.set(monitor).is_err() {
            return;
        }
        while let Some(monitor) = MONITOR.get() {
            thread::sleep(TICK_INTERVAL);
            if let Some(pause) = monitor.tick(Instant::now()) {
                let duration_secs = pause.as_secs_f64();
                warn!(
                    duration_secs,
                    "process was paused; leases that ended meanwhile are extended"
                );
            }
        }
    })?;
    Ok(())
}

/// Returns when the last pause of this process ended, which may be now. Returns `None` if there was none.
pub(super) fn last_pause_end() -> Option<Instant> {
    MONITOR.get()?.last_pause_end(Instant::now())
}

// === impl PauseMonitor ===

impl PauseMonitor {
    fn new(now: Instant) -> Self {
        Self {
            started_at: now,
            ticked_at_ns: AtomicU64::new(0),
            resumed_at_ns: AtomicU64::new(0),
        }
    }

    /// Shows that the process runs. Returns the duration of the pause that has just ended, if there was one.
    fn tick(&self, now: Instant) -> Option<Duration> {
        let pause = self.current_pause(now);
        if pause.is_some() {
            self.resumed_at_ns.store(self.nanos(now), Relaxed);
        }
        self.ticked_at_ns.store(self.nanos(now), Relaxed);
        pause
    }

    fn last_pause_end(&self, now: Instant) -> Option<Instant> {
        // The process runs again, but the thread has not ticked yet.
        if self.current_pause(now).is_some() {
            return Some(now);
        }
        match self.resumed_at_ns.load(Relaxed) {
            0 => None,
            resumed_at => Some(self.started_at + Duration::from_nanos(resumed_at)),
        }
    }

    /// Returns the time since the last tick, if it is long enough for a pause.
    fn current_pause(&self, now: Instant) -> Option<Duration> {
        let ticked_at = Duration::from_nanos(self.ticked_at_ns.load(Relaxed));
        let since_tick = now.saturating_duration_since(self.started_at + ticked_at);
        (since_tick >= MIN_PAUSE).then_some(since_tick)
    }

    fn nanos(&self, at: Instant) -> u64 {
        let since_start = at.saturating_duration_since(self.started_at);
        u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_ticks_are_a_pause_until_first_call_after_it() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let monitor = PauseMonitor::new(start);
        for millis in (500..5_000).step_by(500) {
            assert_eq!(monitor.tick(at(millis)), None);
            assert_eq!(monitor.last_pause_end(at(millis + 400)), None);
        }
        // Stopped after the tick at 4.5 s. A call may come before the next tick.
        assert_eq!(monitor.last_pause_end(at(60_000)), Some(at(60_000)));
        assert_eq!(
            monitor.tick(at(60_001)),
            Some(Duration::from_millis(55_501))
        );
        assert_eq!(monitor.last_pause_end(at(60_100)), Some(at(60_001)));
        assert_eq!(monitor.tick(at(60_500)), None);
        assert_eq!(monitor.last_pause_end(at(60_900)), Some(at(60_001)));
    }
}
