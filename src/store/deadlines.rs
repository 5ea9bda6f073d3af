//! Deadlines: when timers fire for operations, such as the expiry of a lease, a timeout, the end of a backoff or of
//! the retention.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tokio::{select, sync::Notify, time::sleep_until};

use crate::clock::{Clock, Timestamp};

/// The coarsest quantum of a deadline, as a power of two of nanoseconds: 2^26 ns, 67 ms.
const MAX_QUANTUM_LOG2: u32 = 26;
/// The coarsest quantum of the end of a retention: 2^40 ns, 18 minutes.
const MAX_RETENTION_QUANTUM_LOG2: u32 = 40;

/// How many due operations are returned together, so that timers that become due meanwhile do not wait for all of
/// them.
const MAX_BATCH_LEN: usize = 4096;

/// Operation numbers by the time at which their timer fires. An entry takes 8 bytes. An entry that was replaced by
/// another deadline still fires once; `compact` removes those of removed operations.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    queue: Mutex<TimerQueue>,
    earlier_deadline: Notify,
}

#[derive(Debug, Default)]
struct TimerQueue {
    due: BTreeMap<Timestamp, Vec<u64>>,
    entries: usize,
    /// The number of entries that the last compaction left.
    len_after_compaction: usize,
}

impl Deadlines {
    /// Schedules a timer for `number` at `at`, rounded up to a quantum of about 1/128 of the delay: 1 ms to 67 ms, or
    /// up to 18 minutes for a retention, so that a million deadlines share a few thousand map entries.
    pub(crate) fn schedule(&self, number: u64, at: Timestamp, now: Timestamp, is_retention: bool) {
        if at.nanos() == i64::MAX {
            return;
        }
        let at = round_up(
            at,
            at.since(now),
            if is_retention {
                MAX_RETENTION_QUANTUM_LOG2
            } else {
                MAX_QUANTUM_LOG2
            },
        );
        let mut queue = self.queue.lock();
        let first = queue.due.keys().next().copied();
        queue.due.entry(at).or_default().push(number);
        queue.entries += 1;
        drop(queue);
        if first.is_none_or(|first| at < first) {
            self.earlier_deadline.notify_one();
        }
    }

    /// Removes the entries of removed operations, once the number of entries has doubled.
    pub(crate) fn compact(&self, is_live: impl Fn(u64) -> bool) {
        let mut queue = self.queue.lock();
        if queue.entries < 2 * queue.len_after_compaction + 16_384 {
            return;
        }
        queue.due.retain(|_, numbers| {
            numbers.retain(|number| is_live(*number));
            !numbers.is_empty()
        });
        queue.entries = queue.due.values().map(Vec::len).sum();
        queue.len_after_compaction = queue.entries;
    }

    /// Waits for the next due timers and removes them: all that are due, but not many more than `MAX_BATCH_LEN`.
    /// Cancellation safe.
    pub(crate) async fn wait_for_due(&self, clock: Clock) -> Vec<u64> {
        loop {
            let earlier_deadline = self.earlier_deadline.notified();
            let first = self.queue.lock().due.keys().next().copied();
            match first {
                None => earlier_deadline.await,
                Some(at) if at <= clock.now() => return self.pop_due(clock.now()),
                Some(at) => select! {
                    () = earlier_deadline => {}
                    () = sleep_until(clock.wakeup_instant(at)) => {}
                },
            }
        }
    }

    fn pop_due(&self, now: Timestamp) -> Vec<u64> {
        let (mut queue, mut numbers) = (self.queue.lock(), Vec::new());
        while numbers.len() < MAX_BATCH_LEN
            && let Some(first) = queue.due.first_entry()
            && *first.key() <= now
        {
            numbers.append(&mut first.remove());
        }
        queue.entries -= numbers.len();
        numbers
    }
}

fn round_up(at: Timestamp, distance: Duration, max_quantum_log2: u32) -> Timestamp {
    let slack_ns = i64::try_from(distance.as_nanos() / 128).unwrap_or(i64::MAX);
    let quantum_ns = if slack_ns < 1_000_000 {
        1_000_000
    } else {
        1 << slack_ns.ilog2().min(max_quantum_log2)
    };
    let remainder_ns = at.nanos().rem_euclid(quantum_ns);
    if remainder_ns == 0 {
        at
    } else {
        Timestamp::from_nanos(at.nanos().saturating_add(quantum_ns - remainder_ns))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn earlier_deadline_scheduled_while_waiting_fires_first() {
        let (deadlines, clock) = (Deadlines::default(), Clock::system());
        let now = clock.now();
        deadlines.schedule(1, now + Duration::from_secs(60), now, false);
        let mut due = Box::pin(deadlines.wait_for_due(clock));
        assert!(futures_util::poll!(due.as_mut()).is_pending());
        deadlines.schedule(2, now + Duration::from_secs(1), now, false);
        assert_eq!(due.await, [2]);
        assert_eq!(deadlines.wait_for_due(clock).await, [1]);
        assert!(clock.now().since(now) < Duration::from_secs(61));
    }

    #[tokio::test(start_paused = true)]
    async fn overdue_deadlines_are_returned_in_one_batch() {
        let (deadlines, clock) = (Deadlines::default(), Clock::system());
        let now = clock.now();
        for millis in 0..100_u64 {
            let long_ago = Timestamp::from_nanos(now.nanos() / 2) + Duration::from_millis(millis);
            deadlines.schedule(millis, long_ago, now, true);
        }
        deadlines.schedule(100, now + Duration::from_secs(60), now, true);
        assert_eq!(
            deadlines.wait_for_due(clock).await,
            (0..100).collect::<Vec<_>>()
        );
        assert_eq!(deadlines.wait_for_due(clock).await, [100]);
    }

    #[tokio::test(start_paused = true)]
    async fn compaction_drops_deadlines_of_removed_operations() {
        let (deadlines, clock) = (Deadlines::default(), Clock::system());
        let now = clock.now();
        for number in 0..20_000 {
            deadlines.schedule(number, now + Duration::from_secs(number), now, true);
        }
        deadlines.compact(|number| number == 7);
        assert_eq!(deadlines.queue.lock().entries, 1);
        assert_eq!(deadlines.wait_for_due(clock).await, [7]);
    }

    proptest! {
        // Rules: STATE-11
        #[test]
        fn non_retention_deadline_fires_at_most_67_ms_late(millis in 0u64..100_000_000_000) {
            let now = Timestamp::from_nanos(1_790_000_000_123_456_789);
            let distance = Duration::from_millis(millis);
            let at = now + distance;
            prop_assert!(round_up(at, distance, MAX_QUANTUM_LOG2).since(at) < Duration::from_millis(68));
        }

        // Rules: STATE-11
        #[test]
        fn deadline_never_fires_early_and_at_most_one_128th_late(millis in 0u64..100_000_000_000) {
            let now = Timestamp::from_nanos(1_790_000_000_123_456_789);
            let distance = Duration::from_millis(millis);
            let at = now + distance;
            let fires_at = round_up(at, distance, MAX_RETENTION_QUANTUM_LOG2);
            prop_assert!(at <= fires_at);
            prop_assert!(fires_at.since(at) <= (distance / 128).max(Duration::from_millis(1)));
        }
    }
}
