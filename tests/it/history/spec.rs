//! What one operation may do, as a sequential specification: which answers a call
//! may get in a state, and what it leads to. Written from BEHAVIOUR §§1 to 5 and
//! `worker.proto`, without a line of the server's. In which order calls took
//! effect is found by `checker`.

use super::calls::{Answer, Ask, Call, End, Go, Name, Outcome, Reads, Shown, Stage, Time, Token};

/// What a history is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Created under an id that its creator chose, not by a request id under
    /// names of the server's.
    pub(super) is_named: bool,
    /// How many attempts count before a lost or failed one is the last; none for
    /// more than anybody makes.
    pub(super) attempts: Option<u32>,
    /// How long leases last.
    pub(super) lease: Time,
    /// By how much two servers may disagree on what time it is.
    pub(super) slack: Time,
    /// From the first to the last moment at which some server may not have reached the
    /// database: a lease that ran out meanwhile lasts its full time from then on.
    pub(super) outage: Option<(Time, Time)>,
}

/// What there is at one moment: for an id at most one operation, for a request
/// one that clients see, and those that were deleted and go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct State {
    operations: Vec<Operation>,
    /// Every call so far has taken effect before the present, and the present is
    /// not before this.
    floor: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Operation {
    /// None while nobody knows: the answer to its creator was lost.
    name: Option<Name>,
    is_hidden: bool,
    is_cancelled: bool,
    attempt: u32,
    /// How many attempts count, if they are counted.
    counted: u32,
    units: i64,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    Waiting,
    Held {
        /// None if the answer was lost that had it.
        token: Option<Token>,
        /// When it was got or renewed, at the earliest and at the latest.
        from: Time,
        upto: Time,
    },
    Done(Outcome),
}

// === impl Rules ===

impl Rules {
    /// Into which states a call may lead that took effect in this one with the
    /// answer it got; none if it cannot have been.
    pub(super) fn apply(&self, state: &State, call: &Call) -> Vec<State> {
        let mut next = match &call.ask {
            Ask::Create => self.create(state, &call.answer),
            Ask::Lease => self.lease(state, call),
            Ask::Beat(name, ..)
            | Ask::Finish(name, ..)
            | Ask::Cancel(name)
            | Ask::Delete(name)
            | Ask::Get(name, _) => {
                let found = state.find(*name).into_iter();
                found
                    .flat_map(|(state, at)| match at {
                        Some(at) => self.act(state, at, call),
                        None if call.answer == Answer::Missing => vec![state],
                        None => Vec::new(),
                    })
                    .collect()
            }
        };
        for next in &mut next {
            // What changes nothing need not move the time on, and a read that may be
            // late was before its call.
            if next != state && !matches!(call.ask, Ask::Get(_, Reads::MayBeLate)) {
                next.floor = next.floor.max(call.begun);
            }
        }
        next
    }

    /// Into which states nobody's call leads, if everything that is still to take
    /// effect may do so at `latest`: a lease runs out, or goes back because whoever
    /// asked for it has left.
    pub(super) fn pass(&self, state: &State, latest: Time) -> Vec<State> {
        let mut all = Vec::new();
        for at in 0..state.operations.len() {
            let At::Held { token, from, .. } = state.operations[at].at else {
                continue;
            };
            let over = from + self.lease - self.slack;
            // Where attempts are not counted, it is all one how a lease that nobody
            // has comes back.
            if over <= latest && (token.is_some() || self.attempts.is_some()) {
                let mut next = state.clone();
                next.floor = next.floor.max(over);
                let one = &mut next.operations[at];
                let is_last = self.is_last(one);
                one.go_back(is_last.then_some(Outcome::WorkerLost));
                all.push(next.tidy());
            }
            if token.is_none() {
                let mut next = state.clone();
                let one = &mut next.operations[at];
                one.counted = one.counted.saturating_sub(1);
                one.go_back(None);
                all.push(next.tidy());
            }
        }
        all
    }

