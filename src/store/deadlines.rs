//! Deadlines: which operations time alone may change, and when: leases,
//! timeouts, pauses before a retry, retention. What then happens to them is
//! decided by the state machine.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tokio::{select, sync::Notify, time::sleep_until};

use crate::clock::{Clock, Timestamp};

/// The coarsest quantum of a deadline that somebody waits for: 2^26 ns, 67 ms.
const FINE: u32 = 26;
/// The coarsest quantum of retention: 2^40 ns, 18 minutes.
const COARSE: u32 = 40;

/// How many deadlines are taken out together, so that none waits long for its
/// turn when many are over.
const AT_ONCE: usize = 4096;

/// Numbers of operations by the time at which to look at them. An entry is 8
/// bytes; one that is not due any more costs a look, and goes with a sweep if
/// its operation is gone.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    book: Mutex<Book>,
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Book {
    due: BTreeMap<Timestamp, Vec<u64>>,
    entries: usize,
    /// How many entries the last sweep left.
    swept: usize,
}

impl Deadlines {
    /// Asks for a look at `number` when `at` is over: at the next full quantum,
    /// which is about 1/128 of the time until then, at least 1 ms and at most
    /// 67 ms, or 18 minutes for retention, so that a million deadlines share a
    /// few thousand entries.
    pub(crate) fn arm(&self, number: u64, at: Timestamp, now: Timestamp, is_retention: bool) {
        if at.nanos() == i64::MAX {
            return;
        }
        let at = round_up(at, at.since(now), if is_retention { COARSE } else { FINE });
        let mut book = self.book.lock();
        let first = book.due.keys().next().copied();
        book.due.entry(at).or_default().push(number);
        book.entries += 1;
        drop(book);
        if first.is_none_or(|first| at < first) {
            self.earlier.notify_one();
        }
    }

    /// Drops the entries of operations that are gone, once they may be half of
    /// the book.
    pub(crate) fn sweep(&self, is_there: impl Fn(u64) -> bool) {
        let mut book = self.book.lock();
        if book.entries < 2 * book.swept + 16_384 {
            return;
        }
        book.due.retain(|_, numbers| {
            numbers.retain(|number| is_there(*number));
            !numbers.is_empty()
        });
        book.entries = book.due.values().map(Vec::len).sum();
        book.swept = book.entries;
    }

    /// Waits for the next deadlines and takes them out, all that are over but not
    /// many more than [`AT_ONCE`].
    pub(crate) async fn next(&self, clock: Clock) -> Vec<u64> {
        loop {
            let earlier = self.earlier.notified();
            let first = self.book.lock().due.keys().next().copied();
            match first {
                None => earlier.await,
                Some(at) if at <= clock.now() => return self.take(clock.now()),
                Some(at) => select! {
                    () = earlier => {}
                    () = sleep_until(clock.alarm(at)) => {}
                },
            }
        }
    }

    fn take(&self, now: Timestamp) -> Vec<u64> {
        let (mut book, mut numbers) = (self.book.lock(), Vec::new());
        while numbers.len() < AT_ONCE
            && let Some(first) = book.due.first_entry()
            && *first.key() <= now
        {
            numbers.append(&mut first.remove());
        }
        book.entries -= numbers.len();
        numbers
    }
}

fn round_up(at: Timestamp, distance: Duration, coarsest: u32) -> Timestamp {
    let share = i64::try_from(distance.as_nanos() / 128).unwrap_or(i64::MAX);
    let quantum = if share < 1_000_000 {
        1_000_000
    } else {
        1 << share.ilog2().min(coarsest)
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
        deadlines.arm(1, now + Duration::from_secs(60), now, false);
        let mut next = Box::pin(deadlines.next(clock));
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        deadlines.arm(2, now + Duration::from_secs(1), now, false);
        assert_eq!(next.await, [2]);
        assert_eq!(deadlines.next(clock).await, [1]);
        assert!(clock.now().since(now) < Duration::from_secs(61));
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_are_over_come_together() {
        let (deadlines, clock) = (Deadlines::default(), Clock::system());
        let now = clock.now();
        for millis in 0..100_u64 {
            let long_ago = Timestamp::from_nanos(now.nanos() / 2) + Duration::from_millis(millis);
            deadlines.arm(millis, long_ago, now, true);
        }
        deadlines.arm(100, now + Duration::from_secs(60), now, true);
        assert_eq!(deadlines.next(clock).await, (0..100).collect::<Vec<_>>());
        assert_eq!(deadlines.next(clock).await, [100]);
    }

    #[tokio::test(start_paused = true)]
    async fn entries_of_operations_that_are_gone_are_swept_out() {
        let (deadlines, clock) = (Deadlines::default(), Clock::system());
        let now = clock.now();
        for number in 0..20_000 {
            deadlines.arm(number, now + Duration::from_secs(number), now, true);
        }
        deadlines.sweep(|number| number == 7);
        assert_eq!(deadlines.book.lock().entries, 1);
        assert_eq!(deadlines.next(clock).await, [7]);
    }

    proptest! {
        #[test]
        fn a_deadline_that_somebody_waits_for_is_at_most_67_ms_late(millis in 0u64..100_000_000_000) {
            let now = Timestamp::from_nanos(1_790_000_000_123_456_789);
            let distance = Duration::from_millis(millis);
            let at = now + distance;
            prop_assert!(round_up(at, distance, FINE).since(at) < Duration::from_millis(68));
        }

        #[test]
        fn a_look_is_never_early_and_at_most_a_128th_late(millis in 0u64..100_000_000_000) {
            let now = Timestamp::from_nanos(1_790_000_000_123_456_789);
            let distance = Duration::from_millis(millis);
            let at = now + distance;
            let look = round_up(at, distance, COARSE);
            prop_assert!(at <= look);
            prop_assert!(look.since(at) <= (distance / 128).max(Duration::from_millis(1)));
        }
    }
}
