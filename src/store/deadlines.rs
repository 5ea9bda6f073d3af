//! Deadlines: which operations time alone may change, and when: leases,
//! timeouts, pauses before a retry, retention. What then happens to them is
//! decided by the state machine.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tokio::{select, sync::Notify, time::sleep_until};

use crate::clock::{Clock, Timestamp};

/// Numbers of operations by the time at which to look at them. An entry is 8
/// bytes and is never removed early: a look that finds nothing due is cheap.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    due: Mutex<BTreeMap<Timestamp, Vec<u64>>>,
    earlier: Notify,
}

impl Deadlines {
    /// Asks for a look at `number` when `at` is over: at the next full quantum,
    /// which is at most 1/128 of the time until then and at least 1 ms, so that
    /// a million deadlines share a few thousand entries.
    pub(crate) fn arm(&self, number: u64, at: Timestamp, now: Timestamp) {
        if at.nanos() == i64::MAX {
            return;
        }
        let at = round_up(at, at.since(now));
        let mut due = self.due.lock();
        let first = due.keys().next().copied();
        due.entry(at).or_default().push(number);
        drop(due);
        if first.is_none_or(|first| at < first) {
            self.earlier.notify_one();
        }
    }

    /// Waits for the next deadlines and takes them out.
    pub(crate) async fn next(&self, clock: Clock) -> Vec<u64> {
        loop {
            let earlier = self.earlier.notified();
            let first = self.due.lock().keys().next().copied();
            match first {
                None => earlier.await,
                Some(at) if at <= clock.now() => return self.take(at),
                Some(at) => select! {
                    () = earlier => {}
                    () = sleep_until(clock.instant(at)) => {}
                },
            }
        }
    }

    fn take(&self, at: Timestamp) -> Vec<u64> {
        self.due.lock().remove(&at).unwrap_or_default()
    }
}

fn round_up(at: Timestamp, distance: Duration) -> Timestamp {
    let share = i64::try_from(distance.as_nanos() / 128).unwrap_or(i64::MAX);
    let quantum = if share < 1_000_000 {
        1_000_000
    } else {
        1 << share.ilog2()
    };
    let over = at.nanos().rem_euclid(quantum);
    if over == 0 {
        at
    } else {
        Timestamp::from_nanos(at.nanos().saturating_add(quantum - over))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_come_in_order_and_a_nearer_one_comes_first() {
        let (deadlines, clock) = (Deadlines::default(), Clock::system());
        let now = clock.now();
        deadlines.arm(1, now + Duration::from_secs(60), now);
        let mut next = Box::pin(deadlines.next(clock));
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        deadlines.arm(2, now + Duration::from_secs(1), now);
        assert_eq!(next.await, [2]);
        assert_eq!(deadlines.next(clock).await, [1]);
        assert!(clock.now().since(now) < Duration::from_secs(61));
    }

    proptest! {
        #[test]
        fn a_look_is_never_early_and_at_most_a_128th_late(millis in 0u64..100_000_000_000) {
            let now = Timestamp::from_nanos(1_790_000_000_123_456_789);
            let distance = Duration::from_millis(millis);
            let at = now + distance;
            let look = round_up(at, distance);
            prop_assert!(at <= look);
            prop_assert!(look.since(at) <= (distance / 128).max(Duration::from_millis(1)));
        }
    }
}
