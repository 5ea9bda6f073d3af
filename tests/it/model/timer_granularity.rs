//! Timer granularity of the model: deadlines are rounded up to a quantum of about 1/128
//! of the delay, so that many deadlines share few timers. A quantum is at least 1 ms and
//! at most 67 ms, or 18 minutes for retention. The model rounds exactly as the server does,
//! so that steps can be compared to the millisecond.

use super::{
    operation::{ModelOperation, ReferencePhase},
    reference_model::ReferenceModel,
};

pub(super) const NANOS_PER_MILLI: i64 = 1_000_000;

// === impl ReferenceModel ===

impl ReferenceModel {
    /// Schedules a check, unless that of the version before is for the same deadline.
    pub(super) fn schedule_if_changed(&mut self, number: u64, previous: Option<&ModelOperation>) {
        let operation = &self.operations[&number];
        let deadline = operation.next_deadline(self.now);
        let is_done =
            |operation: &ModelOperation| matches!(operation.phase, ReferencePhase::Done(_));
        let is_scheduled = previous.is_some_and(|previous| {
            previous.next_deadline(i64::MIN) == deadline && is_done(previous) == is_done(operation)
        });
        if !is_scheduled {
            self.schedule_check(number, deadline);
        }
    }

    fn schedule_check(&mut self, number: u64, deadline: Option<i64>) {
        let (wall, now) = (self.start_wall_ns, self.now);
        let operation = self
            .operations
            .get_mut(&number)
            .expect("expected the operation to exist");
        let max_quantum_bits = match operation.phase {
            ReferencePhase::Done(_) => 40,
            ReferencePhase::Pending { .. } | ReferencePhase::Running { .. } => 26,
        };
        if let Some(deadline) = deadline {
            operation
                .check_times
                .insert(rounded_check_time(wall, now, deadline, max_quantum_bits));
        }
    }

    /// Returns the time of the next check of any operation.
    pub(super) fn next_check(&self) -> Option<i64> {
        let operations = self.operations.values();
        operations
            .filter_map(|operation| operation.check_times.first().copied())
            .min()
    }

    /// Advances the time to `target` and runs all checks until then.
    pub(super) fn advance_to(&mut self, target: i64) {
        while let Some(check_time) = self.next_check().filter(|at| *at <= target) {
            self.now = check_time;
            let mut operations = self.operations.iter_mut();
            let due_number = operations.find_map(|(number, operation)| {
                operation.check_times.remove(&check_time).then_some(*number)
            });
            self.check(due_number.expect("expected an operation with this check"));
        }
        self.now = target;
    }

    fn check(&mut self, number: u64) {
        let now = self.now;
        let operation = &self.operations[&number];
        if operation
            .next_deadline(i64::MIN)
            .is_none_or(|due| now < due)
        {
            return;
        }
        if operation.is_expired(now) {
            return self.remove(number);
        }
        if !self.change(number, |operation| operation.apply_timeouts(now)) {
            let operation = self
                .operations
                .get_mut(&number)
                .expect("expected the operation to exist");
            if let ReferencePhase::Pending { ready_at } = operation.phase {
                operation.is_offered |= ready_at <= now;
            }
            let deadline = operation.next_deadline(now);
            assert!(
                deadline.is_none_or(|due| now < due),
                "expected all due changes to be applied"
            );
            self.schedule_check(number, deadline);
        }
    }
}

/// Returns when a deadline is checked if it is scheduled now. Timers fire at full
/// milliseconds.
fn rounded_check_time(start_wall_ns: i64, now: i64, deadline: i64, max_quantum_bits: u32) -> i64 {
    let share = (deadline - now).max(0) * NANOS_PER_MILLI / 128;
    let quantum = if share < NANOS_PER_MILLI {
        NANOS_PER_MILLI
    } else {
        1 << share.ilog2().min(max_quantum_bits)
    };
    let wall_deadline = start_wall_ns + deadline * NANOS_PER_MILLI;
    let rounded = wall_deadline + (quantum - wall_deadline.rem_euclid(quantum)) % quantum;
    let rounded_ms = (rounded - start_wall_ns).div_euclid(NANOS_PER_MILLI)
        + i64::from((rounded - start_wall_ns).rem_euclid(NANOS_PER_MILLI) != 0);
    rounded_ms.max(now)
}
