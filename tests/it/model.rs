//! The real service against a pure model: random workers, creators and clients
//! call it through its generated clients on paused time, and every answer, and
//! everything that clients see after each step, is what the model says.
//!
//! `PROPTEST_CASES` sets how many lives are tried; a failure shrinks to a short
//! list of steps.

mod invariants;
mod operation;
mod reference_model;
mod responses;
mod steps;
mod system_under_test;
mod timer_granularity;

use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::{
    task::yield_now,
    time::{Duration, Instant, sleep},
};

use invariants::Witness;
use operation::{DEFAULT_LEASE_MS, ReferencePhase};
use reference_model::ReferenceModel;
use responses::{ErrorReason, ModelResponse, PresentedToken};
use steps::{ModelSpec, ModelStep, OperationChoice, PARENTS, TokenChoice};
use system_under_test::SystemUnderTest;

use crate::support::backend::writes_in_progress;

/// How often the tasks of the server get a turn before they are taken to be
/// idle. A change takes two or three; time stands still meanwhile.
const IDLE_YIELDS: usize = 16;

/// The two servers, and what is known of both.
struct ModelTest {
    model: ReferenceModel,
    sut: SystemUnderTest,
    invariants: Witness,
    /// What was asked for, in order.
    specs: Vec<ModelSpec>,
    /// What Get said of each name when it last changed.
    known_responses: BTreeMap<String, ModelResponse>,
    finish_calls: Vec<system_under_test::FinishCall>,
    /// Whose each lease is, by its number.
    lease_names: Vec<String>,
    started_at: Instant,
}

proptest! {
    // BEHAVIOUR §§3–5
    #[test]
    fn service_matches_reference_model(steps in steps::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut test = ModelTest::start().await;
            for (index, step) in steps.0.iter().enumerate() {
                test.run_step(step).await.map_err(|message| {
                    TestCaseError::fail(format!("step {index}, {step:?}: {message}"))
                })?;
            }
            test.compare_everything().await.map_err(TestCaseError::fail)
        })?;
    }
}

// === impl Life ===

impl ModelTest {
    async fn start() -> Self {
        let sut = SystemUnderTest::start().await;
        Self {
            model: ReferenceModel::new(sut.start_wall_ns),
            sut,
            invariants: Witness::default(),
            specs: Vec::new(),
            known_responses: BTreeMap::new(),
            finish_calls: Vec::new(),
            lease_names: Vec::new(),
            started_at: Instant::now(),
        }
    }

    /// Does the same to both, and compares.
    async fn run_step(&mut self, step: &ModelStep) -> Result<(), String> {
        let (expected, actual) = self.run_on_both(step).await;
        check_equal(&expected, &actual, "the answer")?;
        self.invariants.hear(&actual, self.model.now)?;
        self.record_leases(&actual);
        wait_until_idle().await;
        // What a change made due at once happens now.
        self.model.advance_to(self.model.now);
        let now = self.started_at.elapsed().as_millis();
        assert_eq!(
            Ok(now),
            u128::try_from(self.model.now),
            "no other time passed"
        );
        self.compare().await
    }

