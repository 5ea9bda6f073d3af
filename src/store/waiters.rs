//! Waiters: who wants to know when an operation changes. Enter first, then
//! look, then sleep: a notification is only a hint, the view is the truth.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use dashmap::{DashMap, mapref::entry::Entry};
use foldhash::fast::RandomState;
use prometheus_client::metrics::gauge::Gauge;
use slab::Slab;
use tokio::{runtime::Handle, task::yield_now};

use crate::tasks::Tasks;

/// So many waiters of one operation are served in some 100 ms. Fewer at a time cost
/// more, because what is woken together leaves together: in turns of 2 048, ten
/// thousand took half as long again.
const CROWD: usize = 16 * 1024;

/// What a waiter wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// The end only: done, deleted or expired.
    End,
    /// Every change.
    Change,
}

/// All waiters, by the number of the operation they wait for.
#[derive(Debug)]
pub(crate) struct Waiters {
    rooms: DashMap<u64, Room, RandomState>,
    limit: usize,
    /// Clients only.
    count: AtomicUsize,
    gauge: Gauge,
    /// All waiters.
    seats: AtomicUsize,
}

/// The waiters of one operation. Those who wait for the end are kept apart, so
/// that a thousand of them cost a change nothing.
#[derive(Debug, Default)]
struct Room {
    end: Slab<Seat>,
    change: Slab<Seat>,
}

/// One waiter's place.
#[derive(Debug)]
enum Seat {
    /// Nothing happened; nobody sleeps yet, or this waker does.
    Quiet(Option<Waker>),
    /// Something happened since the waiter looked.
    Called,
}

/// Sleepers who were called, and are woken when this is dropped at the latest.
struct Sleepers(std::vec::IntoIter<Waker>);

/// A place among the waiters of one operation, left when dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    waiters: Arc<Waiters>,
    number: u64,
    interest: Interest,
    seat: usize,
    counted: bool,
}

// === impl Waiters ===

impl Waiters {
    pub(crate) fn new(limit: usize, gauge: Gauge) -> Self {
        Self {
            rooms: DashMap::default(),
            limit,
            count: AtomicUsize::new(0),
            gauge,
            seats: AtomicUsize::new(0),
        }
    }

