//! Whether a history is linearizable: the search of Wing and Gong with Lowe's
//! memory of what was tried, for one operation at a time. Calls without an answer
//! may take effect at any time or never, and some changes are nobody's call.
//!
//! Crates that search (`todc-utils`, `stateright`) know one next state for each
//! call and, the first, no calls without an answer; neither knows changes that
//! only time makes.

use std::{collections::HashMap, fmt::Write};

use super::{
    calls::{Answer, Ask, Call, End, NEVER, Time},
    spec::{Rules, State},
};

/// So many states are searched; a history that needs more is no good history. To
/// explain one, fewer are enough.
const MOST: usize = 200_000;
const FEW: usize = 10_000;

/// So many steps that nobody was told of may come between two answers; at first few,
/// because few explain most, and with many there are too many ways.
const UNTOLD: [usize; 4] = [1, 3, 6, usize::MAX];

/// Why there is no order that explains a history.
#[derive(Debug)]
pub(super) struct Stuck {
    /// As far as an order was found.
    placed: Vec<usize>,
    state: State,
    is_given_up: bool,
}

/// Calls by their places, as bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Set(Vec<u64>);

#[derive(Clone)]
struct Node {
    placed: Set,
    order: Vec<usize>,
    state: State,
    /// How many steps nobody was told of since the last answer.
    untold: usize,
}

/// Finds an order of the calls, each between its beginning and its end, in which
/// every answer is the one that the rules give.
pub(super) fn check(rules: &Rules, calls: &[Call]) -> Result<(), Box<Stuck>> {
    search(rules, calls, MOST)
}

fn search(rules: &Rules, calls: &[Call], most: usize) -> Result<(), Box<Stuck>> {
    let calls = alike(calls);
    let mut found = Ok(());
    for untold in UNTOLD {
        found = search_with(rules, &calls, most, untold);
        if found.is_ok() {
            break;
        }
    }
    found
}

/// Finds an order with at most so many states, and so many steps between two answers.
fn search_with(
    rules: &Rules,
    calls: &[Call],
    most: usize,
    untold: usize,
) -> Result<(), Box<Stuck>> {
    let before = predecessors(calls);
    let attempts = calls.iter().filter_map(Call::attempt);
    // Leases that nobody got may be many. Only those matter which explain what was
    // shown, and a few more that may use up the attempts unseen.
    let attempts = attempts.max().unwrap_or(0) + rules.attempts.unwrap_or(0) + 2;
    let mut ends: Vec<usize> = (0..calls.len()).collect();
    ends.sort_by_key(|at| calls[*at].ended);
    let mut tried: HashMap<(Set, State), (Time, usize)> = HashMap::new();
    let start = Node {
        placed: Set::of(calls.len()),
        order: Vec::new(),
        state: State::default(),
        untold: 0,
    };
    let (mut best, mut searched) = (start.clone(), 0);
    let mut open = vec![start];
    while let Some(mut node) = open.pop() {
        node.place_all_that_only_look(rules, calls, &before);
        if best.order.len() < node.order.len() {
            best = node.clone();
        }
        let mut rest = ends.iter().map(|at| (*at, &calls[*at]));
        let rest = rest.find(|(at, call)| call.is_answered() && !node.placed.has(*at));
        let Some((_, first)) = rest else {
            return Ok(());
        };
        let latest = first.ended;
        // At an earlier time everything is possible that is so later, and with fewer
        // steps everything that is so with more.
        let (state, time) = node.state.timeless();
        let known = tried
            .entry((node.placed.clone(), state))
            .or_insert((Time::MAX, usize::MAX));
        if known.0 <= time && known.1 <= node.untold {
            continue;
        }
        *known = (time, node.untold);
        searched += 1;
        if most < searched {
            return Err(best.stuck(true));
        }
        // The last that is pushed is tried first: what was answered, the earliest
        // answer first of all.
        let may_go_on = node.untold < untold;
        // Where there is no limit, how many there were makes no difference.
        let step = usize::from(untold != usize::MAX);
        for state in rules.pass(&node.state, latest) {
            if may_go_on {
                open.push(Node {
                    state,
                    untold: node.untold + step,
                    ..node.clone()
                });
            }
        }
        let mut lost: Vec<&Ask> = Vec::new();
        let mut is_candidate = |at: usize| {
            let call = &calls[at];
            if node.placed.has(at) || !before[at].is_within(&node.placed) {
                return false;
            }
            let can_matter = may_go_on && call.can_matter(calls);
            if !call.is_answered() && !can_matter {
                return false;
            }
            // Of those that are alike, whichever begun first can do all that the
            // others can.
            let is_new = call.is_answered() || !lost.contains(&&call.ask);
            if !call.is_answered() {
                lost.push(&call.ask);
            }
            is_new
        };
        let unanswered: Vec<usize> = (0..calls.len())
            .filter(|at| !calls[*at].is_answered() && is_candidate(*at))
            .collect();
        let answered = ends.iter().copied().rev();
        let answered: Vec<usize> = answered
            .filter(|at| calls[*at].is_answered() && is_candidate(*at))
            .collect();
        for at in unanswered.into_iter().chain(answered) {
            for state in rules.apply(&node.state, &calls[at]) {
                let is_answered = calls[at].is_answered();
                let is_new = is_answered || state != node.state;
                if is_new && state.attempts() <= attempts {
                    let untold = if is_answered { 0 } else { node.untold + step };
                    let next = Node {
                        untold,
                        ..node.with(at, state)
                    };
                    if !next.is_past(rules, calls) {
                        open.push(next);
                    }
                }
            }
        }
    }
    Err(best.stuck(false))
}