    async fn run_on_both(&mut self, step: &ModelStep) -> (ModelResponse, ModelResponse) {
        match step {
            ModelStep::Create(template) => {
                let spec = ModelSpec {
                    number: match template.reused_id {
                        Some(nth) if let Some(earlier_spec) = nth_of(&self.specs, nth) => {
                            earlier_spec.number
                        }
                        _ => self.specs.len(),
                    },
                    not_before: template.not_before.map(|delay| self.model.now + delay),
                    ..template.spec.clone()
                };
                self.create(spec).await
            }
            ModelStep::RepeatCreate {
                nth,
                is_altered,
                worker,
            } => match nth_of(&self.specs, *nth) {
                Some(spec) => {
                    let is_altered = spec.is_altered || *is_altered;
                    let spec = ModelSpec {
                        is_altered,
                        worker,
                        ..spec.clone()
                    };
                    self.create(spec).await
                }
                None => (ModelResponse::Empty, ModelResponse::Empty),
            },
            ModelStep::Lease { queues, max_leases } => {
                let expected = self
                    .model
                    .lease(queues, usize::try_from(*max_leases).unwrap());
                let actual = self.sut.lease(queues, *max_leases).await;
                (ModelResponse::Leases(expected), actual)
            }
            ModelStep::Heartbeat(reports) => {
                let reports: Vec<_> = (reports.iter())
                    .map(|(choice, token_choice, report)| {
                        let name = self.choose_name(*choice);
                        let token = self.present_token(&name, *token_choice);
                        (name, token, report.clone())
                    })
                    .collect();
                let expected = reports
                    .iter()
                    .map(|(name, token, report)| self.model.heartbeat(name, *token, report));
                let (directives, lease_durations): (_, Vec<_>) = expected.unzip();
                let shortest_lease = lease_durations.into_iter().flatten().min();
                let expected = ModelResponse::Directives {
                    directives,
                    heartbeat_interval_ns: shortest_lease.unwrap_or(DEFAULT_LEASE_MS) * 1_000_000
                        / 3,
                };
                (expected, self.sut.heartbeat(&reports).await)
            }
            ModelStep::Finish {
                operation: choice,
                token: token_choice,
                finish,
                metadata,
            } => {
                let name = self.choose_name(*choice);
                let finish = system_under_test::FinishCall {
                    token: self.present_token(&name, *token_choice),
                    name,
                    finish: *finish,
                    metadata: *metadata,
                };
                self.finish_calls.push(finish.clone());
                self.finish(&finish).await
            }
            ModelStep::RepeatFinish(nth) => match nth_of(&self.finish_calls, *nth).cloned() {
                Some(finish) => self.finish(&finish).await,
                None => (ModelResponse::Empty, ModelResponse::Empty),
            },
            ModelStep::Cancel(choice) => {
                let name = self.choose_name(*choice);
                let expected = into_response(self.model.cancel(&name));
                (expected, self.sut.cancel(&name).await)
            }
            ModelStep::Delete(choice) => {
                let name = self.choose_name(*choice);
                let expected = into_response(self.model.delete(&name));
                (expected, self.sut.delete(&name).await)
            }
            ModelStep::Wait(choice) => {
                let name = self.choose_name(*choice);
                (
                    into_response(self.model.get(&name)),
                    self.sut.wait(&name).await,
                )
            }
            ModelStep::Advance(millis) => {
                self.advance_to(self.model.now + millis).await;
                (ModelResponse::Empty, ModelResponse::Empty)
            }
            ModelStep::AdvanceToDeadline { nth, offset } => {
                let now = self.model.now;
                let living = self.model.operations.values();
                let mut deadlines: Vec<_> = living
                    .filter_map(|operation| operation.next_deadline(now))
                    .collect();
                deadlines.sort_unstable();
                if let Some(deadline) = nth_of(&deadlines, *nth) {
                    self.advance_to((deadline + offset).max(now)).await;
                }
                (ModelResponse::Empty, ModelResponse::Empty)
            }
        }
    }

    async fn create(&mut self, spec: ModelSpec) -> (ModelResponse, ModelResponse) {
        let expected = into_response(self.model.create(&spec));
        let actual = self.sut.create(&spec).await;
        self.known_responses
            .insert(spec.name(), ModelResponse::Empty);
        self.specs.push(spec);
        (expected, actual)
    }

    async fn finish(
        &mut self,
        finish: &system_under_test::FinishCall,
    ) -> (ModelResponse, ModelResponse) {
        let system_under_test::FinishCall {
            name,
            token,
            finish: outcome,
            metadata,
        } = finish;
        let expected = into_response(self.model.finish(name, *token, *outcome, *metadata));
        (expected, self.sut.finish(finish).await)
    }

    /// Lets time pass. The runtime moves it on, from timer to timer, only when
    /// every task is idle, so that everything happens at its time.
    async fn advance_to(&mut self, target: i64) {
        let millis = u64::try_from(target - self.model.now).unwrap();
        sleep(Duration::from_millis(millis)).await;
        self.model.advance_to(target);
    }

