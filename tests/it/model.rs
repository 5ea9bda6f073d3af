//! The real service against a pure model: random workers, creators and clients
//! call it through its generated clients on paused time, and every answer, and
//! everything that clients see after each step, is what the model says.
//!
//! `PROPTEST_CASES` sets how many lives are tried; a failure shrinks to a short
//! list of steps.

mod answers;
mod looks;
mod operation;
mod pure;
mod real;
mod steps;
mod witness;

use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::{
    task::yield_now,
    time::{Duration, Instant, sleep},
};

use answers::{Answer, Proof, Refused};
use operation::{At, LEASE};
use pure::Model;
use real::Real;
use steps::{PARENTS, Pick, Spec, Step, Token};
use witness::Witness;

use crate::support::stores::appends_under_way;

/// How often the tasks of the server get a turn before they are taken to be
/// idle. A change takes two or three; time stands still meanwhile.
const TURNS: usize = 16;

/// The two servers, and what is known of both.
struct Life {
    model: Model,
    real: Real,
    witness: Witness,
    /// What was asked for, in order.
    created: Vec<Spec>,
    /// What Get said of each name when it last changed.
    known: BTreeMap<String, Answer>,
    finished: Vec<real::Finish>,
    /// Whose each lease is, by its number.
    grants: Vec<String>,
    begun: Instant,
}

proptest! {
    // BEHAVIOUR §§3–5
    #[test]
    fn the_service_does_what_the_model_says(steps in steps::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut life = Life::begin().await;
            for (at, step) in steps.0.iter().enumerate() {
                life.step(step).await.map_err(|why| {
                    TestCaseError::fail(format!("step {at}, {step:?}: {why}"))
                })?;
            }
            life.end().await.map_err(TestCaseError::fail)
        })?;
    }
}

// === impl Life ===