/// The same calls, where all that was said in vain and that nobody was ever shown is
/// alike.
fn alike(calls: &[Call]) -> Vec<Call> {
    let is_shown = |number: i64| {
        calls.iter().any(|call| {
            matches!(&call.answer, Answer::Shown(shown)
                if shown.units == number || shown.stage.is_of(number))
        })
    };
    let same = |number: i64| if is_shown(number) { number } else { -1 };
    let mut calls = calls.to_vec();
    for call in &mut calls {
        if call.is_answered() {
            continue;
        }
        match &mut call.ask {
            Ask::Beat(_, _, Some(number))
            | Ask::Finish(
                _,
                _,
                End::Response(number) | End::Failure(number) | End::Retryable(number),
            ) => *number = same(*number),
            _ => {}
        }
    }
    calls
}

/// Which calls have taken effect before each: those that ended before it began.
/// A read that may be late is behind only what its own process has said of that
/// name, and what was done when that process began.
fn predecessors(calls: &[Call]) -> Vec<Set> {
    let behind = |call: &Call| {
        let mut set = Set::of(calls.len());
        for (at, other) in calls.iter().enumerate() {
            let is_seen = !call.may_be_late()
                || (other.process == call.process && other.name() == call.name())
                || other.ended < call.since;
            if other.is_answered() && other.ended < call.begun && is_seen {
                set.put(at);
            }
        }
        set
    };
    calls.iter().map(behind).collect()
}

/// The beginning of a history that no order explains, without what it can do
/// without, for people to read.
pub(super) fn explain(rules: &Rules, calls: &[Call], why: &Stuck) -> String {
    let mut ends: Vec<Time> = calls.iter().map(|call| call.ended).collect();
    ends.sort_unstable();
    let is_fine = |calls: &[Call]| search(rules, calls, FEW).is_ok();
    let shortest = ends.partition_point(|end| is_fine(&until(calls, *end)));
    let mut few = ends
        .get(shortest)
        .map_or_else(|| calls.to_vec(), |end| until(calls, *end));
    let mut at = 0;
    while !why.is_given_up && at < few.len() {
        let is_look = matches!(few[at].ask, Ask::Get(..))
            || (few[at].ask == Ask::Lease && !few[at].is_answered());
        let mut fewer = few.clone();
        fewer.remove(at);
        // Without a call that changes something, all could be wrong.
        if is_look && !is_fine(&fewer) {
            few = fewer;
        } else {
            at += 1;
        }
    }
    let stuck = search(rules, &few, FEW).err();
    let stuck = stuck.as_deref().unwrap_or(why);
    let mut text = String::new();
    for (at, call) in few.iter().enumerate() {
        let place = stuck.placed.iter().position(|placed| *placed == at);
        let place = place.map_or_else(|| "-".to_owned(), |place| (place + 1).to_string());
        let _ = writeln!(text, "{place:>5} {call}");
    }
    let _ = write!(
        text,
        "the first column is the order as far as one was found; then it stood at\n{:#?}{}",
        stuck.state,
        if why.is_given_up {
            "\nTOO MANY STATES"
        } else {
            ""
        }
    );
    text
}

/// What is known of a history at one time.
fn until(calls: &[Call], time: Time) -> Vec<Call> {
    let known = calls.iter().filter(|call| call.begun <= time);
    let known = known.filter(|call| call.ended <= time || !matches!(call.ask, Ask::Get(..)));
    known
        .map(|call| {
            let mut call = call.clone();
            if time < call.ended {
                (call.ended, call.answer) = (NEVER, Answer::Lost);
            }
            call
        })
        .collect()
}

// === impl Node ===

impl Node {
    /// Whether an operation has had more attempts than a call shows that comes later:
    /// they only grow, unless its name is given again.
    fn is_past(&self, rules: &Rules, calls: &[Call]) -> bool {
        let mut later = calls.iter().enumerate();
        !rules.is_named
            && later.any(|(at, call)| {
                let had = call.name().and_then(|name| self.state.attempt(name));
                !self.placed.has(at) && call.attempt() < had && call.attempt().is_some()
            })
    }

    /// A call whose answer is right and that changes nothing, whenever it comes, can
    /// as well come at once as later.
    fn place_all_that_only_look(&mut self, rules: &Rules, calls: &[Call], before: &[Set]) {
        loop {
            let count = self.order.len();
            for (at, call) in calls.iter().enumerate() {
                if call.only_looks()
                    && !self.placed.has(at)
                    && before[at].is_within(&self.placed)
                    && rules.apply(&self.state, call).contains(&self.state)
                {
                    self.placed.put(at);
                    self.order.push(at);
                    self.untold = 0;
                }
            }
            if self.order.len() == count {
                return;
            }
        }
    }

    fn with(&self, at: usize, state: State) -> Self {
        let mut next = self.clone();
        next.placed.put(at);
        next.order.push(at);
        next.state = state;
        next
    }

    fn stuck(self, is_given_up: bool) -> Box<Stuck> {
        Box::new(Stuck {
            placed: self.order,
            state: self.state,
            is_given_up,
        })
    }
}

// === impl Set ===

impl Set {
    fn of(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn put(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn is_within(&self, other: &Self) -> bool {
        let mut words = self.0.iter().zip(&other.0);
        words.all(|(mine, other)| mine & !other == 0)
    }
}
