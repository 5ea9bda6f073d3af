//! The one clock: wall time hung on tokio's `Instant`, so that a test that
//! pauses and advances tokio's time moves leases, retention and timestamps
//! together. Nothing else in the crate reads time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// A point in time: nanoseconds since 1970-01-01T00:00:00Z, good until 2262.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z, the first and last second that
/// protobuf and JSON know.
const FIRST_SECOND: i64 = -62_135_596_800;
const LAST_SECOND: i64 = 253_402_300_799;
/// The longest duration that protobuf knows, in seconds.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;

/// How often to look at a clock that may be put forward.
const MAX_SLEEP: Duration = Duration::from_secs(5);

/// A `google.protobuf.Duration` that is negative, too long or malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{seconds}s and {nanos}ns is not a duration of 0 to {MAX_DURATION_SECONDS} seconds")]
pub(crate) struct InvalidDuration {
    seconds: i64,
    nanos: i32,
}

/// Tells the time. Cheap to copy; all copies of one clock agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    anchor: Instant,
    wall: Timestamp,
    /// By how many nanoseconds it was put forward since. Clocks are copied and live as
    /// long as the process, and so does this.
    offset_ns: Option<&'static AtomicU64>,
}

// === impl Clock ===

impl Clock {
    /// A clock that reads the system's wall time once, now, and from then on
    /// follows the monotonic clock.
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

    /// The same clock, put forward to `time` if it is behind that.
    pub(crate) fn not_before(self, time: Timestamp) -> Self {
        Self {
            wall: self.wall + time.since(self.now()),
            ..self
        }
    }

    /// A clock that shows `time` now, and can be put forward.
    #[cfg(feature = "postgres")]
    pub(crate) fn adjustable_from(time: Timestamp) -> Self {
        Self {
            anchor: Instant::now(),
            wall: time,
            offset_ns: Some(Box::leak(Box::default())),
        }
    }

    /// Puts it and all of its copies forward to `time`, if they are behind that.
    #[cfg(feature = "postgres")]
    pub(crate) fn advance_to(&self, time: Timestamp) {
        let behind = u64::try_from(time.since(self.now()).as_nanos()).unwrap_or(0);
        if let Some(offset_ns) = self.offset_ns {
            offset_ns.fetch_add(behind, Ordering::Relaxed);
        }
    }

    /// By how much it was put forward.
    fn offset(&self) -> Duration {
        let offset_ns = self
            .offset_ns
            .map(|offset_ns| offset_ns.load(Ordering::Relaxed));
        Duration::from_nanos(offset_ns.unwrap_or(0))
    }

    /// The present time. Never runs backwards.
    pub fn now(&self) -> Timestamp {
        self.wall + self.offset() + self.anchor.elapsed()
    }

    /// The instant at which to look whether this clock shows `at`: not much later than
    /// it does if it is put forward meanwhile.
    pub(crate) fn wakeup_instant(&self, at: Timestamp) -> Instant {
        match self.offset_ns {
            Some(_) => self.instant_at(at).min(Instant::now() + MAX_SLEEP),
            None => self.instant_at(at),
        }
    }

    /// The instant at which this clock will show `at`.
    pub fn instant_at(&self, at: Timestamp) -> Instant {
        self.anchor + at.since(self.wall + self.offset())
    }
}

// === impl Timestamp ===

impl Timestamp {
    /// The time with this many nanoseconds since the epoch.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// The time with this many microseconds since the epoch.
    #[cfg(feature = "postgres")]
    pub(crate) const fn from_micros(micros: i64) -> Self {
        Self(micros.saturating_mul(1000))
    }

    /// Nanoseconds since the epoch.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        let nanos = self.0.saturating_sub(earlier.0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the end of time, so that an absurd timeout means "never".
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

/// Whether a timestamp is one of the years 1 to 9999, as protobuf has it.
pub(crate) fn is_valid_timestamp(time: &prost_types::Timestamp) -> bool {
    (FIRST_SECOND..=LAST_SECOND).contains(&time.seconds) && (0..=999_999_999).contains(&time.nanos)
}

/// A proper duration that is not negative.
pub(crate) fn parse_duration(duration: prost_types::Duration) -> Result<Duration, InvalidDuration> {
    let prost_types::Duration { seconds, nanos } = duration;
    let whole = u64::try_from(seconds).ok();
    let part = u32::try_from(nanos).ok();
    match (whole, part) {
        (Some(whole), Some(part @ 0..=999_999_999)) if seconds <= MAX_DURATION_SECONDS => {
            Ok(Duration::new(whole, part))
        }
        _ => Err(InvalidDuration { seconds, nanos }),
    }
}

/// The duration as protobuf has it; the longest one stands for what is longer.
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
