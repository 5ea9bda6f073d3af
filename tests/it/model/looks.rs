//! When the server looks at an operation that time alone changes. What is due
//! is noticed a little late, so that a million deadlines share few timers: at
//! the next full quantum of about 1/128 of the time until then, at least 1 ms
//! and at most 67 ms, or 18 minutes for what is only forgotten. The model says
//! so exactly, so that every step can be compared to the millisecond.

use super::{operation::At, pure::Model};

/// Nanoseconds of a millisecond.
const MILLI: i64 = 1_000_000;

impl Model {
    /// Plans a look, if another time is due than before the change.
    pub(super) fn arm(&mut self, number: u64, before: Option<Option<i64>>) {
        let due = self.operations[&number].due(self.now);
        if before != Some(due) {
            self.plan(number, due);
        }
    }

    fn plan(&mut self, number: u64, due: Option<i64>) {
        let (wall, now) = (self.wall, self.now);
        let one = self.operations.get_mut(&number).expect("it is there");
        let coarsest = match one.at {
            At::Done(_) => 40,
            At::Waiting { .. } | At::Held { .. } => 26,
        };
        if let Some(due) = due {
            one.looks.insert(noticed(wall, now, due, coarsest));
        }
    }

    /// The next time at which the server looks at something.
    pub(super) fn next_look(&self) -> Option<i64> {
        let all = self.operations.values();
        all.filter_map(|one| one.looks.first().copied()).min()
    }

    /// Lets the time pass, look by look, up to `then`.
    pub(super) fn pass(&mut self, then: i64) {
        while let Some(at) = self.next_look().filter(|at| *at <= then) {
            self.now = at;
            let mut here = self.operations.iter_mut();
            let found = here.find_map(|(number, one)| one.looks.remove(&at).then_some(*number));
            self.look(found.expect("a look of somebody's is next"));
        }
        self.now = then;
    }

    fn look(&mut self, number: u64) {
        let now = self.now;
        let one = &self.operations[&number];
        if one.due(i64::MIN).is_none_or(|due| now < due) {
            return;
        }
        if one.is_forgotten(now) {
            return self.forget(number);
        }
        if !self.change(number, |one| one.lapse(now)) {
            let one = self.operations.get_mut(&number).expect("it is there");
            if let At::Waiting { ready } = one.at {
                one.offered |= ready <= now;
            }
            let due = one.due(now);
            assert!(due.is_none_or(|due| now < due), "what is due happens");
            self.plan(number, due);
        }
    }
}

/// When what is due at a time is noticed, if it is planned now: all timers go
/// off at full milliseconds.
fn noticed(wall: i64, now: i64, due: i64, coarsest: u32) -> i64 {
    let share = (due - now).max(0) * MILLI / 128;
    let quantum = if share < MILLI {
        MILLI
    } else {
        1 << share.ilog2().min(coarsest)
    };
    let at = wall + due * MILLI;
    let full = at + (quantum - at.rem_euclid(quantum)) % quantum;
    let late = (full - wall).div_euclid(MILLI) + i64::from((full - wall).rem_euclid(MILLI) != 0);
    late.max(now)
}