    fn create(&self, state: &State, answer: &Answer) -> Vec<State> {
        let with = |name| {
            let mut next = state.clone();
            next.operations.push(Operation {
                name,
                is_hidden: false,
                is_cancelled: false,
                attempt: 0,
                counted: 0,
                units: 0,
                at: At::Waiting,
            });
            vec![next]
        };
        let in_the_way = state
            .operations
            .iter()
            .any(|one| self.is_named || !one.is_hidden);
        match (in_the_way, answer) {
            (
                false,
                Answer::Created {
                    name,
                    reused: false,
                },
            ) => with(Some(*name)),
            // The only name that an id gives is number 0.
            (false, Answer::Lost) => with(self.is_named.then_some(0)),
            (true, Answer::Exists) if self.is_named => vec![state.clone()],
            (true, Answer::Created { name, reused: true }) if !self.is_named => {
                let found = state.find(*name).into_iter();
                let is_seen = |(next, at): &(State, Option<usize>)| {
                    at.is_some_and(|at| !next.operations[at].is_hidden)
                };
                found.filter(is_seen).map(|(next, _)| next).collect()
            }
            _ => Vec::new(),
        }
    }

    fn lease(&self, state: &State, call: &Call) -> Vec<State> {
        let candidates = match call.answer {
            Answer::Leased { name, .. } => state.find(name),
            Answer::Lost => {
                let all = 0..state.operations.len();
                all.map(|at| (state.clone(), Some(at))).collect()
            }
            _ => Vec::new(),
        };
        let mut all = Vec::new();
        for (mut next, at) in candidates {
            let Some(at) = at else { continue };
            let floor = next.floor;
            let one = &mut next.operations[at];
            if one.at != At::Waiting {
                continue;
            }
            one.attempt += 1;
            one.counted += u32::from(self.attempts.is_some());
            let token = match call.answer {
                Answer::Leased { attempt, .. } if attempt != one.attempt => continue,
                Answer::Leased { token, .. } => Some(token),
                _ => None,
            };
            let is_timeless = token.is_none() && self.attempts.is_none();
            one.at = At::Held {
                token,
                // It was decided after what it builds on was kept.
                from: if is_timeless {
                    0
                } else {
                    call.begun.max(floor)
                },
                upto: call.ended,
            };
            all.push(next);
        }
        all
    }

    /// What a call does to an operation that is there.
    fn act(&self, state: State, at: usize, call: &Call) -> Vec<State> {
        let one = state.operations[at].clone();
        let floor = state.floor;
        let when = |is_so: bool, next: State| if is_so { vec![next] } else { Vec::new() };
        let is = |answer: &Answer| call.answer == Answer::Lost || call.answer == *answer;
        match &call.ask {
            Ask::Get(..) if one.is_hidden => when(call.answer == Answer::Missing, state),
            Ask::Get(..) => when(call.answer == Answer::Shown(one.shown()), state),
            Ask::Cancel(_) | Ask::Delete(_) if one.is_hidden => {
                when(call.answer == Answer::Missing, state)
            }
            Ask::Cancel(_) => when(is(&Answer::Ok), state.with(at, Operation::cancel)),
            Ask::Delete(_) => when(is(&Answer::Ok), state.with(at, |one| one.is_hidden = true)),
            Ask::Beat(_, token, units) => {
                let (lost, held) = self.held(&one, *token, call);
                let go = match (one.is_cancelled, one.is_hidden) {
                    (true, _) => Go::Stop,
                    (false, true) => Go::Unseen,
                    (false, false) => Go::On,
                };
                let renewed = state.clone().with(at, |one| {
                    one.units = units.unwrap_or(one.units);
                    one.at = At::Held {
                        token: Some(*token),
                        from: call.begun.max(floor),
                        upto: call.ended,
                    };
                });
                let mut all = when(lost == Some(call.answer.clone()), state);
                all.extend(when(held && is(&Answer::Go(go)), renewed));
                all
            }
            Ask::Finish(_, token, end) => {
                let (lost, held) = self.held(&one, *token, call);
                if let At::Done(outcome) = one.at
                    && end.outcome() == Some(outcome)
                {
                    return when(is(&Answer::Shown(one.shown())), state);
                }
                let is_last = self.is_last(&one);
                let mut ended = one;
                match end {
                    End::Response(_) | End::Failure(_) => {
                        ended.at = end.outcome().map_or(ended.at, At::Done);
                    }
                    End::Retryable(_) => ended.go_back(end.outcome().filter(|_| is_last)),
                    End::Release => {
                        ended.counted = ended.counted.saturating_sub(1);
                        ended.go_back(None);
                    }
                }
                let shown = ended.shown();
                let next = state.clone().with(at, |one| *one = ended);
                let mut all = when(lost == Some(call.answer.clone()), state);
                all.extend(when(held && is(&Answer::Shown(shown)), next));
                all
            }
            Ask::Create | Ask::Lease => Vec::new(),
        }
    }