    /// Compares what clients see.
    async fn compare(&mut self) -> Result<(), String> {
        for parent in PARENTS {
            let actual = self.sut.list(parent).await;
            check_equal(&self.model.list(parent), &actual, "the list")?;
            self.invariants.see(&actual)?;
        }
        // What did not change is in the list, and is asked for at the end.
        for (name, known_response) in &mut self.known_responses {
            let expected = into_response(self.model.get(name));
            if *known_response != expected {
                check_equal(&expected, &self.sut.get(name).await, "what Get says")?;
                *known_response = expected;
            }
        }
        Ok(())
    }

    /// Asks for everything once more, what is gone included.
    async fn compare_everything(&mut self) -> Result<(), String> {
        for known_response in self.known_responses.values_mut() {
            *known_response = ModelResponse::Empty;
        }
        self.compare().await
    }

    /// Remembers whose the leases are that were handed out.
    fn record_leases(&mut self, response: &ModelResponse) {
        let leases = match response {
            ModelResponse::Leases(leases) => leases.as_slice(),
            ModelResponse::Created {
                lease: Some(lease),
                already_existed: false,
                ..
            } => std::slice::from_ref(lease),
            _ => &[],
        };
        self.lease_names
            .extend(leases.iter().map(|lease| lease.name.clone()));
    }

    fn choose_name(&self, choice: OperationChoice) -> String {
        let (OperationChoice::Running(nth) | OperationChoice::Any(nth)) = choice;
        let living = self.model.operations.values();
        let running =
            living.filter(|operation| matches!(operation.phase, ReferencePhase::Running { .. }));
        let names: Vec<_> = running.map(|operation| operation.spec.name()).collect();
        match (choice, nth_of(&names, nth), nth_of(&self.specs, nth)) {
            (OperationChoice::Running(_), Some(name), _) => name.clone(),
            (_, _, Some(spec)) => spec.name(),
            (_, _, None) => "operations/never-was".to_owned(),
        }
    }

    fn present_token(&self, name: &str, choice: TokenChoice) -> PresentedToken {
        let lease_ids = |is_own: bool| -> Vec<usize> {
            let lease_names = self.lease_names.iter().enumerate();
            let matching = lease_names.filter(|(_, owner)| (*owner == name) == is_own);
            matching.map(|(lease_id, _)| lease_id).collect()
        };
        let lease_id = match choice {
            TokenChoice::Latest => lease_ids(true).last().copied(),
            TokenChoice::Stale(nth) => nth_of(&lease_ids(true), nth).copied(),
            TokenChoice::Foreign(nth) => nth_of(&lease_ids(false), nth).copied(),
            TokenChoice::Malformed => return PresentedToken::Malformed,
            TokenChoice::Empty => return PresentedToken::Empty,
            TokenChoice::Unknown => None,
        };
        lease_id.map_or(PresentedToken::Unknown, PresentedToken::Lease)
    }
}

/// Lets the tasks of the server run until they are idle. Time stands still.
async fn wait_until_idle() {
    let mut idle_yields = 0;
    while idle_yields < IDLE_YIELDS {
        yield_now().await;
        // What waits for a file takes more turns than anybody can count.
        idle_yields = if writes_in_progress() == 0 {
            idle_yields + 1
        } else {
            0
        };
    }
}

fn into_response(result: Result<ModelResponse, ErrorReason>) -> ModelResponse {
    result.unwrap_or_else(ModelResponse::Rejected)
}

fn nth_of<T>(items: &[T], nth: usize) -> Option<&T> {
    (!items.is_empty()).then(|| &items[nth % items.len()])
}

fn check_equal<T: PartialEq + std::fmt::Debug>(
    expected: &T,
    actual: &T,
    subject: &str,
) -> Result<(), String> {
    if expected == actual {
        return Ok(());
    }
    Err(format!(
        "{subject} differs\n  model: {expected:#?}\n  real: {actual:#?}"
    ))
}