impl Life {
    async fn begin() -> Self {
        let real = Real::open().await;
        Self {
            model: Model::new(real.wall),
            real,
            witness: Witness::default(),
            created: Vec::new(),
            known: BTreeMap::new(),
            finished: Vec::new(),
            grants: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// Does the same to both, and compares.
    async fn step(&mut self, step: &Step) -> Result<(), String> {
        let (expected, found) = self.both(step).await;
        same(&expected, &found, "the answer")?;
        self.witness.hear(&found, self.model.now)?;
        self.learn(&found);
        settle().await;
        // What a change made due at once happens now.
        self.model.pass(self.model.now);
        let now = self.begun.elapsed().as_millis();
        assert_eq!(
            Ok(now),
            u128::try_from(self.model.now),
            "no other time passed"
        );
        self.compare().await
    }

    async fn both(&mut self, step: &Step) -> (Answer, Answer) {
        match step {
            Step::Create(wish) => {
                let spec = Spec {
                    id: match wish.id_of {
                        Some(nth) if let Some(earlier) = nth_of(&self.created, nth) => earlier.id,
                        _ => self.created.len(),
                    },
                    not_before: wish.not_before.map(|pause| self.model.now + pause),
                    ..wish.spec.clone()
                };
                self.create(spec).await
            }
            Step::CreateAgain {
                nth,
                altered,
                worker,
            } => match nth_of(&self.created, *nth) {
                Some(spec) => {
                    let altered = spec.altered || *altered;
                    let spec = Spec {
                        altered,
                        worker,
                        ..spec.clone()
                    };
                    self.create(spec).await
                }
                None => (Answer::Nothing, Answer::Nothing),
            },
            Step::Lease { queues, most } => {
                let expected = self.model.lease(queues, usize::try_from(*most).unwrap());
                let found = self.real.lease(queues, *most).await;
                (Answer::Leases(expected), found)
            }
            Step::Heartbeat(reports) => {
                let reports: Vec<_> = (reports.iter())
                    .map(|(pick, token, report)| {
                        let name = self.pick(*pick);
                        let proof = self.proof(&name, *token);
                        (name, proof, report.clone())
                    })
                    .collect();
                let expected = reports
                    .iter()
                    .map(|(name, proof, report)| self.model.renew(name, *proof, report));
                let (directives, lengths): (_, Vec<_>) = expected.unzip();
                let shortest = lengths.into_iter().flatten().min();
                let expected = Answer::Directives {
                    directives,
                    next: shortest.unwrap_or(LEASE) * 1_000_000 / 3,
                };
                (expected, self.real.heartbeat(&reports).await)
            }
            Step::Finish {
                pick,
                token,
                end,
                metadata,
            } => {
                let name = self.pick(*pick);
                let finish = real::Finish {
                    proof: self.proof(&name, *token),
                    name,
                    end: *end,
                    metadata: *metadata,
                };
                self.finished.push(finish.clone());
                self.finish(&finish).await
            }
            Step::FinishAgain(nth) => match nth_of(&self.finished, *nth).cloned() {
                Some(finish) => self.finish(&finish).await,
                None => (Answer::Nothing, Answer::Nothing),
            },
            Step::Cancel(pick) => {
                let name = self.pick(*pick);
                let expected = answer(self.model.cancel(&name));
                (expected, self.real.cancel(&name).await)
            }
            Step::Delete(pick) => {
                let name = self.pick(*pick);
                let expected = answer(self.model.delete(&name));
                (expected, self.real.delete(&name).await)
            }
            Step::Wait(pick) => {
                let name = self.pick(*pick);
                (answer(self.model.get(&name)), self.real.wait(&name).await)
            }
            Step::Jump(millis) => {
                self.jump(self.model.now + millis).await;
                (Answer::Nothing, Answer::Nothing)
            }
            Step::JumpToDeadline { nth, offset } => {
                let now = self.model.now;
                let living = self.model.operations.values();
                let mut due: Vec<_> = living.filter_map(|one| one.due(now)).collect();
                due.sort_unstable();
                if let Some(due) = nth_of(&due, *nth) {
                    self.jump((due + offset).max(now)).await;
                }
                (Answer::Nothing, Answer::Nothing)
            }
        }
    }

    async fn create(&mut self, spec: Spec) -> (Answer, Answer) {
        let expected = answer(self.model.create(&spec));
        let found = self.real.create(&spec).await;
        self.known.insert(spec.name(), Answer::Nothing);
        self.created.push(spec);
        (expected, found)
    }

    async fn finish(&mut self, finish: &real::Finish) -> (Answer, Answer) {
        let real::Finish {
            name,
            proof,
            end,
            metadata,
        } = finish;
        let expected = answer(self.model.finish(name, *proof, *end, *metadata));
        (expected, self.real.finish(finish).await)
    }

    /// Lets time pass. The runtime moves it on, from timer to timer, only when
    /// every task is idle, so that everything happens at its time.
    async fn jump(&mut self, then: i64) {
        let millis = u64::try_from(then - self.model.now).unwrap();
        sleep(Duration::from_millis(millis)).await;
        self.model.pass(then);
    }

    /// Compares what clients see.
    async fn compare(&mut self) -> Result<(), String> {
        for parent in PARENTS {
            let found = self.real.list(parent).await;
            same(&self.model.list(parent), &found, "the list")?;
            self.witness.see(&found)?;
        }
        // What did not change is in the list, and is asked for at the end.
        for (name, known) in &mut self.known {
            let expected = answer(self.model.get(name));
            if *known != expected {
                same(&expected, &self.real.get(name).await, "what Get says")?;
                *known = expected;
            }
        }
        Ok(())
    }

    /// Asks for everything once more, what is gone included.
    async fn end(&mut self) -> Result<(), String> {
        for known in self.known.values_mut() {
            *known = Answer::Nothing;
        }
        self.compare().await
    }

    /// Remembers whose the leases are that were handed out.
    fn learn(&mut self, found: &Answer) {
        let leases = match found {
            Answer::Leases(leases) => leases.as_slice(),
            Answer::Created {
                lease: Some(lease),
                reused: false,
                ..
            } => std::slice::from_ref(lease),
            _ => &[],
        };
        self.grants
            .extend(leases.iter().map(|lease| lease.name.clone()));
    }

    fn pick(&self, pick: Pick) -> String {
        let (Pick::Held(nth) | Pick::Any(nth)) = pick;
        let living = self.model.operations.values();
        let held = living.filter(|one| matches!(one.at, At::Held { .. }));
        let held: Vec<_> = held.map(|one| one.spec.name()).collect();
        match (pick, nth_of(&held, nth), nth_of(&self.created, nth)) {
            (Pick::Held(_), Some(name), _) => name.clone(),
            (_, _, Some(spec)) => spec.name(),
            (_, _, None) => "operations/never-was".to_owned(),
        }
    }

    fn proof(&self, name: &str, token: Token) -> Proof {
        let grants = |own: bool| -> Vec<usize> {
            let all = self.grants.iter().enumerate();
            let some = all.filter(|(_, of)| (*of == name) == own);
            some.map(|(grant, _)| grant).collect()
        };
        let found = match token {
            Token::Latest => grants(true).last().copied(),
            Token::Stale(nth) => nth_of(&grants(true), nth).copied(),
            Token::Foreign(nth) => nth_of(&grants(false), nth).copied(),
            Token::Short => return Proof::Malformed,
            Token::Empty => return Proof::Empty,
            Token::Unknown => None,
        };
        found.map_or(Proof::Unknown, Proof::Grant)
    }
}

/// Lets the tasks of the server run until they are idle. Time stands still.
async fn settle() {
    let mut turns = 0;
    while turns < TURNS {
        yield_now().await;
        // What waits for a file takes more turns than anybody can count.
        turns = if appends_under_way() == 0 {
            turns + 1
        } else {
            0
        };
    }
}

fn answer(said: Result<Answer, Refused>) -> Answer {
    said.unwrap_or_else(Answer::Refused)
}

fn nth_of<T>(all: &[T], nth: usize) -> Option<&T> {
    (!all.is_empty()).then(|| &all[nth % all.len()])
}

fn same<T: PartialEq + std::fmt::Debug>(expected: &T, found: &T, what: &str) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!(
        "{what} differs\n  model: {expected:#?}\n  real: {found:#?}"
    ))
}