    /// Enters a client among the waiters of an operation; none if there are too
    /// many already.
    pub(crate) fn enter(self: &Arc<Self>, number: u64, interest: Interest) -> Option<Waiter> {
        if self.limit <= self.count.fetch_add(1, Ordering::Relaxed) {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        self.gauge.inc();
        Some(self.seat(number, interest, true))
    }

    /// Enters the worker of an operation. There are never more workers than
    /// operations, so that they have no limit of their own.
    pub(crate) fn enter_worker(self: &Arc<Self>, number: u64) -> Waiter {
        self.seat(number, Interest::Change, false)
    }

    fn seat(self: &Arc<Self>, number: u64, interest: Interest, counted: bool) -> Waiter {
        self.seats.fetch_add(1, Ordering::AcqRel);
        let mut room = self.rooms.entry(number).or_default();
        let seat = room.seats(interest).insert(Seat::Quiet(None));
        Waiter {
            waiters: self.clone(),
            number,
            interest,
            seat,
            counted,
        }
    }

    /// Calls the waiters of an operation: all of them if this is its end. The
    /// change was made under a lock that they take to look, so that whoever looks
    /// too early to see it has a seat by now.
    pub(crate) fn call(&self, number: u64, end: bool) {
        // The usual case is that nobody waits for anything.
        if self.seats.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut sleepers = Vec::new();
        if let Some(mut room) = self.rooms.get_mut(&number) {
            room.change
                .iter_mut()
                .for_each(|(_, seat)| sleepers.extend(seat.call()));
            if end {
                room.end
                    .iter_mut()
                    .for_each(|(_, seat)| sleepers.extend(seat.call()));
            }
        }
        // Woken outside of the lock, because they come back for it.
        let mut sleepers = Sleepers(sleepers.into_iter());
        if sleepers.0.len() <= CROWD || Handle::try_current().is_err() {
            return;
        }
        // All at once, they would be ahead of whoever calls next.
        drop(Tasks::default().spawn("wake", async move {
            while sleepers.0.len() != 0 {
                sleepers.0.by_ref().take(CROWD).for_each(Waker::wake);
                yield_now().await;
            }
        }));
    }

    /// How many clients wait at present.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

// === impl Room ===

impl Room {
    fn seats(&mut self, interest: Interest) -> &mut Slab<Seat> {
        match interest {
            Interest::End => &mut self.end,
            Interest::Change => &mut self.change,
        }
    }
}

// === impl Seat ===

impl Seat {
    fn call(&mut self) -> Option<Waker> {
        match std::mem::replace(self, Self::Called) {
            Self::Quiet(waker) => waker,
            Self::Called => None,
        }
    }
}

// === impl Sleepers ===

impl Drop for Sleepers {
    fn drop(&mut self) {
        self.0.by_ref().for_each(Waker::wake);
    }
}

// === impl Waiter ===

impl Waiter {
    /// Sleeps until called; at once if called since the last time.
    pub(crate) async fn called(&mut self) {
        poll_fn(|context| self.poll_called(context)).await;
    }

    fn poll_called(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut room = self
            .waiters
            .rooms
            .get_mut(&self.number)
            .expect("a waiter keeps its room");
        let seat = &mut room.seats(self.interest)[self.seat];
        if let Seat::Called = seat {
            *seat = Seat::Quiet(None);
            return Poll::Ready(());
        }
        *seat = Seat::Quiet(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Entry::Occupied(mut room) = self.waiters.rooms.entry(self.number) {
            room.get_mut().seats(self.interest).remove(self.seat);
            if room.get().end.is_empty() && room.get().change.is_empty() {
                room.remove();
            }
        }
        self.waiters.seats.fetch_sub(1, Ordering::AcqRel);
        if self.counted {
            self.waiters.count.fetch_sub(1, Ordering::Relaxed);
            self.waiters.gauge.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn waiters(limit: usize) -> Arc<Waiters> {
        Arc::new(Waiters::new(limit, Gauge::default()))
    }

    #[tokio::test]
    async fn a_call_before_the_sleep_is_not_lost() {
        let waiters = waiters(1);
        let mut waiter = waiters.enter(7, Interest::Change).unwrap();
        waiters.call(7, false);
        waiter.called().await;
    }

    #[tokio::test]
    async fn those_who_wait_for_the_end_sleep_through_changes() {
        let waiters = waiters(2);
        let mut end = waiters.enter(7, Interest::End).unwrap();
        let mut change = waiters.enter(7, Interest::Change).unwrap();
        waiters.call(7, false);
        change.called().await;
        assert!(futures_util::poll!(std::pin::pin!(end.called())).is_pending());
        waiters.call(7, true);
        end.called().await;
    }

    #[tokio::test]
    async fn ten_thousand_abandoned_waits_leave_no_waiter_behind() {
        let waiters = waiters(20_000);
        for number in 0..10_000 {
            let mut waiter = waiters.enter(number % 100, Interest::End).unwrap();
            assert!(futures_util::poll!(std::pin::pin!(waiter.called())).is_pending());
        }
        assert_eq!(waiters.count(), 0);
        assert!(waiters.rooms.is_empty());
    }

    #[test]
    fn over_the_limit_nobody_enters_until_somebody_leaves() {
        let waiters = waiters(1);
        let first = waiters.enter(1, Interest::End).unwrap();
        assert!(waiters.enter(2, Interest::End).is_none());
        drop(first);
        assert!(waiters.enter(2, Interest::End).is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_up_is_lost_in_100_000_races_of_enter_and_publish() {
        let waiters = waiters(10);
        for _ in 0..100_000 {
            let value = Arc::new(Mutex::new(0));
            let publisher = tokio::task::spawn_blocking({
                let (waiters, value) = (waiters.clone(), value.clone());
                move || {
                    *value.lock() = 1;
                    waiters.call(7, true);
                }
            });
            // Enter, look, sleep: whichever comes first, this ends.
            let mut waiter = waiters.enter(7, Interest::End).unwrap();
            while *value.lock() == 0 {
                waiter.called().await;
            }
            publisher.await.unwrap();
        }
        assert_eq!(waiters.count(), 0);
    }
}
