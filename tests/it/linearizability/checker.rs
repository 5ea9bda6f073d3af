//! The linearizability checker: the algorithm of Wing and Gong with Lowe's memoization,
//! for one operation at a time. A call without a response may take effect at any later
//! time or never, and some transitions have no call (lease expiry).
//!
//! Existing crates do not fit: `todc-utils` and `stateright` allow one successor state per
//! call and no transitions without a call; the first also requires every response.

use std::{collections::HashMap, fmt::Write};

use super::{
    events::{Call, CallResponse, FinishRequest, Invocation, NEVER_RETURNED, Nanos},
    sequential_spec::SequentialSpec,
    spec_state::SpecState,
};

/// Limit of the search. A history that needs more states counts as a failure.
const MAX_STATES: usize = 200_000;
/// Limit of each search that minimizes a counterexample.
const MAX_EXPLAIN_STATES: usize = 10_000;

/// Limits of unobserved steps between two responses, tried in order: most histories need
/// few, and many make the search expensive.
const HIDDEN_STEP_LIMITS: [usize; 4] = [1, 3, 6, usize::MAX];

/// The longest order found for a history that is not linearizable.
#[derive(Debug)]
pub(super) struct Counterexample {
    /// Indexes of the calls in that order.
    linearized: Vec<usize>,
    state: SpecState,
    /// Whether the search ended at its limit.
    is_inconclusive: bool,
}

/// A bit set of call indexes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CallSet(Vec<u64>);

#[derive(Clone)]
struct SearchNode {
    linearized: CallSet,
    order: Vec<usize>,
    state: SpecState,
    /// Number of unobserved steps since the last response.
    hidden_steps: usize,
}

/// Finds an order of the calls in which each takes effect between its invocation and its
/// return, and every response conforms to the specification.
pub(super) fn check(spec: &SequentialSpec, calls: &[Call]) -> Result<(), Box<Counterexample>> {
    search(spec, calls, MAX_STATES)
}