    /// Until when a lease may be held that is over by then, if nothing is amiss.
    fn last(&self, over: Time) -> Time {
        match self.outage {
            Some((begun, ended)) if begun <= over => over.max(ended + self.lease + self.slack),
            _ => over,
        }
    }

    fn is_last(&self, one: &Operation) -> bool {
        self.attempts
            .is_some_and(|attempts| attempts <= one.counted)
    }

    /// How the holder of a token may be refused, and whether it need not be.
    fn held(&self, one: &Operation, token: Token, call: &Call) -> (Option<Answer>, bool) {
        match one.at {
            At::Done(_) => (Some(Answer::Over), false),
            At::Held {
                token: Some(current),
                from,
                upto,
            } if current == token => {
                let may_be_over = from + self.lease - self.slack <= call.ended;
                let may_be_held = call.begun <= self.last(upto + self.lease + self.slack);
                (may_be_over.then_some(Answer::LeaseLost), may_be_held)
            }
            At::Held { .. } | At::Waiting => (Some(Answer::LeaseLost), false),
        }
    }
}

// === impl State ===

impl State {
    /// The same at no time, and the time.
    pub(super) fn timeless(&self) -> (Self, Time) {
        let state = Self {
            floor: 0,
            ..self.clone()
        };
        (state, self.floor)
    }

    /// The most attempts that any of its operations has had.
    pub(super) fn attempts(&self) -> u32 {
        let attempts = self.operations.iter().map(|one| one.attempt);
        attempts.max().unwrap_or(0)
    }

    /// How many attempts the operation of a name has had, if it is there.
    pub(super) fn attempt(&self, name: Name) -> Option<u32> {
        let mut all = self.operations.iter();
        Some(all.find(|one| one.name == Some(name))?.attempt)
    }

    /// What a look at the operation of a name shows.
    pub(super) fn shown(&self, name: Name) -> Answer {
        let mut all = self.operations.iter();
        let found = all.find(|one| one.name == Some(name) && !one.is_hidden);
        found.map_or(Answer::Missing, |one| Answer::Shown(one.shown()))
    }

    /// The operation of a name, and none if there is no such. An operation whose
    /// name nobody knows may be it.
    fn find(&self, name: Name) -> Vec<(Self, Option<usize>)> {
        let mut all = self.operations.iter();
        if let Some(at) = all.position(|one| one.name == Some(name)) {
            return vec![(self.clone(), Some(at))];
        }
        let mut found = vec![(self.clone(), None)];
        for (at, one) in self.operations.iter().enumerate() {
            if one.name.is_none() {
                let mut next = self.clone();
                next.operations[at].name = Some(name);
                found.push((next, Some(at)));
            }
        }
        found
    }

    fn with(mut self, at: usize, change: impl FnOnce(&mut Operation)) -> Self {
        change(&mut self.operations[at]);
        self.tidy()
    }

    /// What is deleted and done is forgotten.
    fn tidy(mut self) -> Self {
        self.operations
            .retain(|one| !one.is_hidden || !matches!(one.at, At::Done(_)));
        self
    }
}

// === impl Operation ===

impl Operation {
    fn shown(&self) -> Shown {
        Shown {
            stage: match self.at {
                At::Waiting => Stage::Waiting,
                At::Held { .. } => Stage::Held,
                At::Done(outcome) => Stage::Done(outcome),
            },
            attempt: self.attempt,
            is_cancelled: self.is_cancelled,
            units: self.units,
        }
    }

    fn cancel(&mut self) {
        match self.at {
            At::Waiting => {
                self.is_cancelled = true;
                self.at = At::Done(Outcome::Cancelled);
            }
            At::Held { .. } => self.is_cancelled = true,
            At::Done(_) => {}
        }
    }

    /// An attempt ended without a result: another one follows, unless this was the
    /// last, or somebody has cancelled it.
    fn go_back(&mut self, last: Option<Outcome>) {
        let cancelled = self.is_cancelled.then_some(Outcome::Cancelled);
        self.at = cancelled.or(last).map_or(At::Waiting, At::Done);
    }
}
