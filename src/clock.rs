//! Wall-clock time derived from tokio's `Instant`, so that tests with paused
//! time control leases, retention and timestamps together.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// A point in time: nanoseconds since 1970-01-01T00:00:00Z, up to the year 2262.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z: the range of
/// `google.protobuf.Timestamp`.
const MIN_TIMESTAMP_SECONDS: i64 = -62_135_596_800;
const MAX_TIMESTAMP_SECONDS: i64 = 253_402_300_799;
/// The longest `google.protobuf.Duration`.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;

/// Interval at which sleepers re-read an adjustable clock.
const MAX_SLEEP: Duration = Duration::from_secs(5);

/// Error for a `google.protobuf.Duration` that is negative, too long or malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration of {seconds} s and {nanos} ns; it must be 0 to {MAX_DURATION_SECONDS} s")]
pub(crate) struct InvalidDuration {
    seconds: i64,
    nanos: i32,
}

/// A monotonic wall clock. All copies of one clock show the same time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    anchor: Instant,
    wall: Timestamp,
    /// Offset of an adjustable clock, shared by its copies. Leaked, so that `Clock` is
    /// `Copy`: a process opens few stores.
    offset_ns: Option<&'static AtomicU64>,
}

// === impl Clock ===

impl Clock {
    /// Creates a clock that reads the system's wall time once and then follows the
    /// monotonic clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads wall time"
    )]
    pub fn system() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            anchor: Instant::now(),
            wall: Timestamp::default() + wall,
            offset_ns: None,
        }
    }

    /// Returns this clock, advanced to `time` if it is behind.
    pub(crate) fn not_before(self, time: Timestamp) -> Self {
        Self {
            wall: self.wall + time.since(self.now()),
            ..self
        }
    }

    /// Creates a clock that shows `time` now and supports `advance_to`.
    #[cfg(feature = "postgres")]
    pub(crate) fn adjustable_from(time: Timestamp) -> Self {
        Self {
            anchor: Instant::now(),
            wall: time,
            offset_ns: Some(Box::leak(Box::default())),
        }
    }

    /// Advances this clock and its copies to `time` if they are behind. Has no effect
    /// on a clock that is not adjustable.
    #[cfg(feature = "postgres")]
    pub(crate) fn advance_to(&self, time: Timestamp) {
        let behind = u64::try_from(time.since(self.now()).as_nanos()).unwrap_or(0);
        if let Some(offset_ns) = self.offset_ns {
            offset_ns.fetch_add(behind, Ordering::Relaxed);
        }
    }

    fn offset(&self) -> Duration {
        let load = |offset_ns: &AtomicU64| offset_ns.load(Ordering::Relaxed);
        Duration::from_nanos(self.offset_ns.map_or(0, load))
    }

    /// Returns the current time. Never decreases.
    pub fn now(&self) -> Timestamp {
        self.wall + self.offset() + self.anchor.elapsed()
    }

    /// Returns the instant at which to check whether this clock has reached `at`: for an
    /// adjustable clock at most `MAX_SLEEP` from now, because it may be advanced.
    pub(crate) fn wakeup_instant(&self, at: Timestamp) -> Instant {
        match self.offset_ns {
            Some(_) => self.instant_at(at).min(Instant::now() + MAX_SLEEP),
            None => self.instant_at(at),
        }
    }

    /// Returns the time that this clock shows at an instant, or its first one if that is earlier.
    pub(crate) fn timestamp_at(&self, at: Instant) -> Timestamp {
        self.wall + self.offset() + at.saturating_duration_since(self.anchor)
    }

    /// Returns the instant at which this clock shows `at`, or the clock's start if `at`
    /// is earlier.
    pub fn instant_at(&self, at: Timestamp) -> Instant {
        self.anchor + at.since(self.wall + self.offset())
    }
}

// === impl Timestamp ===

impl Timestamp {
    /// Creates a timestamp from nanoseconds since the epoch.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Creates a timestamp from microseconds since the epoch. Saturates.
    #[cfg(feature = "postgres")]
    pub(crate) const fn from_micros(micros: i64) -> Self {
        Self(micros.saturating_mul(1000))
    }

    /// Returns the nanoseconds since the epoch.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Returns the time elapsed since `earlier`, or zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        let nanos = self.0.saturating_sub(earlier.0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates in the year 2262, so that an extreme timeout never fires.
    fn add(self, duration: Duration) -> Self {
        let nanos = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl From<Timestamp> for prost_types::Timestamp {
    fn from(time: Timestamp) -> Self {
        Self {
            seconds: time.0.div_euclid(1_000_000_000),
            nanos: i32::try_from(time.0.rem_euclid(1_000_000_000)).unwrap_or(0),
        }
    }
}

/// Returns `true` if a timestamp is in the years 1 to 9999, the range of protobuf.
pub(crate) fn is_valid_timestamp(time: &prost_types::Timestamp) -> bool {
    (MIN_TIMESTAMP_SECONDS..=MAX_TIMESTAMP_SECONDS).contains(&time.seconds)
        && (0..=999_999_999).contains(&time.nanos)
}

/// Converts a protobuf duration.
pub(crate) fn parse_duration(duration: prost_types::Duration) -> Result<Duration, InvalidDuration> {
    let prost_types::Duration { seconds, nanos } = duration;
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(whole), Ok(part @ 0..=999_999_999)) if seconds <= MAX_DURATION_SECONDS => {
            Ok(Duration::new(whole, part))
        }
        _ => Err(InvalidDuration { seconds, nanos }),
    }
}

/// Converts to a protobuf duration. Saturates at its maximum.
pub(crate) fn to_proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration {
        seconds: MAX_DURATION_SECONDS,
        nanos: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clock_and_instants_follow_paused_tokio_time() {
        let clock = Clock::system();
        let before = clock.now();
        tokio::time::advance(Duration::from_secs(90)).await;
        let after = clock.now();
        assert_eq!(after.since(before), Duration::from_secs(90));
        assert_eq!(clock.instant_at(after), Instant::now());
    }

    #[cfg(feature = "postgres")]
    #[tokio::test(start_paused = true)]
    async fn advance_to_moves_all_copies_forward_and_never_back() {
        let clock = Clock::adjustable_from(Timestamp::from_nanos(1_000_000_000));
        let copy = clock;
        let (now, minute) = (clock.now(), Duration::from_secs(60));
        clock.advance_to(now + minute);
        assert_eq!(copy.now(), now + minute);
        assert_eq!(copy.instant_at(now + minute), Instant::now());
        clock.advance_to(now);
        assert_eq!(copy.now(), now + minute);
    }

    #[test]
    fn timestamp_addition_saturates_instead_of_wrapping() {
        let late = Timestamp::from_nanos(5) + Duration::MAX;
        assert_eq!(late.nanos(), i64::MAX);
        assert_eq!(Timestamp::from_nanos(3).since(late), Duration::ZERO);
    }
}