fn search(
    spec: &SequentialSpec,
    calls: &[Call],
    max_states: usize,
) -> Result<(), Box<Counterexample>> {
    let calls = normalize_unobserved(calls);
    let mut result = Ok(());
    for max_hidden_steps in HIDDEN_STEP_LIMITS {
        result = search_with(spec, &calls, max_states, max_hidden_steps);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Like [`search`], with at most `max_hidden_steps` unobserved steps between two responses.
fn search_with(
    spec: &SequentialSpec,
    calls: &[Call],
    max_states: usize,
    max_hidden_steps: usize,
) -> Result<(), Box<Counterexample>> {
    let predecessors = predecessors(calls);
    let attempts = calls.iter().filter_map(Call::observed_attempt);
    // Bounds the number of unreceived leases: attempts beyond the observed ones only matter
    // until they exhaust the limit of lost workers.
    let max_attempt = attempts.max().unwrap_or(0) + spec.max_worker_losses.unwrap_or(0) + 2;
    let mut by_return: Vec<usize> = (0..calls.len()).collect();
    by_return.sort_by_key(|index| calls[*index].returned_at);
    let mut visited: HashMap<(CallSet, SpecState), (Nanos, usize)> = HashMap::new();
    let start = SearchNode {
        linearized: CallSet::with_len(calls.len()),
        order: Vec::new(),
        state: SpecState::default(),
        hidden_steps: 0,
    };
    let (mut best, mut searched_states) = (start.clone(), 0);
    let mut stack = vec![start];
    while let Some(mut node) = stack.pop() {
        node.linearize_reads(spec, calls, &predecessors);
        if node.order.len() > best.order.len() {
            best = node.clone();
        }
        let mut remaining = by_return.iter().map(|index| (*index, &calls[*index]));
        let remaining = remaining
            .find(|(index, call)| call.has_response() && !node.linearized.contains(*index));
        let Some((_, next_response)) = remaining else {
            return Ok(());
        };
        let latest = next_response.returned_at;
        // A state is dominated by one with an earlier time and fewer hidden steps.
        let (state, time) = node.state.without_time();
        let best_visit = visited
            .entry((node.linearized.clone(), state))
            .or_insert((Nanos::MAX, usize::MAX));
        if best_visit.0 <= time && best_visit.1 <= node.hidden_steps {
            continue;
        }
        *best_visit = (time, node.hidden_steps);
        searched_states += 1;
        if searched_states > max_states {
            return Err(best.into_counterexample(true));
        }
        // The last pushed node is searched first: the call with the earliest response.
        let may_take_hidden_step = node.hidden_steps < max_hidden_steps;
        // Without a limit the number is not counted, so that more states are equal.
        let hidden_step = usize::from(max_hidden_steps != usize::MAX);
        for state in spec.unprompted_steps(&node.state, latest) {
            if may_take_hidden_step {
                stack.push(SearchNode {
                    state,
                    hidden_steps: node.hidden_steps + hidden_step,
                    ..node.clone()
                });
            }
        }
        let mut unanswered_invocations: Vec<&Invocation> = Vec::new();
        let mut is_candidate = |index: usize| {
            let call = &calls[index];
            if node.linearized.contains(index) || !predecessors[index].is_subset(&node.linearized) {
                return false;
            }
            let is_observable = may_take_hidden_step && call.is_observable(calls);
            if !call.has_response() && !is_observable {
                return false;
            }
            // Equal calls without a response are interchangeable: only the first is tried.
            let is_new = call.has_response() || !unanswered_invocations.contains(&&call.invocation);
            if !call.has_response() {
                unanswered_invocations.push(&call.invocation);
            }
            is_new
        };
        let unanswered: Vec<usize> = (0..calls.len())
            .filter(|index| !calls[*index].has_response() && is_candidate(*index))
            .collect();
        let answered = by_return.iter().copied().rev();
        let answered: Vec<usize> = answered
            .filter(|index| calls[*index].has_response() && is_candidate(*index))
            .collect();
        for index in unanswered.into_iter().chain(answered) {
            for state in spec.apply(&node.state, &calls[index]) {
                let is_answered = calls[index].has_response();
                let is_new = is_answered || state != node.state;
                if is_new && state.max_attempt() <= max_attempt {
                    let hidden_steps = if is_answered {
                        0
                    } else {
                        node.hidden_steps + hidden_step
                    };
                    let next = SearchNode {
                        hidden_steps,
                        ..node.with(index, state)
                    };
                    if !next.exceeds_later_attempts(spec, calls) {
                        stack.push(next);
                    }
                }
            }
        }
    }
    Err(best.into_counterexample(false))
}

/// Replaces the numbers of calls without a response that no snapshot shows by -1, so that
/// these calls are equal.
fn normalize_unobserved(calls: &[Call]) -> Vec<Call> {
    let is_observed = |number: i64| {
        calls.iter().any(|call| {
            matches!(&call.response, CallResponse::Snapshot(snapshot)
                if snapshot.units == number || snapshot.phase.is_outcome_of(number))
        })
    };
    let normalized = |number: i64| if is_observed(number) { number } else { -1 };
    let mut calls = calls.to_vec();
    for call in &mut calls {
        if call.has_response() {
            continue;
        }
        match &mut call.invocation {
            Invocation::Heartbeat(_, _, Some(number))
            | Invocation::Finish(
                _,
                _,
                FinishRequest::Response(number)
                | FinishRequest::Failure(number)
                | FinishRequest::RetryableFailure(number),
            ) => *number = normalized(*number),
            _ => {}
        }
    }
    calls
}

/// Returns for each call those that took effect before it: the ones that returned before it
/// was invoked. A stale read only follows the responses of its own process about the same
/// operation, and calls that returned before that process started.
fn predecessors(calls: &[Call]) -> Vec<CallSet> {
    let predecessors_of = |call: &Call| {
        let mut set = CallSet::with_len(calls.len());
        for (index, other) in calls.iter().enumerate() {
            let is_ordered = !call.may_be_stale()
                || (other.process == call.process && other.name() == call.name())
                || other.returned_at < call.process_started_at;
            if other.has_response() && other.returned_at < call.invoked_at && is_ordered {
                set.insert(index);
            }
        }
        set
    };
    calls.iter().map(predecessors_of).collect()
}

/// Formats a minimized prefix of a history that is not linearizable.
pub(super) fn explain(
    spec: &SequentialSpec,
    calls: &[Call],
    counterexample: &Counterexample,
) -> String {
    let mut return_times: Vec<Nanos> = calls.iter().map(|call| call.returned_at).collect();
    return_times.sort_unstable();
    let is_linearizable = |calls: &[Call]| search(spec, calls, MAX_EXPLAIN_STATES).is_ok();
    let shortest_prefix = return_times
        .partition_point(|return_time| is_linearizable(&truncate_at(calls, *return_time)));
    let mut minimal = return_times.get(shortest_prefix).map_or_else(
        || calls.to_vec(),
        |return_time| truncate_at(calls, *return_time),
    );
    let mut index = 0;
    while !counterexample.is_inconclusive && index < minimal.len() {
        let is_removable = matches!(minimal[index].invocation, Invocation::Get(..))
            || (minimal[index].invocation == Invocation::Lease && !minimal[index].has_response());
        let mut candidate = minimal.clone();
        candidate.remove(index);
        // Only calls are removed that cannot make a linearizable history fail.
        if is_removable && !is_linearizable(&candidate) {
            minimal = candidate;
        } else {
            index += 1;
        }
    }
    let result = search(spec, &minimal, MAX_EXPLAIN_STATES).err();
    let counterexample = result.as_deref().unwrap_or(counterexample);
    let mut text = String::new();
    for (index, call) in minimal.iter().enumerate() {
        let position = counterexample
            .linearized
            .iter()
            .position(|placed| *placed == index);
        let position = position.map_or_else(|| "-".to_owned(), |place| (place + 1).to_string());
        let _ = writeln!(text, "{position:>5} {call}");
    }
    let _ = write!(
        text,
        "the first column is the longest order found, which leads to\n{:#?}{}",
        counterexample.state,
        if counterexample.is_inconclusive {
            "\nINCONCLUSIVE: too many states"
        } else {
            ""
        }
    );
    text
}

/// Returns the history as known at one time.
fn truncate_at(calls: &[Call], time: Nanos) -> Vec<Call> {
    let visible = calls.iter().filter(|call| call.invoked_at <= time);
    let visible = visible
        .filter(|call| call.returned_at <= time || !matches!(call.invocation, Invocation::Get(..)));
    visible
        .map(|call| {
            let mut call = call.clone();
            if call.returned_at > time {
                (call.returned_at, call.response) = (NEVER_RETURNED, CallResponse::Unknown);
            }
            call
        })
        .collect()
}

// === impl SearchNode ===

impl SearchNode {
    /// Returns `true` if an operation has more attempts than a later call shows. Attempts
    /// only grow, unless a client id is reused.
    fn exceeds_later_attempts(&self, spec: &SequentialSpec, calls: &[Call]) -> bool {
        let mut later = calls.iter().enumerate();
        !spec.has_client_id
            && later.any(|(index, call)| {
                let reached = call.name().and_then(|name| self.state.attempt_of(name));
                !self.linearized.contains(index)
                    && call.observed_attempt() < reached
                    && call.observed_attempt().is_some()
            })
    }

    /// Linearizes read-only calls whose responses fit the state. That loses no order, because
    /// they change nothing.
    fn linearize_reads(&mut self, spec: &SequentialSpec, calls: &[Call], predecessors: &[CallSet]) {
        loop {
            let count = self.order.len();
            for (index, call) in calls.iter().enumerate() {
                if call.is_read_only()
                    && !self.linearized.contains(index)
                    && predecessors[index].is_subset(&self.linearized)
                    && spec.apply(&self.state, call).contains(&self.state)
                {
                    self.linearized.insert(index);
                    self.order.push(index);
                    self.hidden_steps = 0;
                }
            }
            if self.order.len() == count {
                return;
            }
        }
    }

    fn with(&self, at: usize, state: SpecState) -> Self {
        let mut next = self.clone();
        next.linearized.insert(at);
        next.order.push(at);
        next.state = state;
        next
    }

    fn into_counterexample(self, is_inconclusive: bool) -> Box<Counterexample> {
        Box::new(Counterexample {
            linearized: self.order,
            state: self.state,
            is_inconclusive,
        })
    }
}

// === impl CallSet ===

impl CallSet {
    fn with_len(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn contains(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn is_subset(&self, other: &Self) -> bool {
        let mut words = self.0.iter().zip(&other.0);
        words.all(|(word, other)| word & !other == 0)
    }
}
