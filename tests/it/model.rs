//! Model-based test: random steps run on the real service, through its generated clients
//! and on paused time, and on a reference model. Every response, and everything visible to
//! clients after each step, must be equal.
//!
//! `PROPTEST_CASES` sets the number of runs. A failure shrinks to a short list of steps.

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

use invariants::Invariants;
use operation::{DEFAULT_LEASE_MS, ReferencePhase};
use reference_model::ReferenceModel;
use responses::{ErrorReason, ModelResponse, PresentedToken};
use steps::{ModelSpec, ModelStep, OperationChoice, PARENTS, TokenChoice};
use system_under_test::{FinishCall, HeartbeatEntry, SystemUnderTest};

use crate::support::backend::writes_in_progress;

/// Number of yields after which the tasks of the server are considered idle. A change
/// takes two or three. Paused time does not advance meanwhile.
const IDLE_YIELDS: usize = 16;

/// The reference model, the system under test, and the calls so far.
struct ModelTest {
    model: ReferenceModel,
    sut: SystemUnderTest,
    invariants: Invariants,
    /// The creations so far, in order.
    specs: Vec<ModelSpec>,
    /// The last compared response of Get for each name.
    known_responses: BTreeMap<String, ModelResponse>,
    finish_calls: Vec<FinishCall>,
    /// The operation of each lease, by lease number.
    lease_names: Vec<String>,
    started_at: Instant,
}

proptest! {
    // Rules: STATE-1
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

// === impl ModelTest ===

impl ModelTest {
    async fn start() -> Self {
        let sut = SystemUnderTest::start().await;
        Self {
            model: ReferenceModel::new(sut.start_wall_ns),
            sut,
            invariants: Invariants::default(),
            specs: Vec::new(),
            known_responses: BTreeMap::new(),
            finish_calls: Vec::new(),
            lease_names: Vec::new(),
            started_at: Instant::now(),
        }
    }

    /// Runs a step on model and service and compares the results.
    async fn run_step(&mut self, step: &ModelStep) -> Result<(), String> {
        let (expected, actual) = self.run_on_both(step).await;
        check_equal(&expected, &actual, "response")?;
        self.invariants
            .check_response(step, &actual, self.model.now)?;
        self.record_leases(&actual);
        wait_until_idle().await;
        // A change may have made timers due.
        self.model.advance_to(self.model.now);
        let now = self.started_at.elapsed().as_millis();
        assert_eq!(
            Ok(now),
            u128::try_from(self.model.now),
            "expected time to advance only in the steps"
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
            ModelStep::Lease {
                queues,
                max_leases,
                confirm_within,
            } => {
                let expected = self.model.lease(
                    queues,
                    usize::try_from(*max_leases).unwrap(),
                    *confirm_within,
                );
                let actual = self.sut.lease(queues, *max_leases, *confirm_within).await;
                (ModelResponse::Leases(expected), actual)
            }
            ModelStep::Heartbeat(reports) => {
                let reports: Vec<_> = (reports.iter())
                    .map(|entry| {
                        let name = self.choose_name(entry.operation);
                        HeartbeatEntry {
                            token: self.present_token(&name, entry.token),
                            name,
                            report: entry.report.clone(),
                        }
                    })
                    .collect();
                let expected = reports.iter().map(|entry| {
                    self.model
                        .heartbeat(&entry.name, entry.token, &entry.report)
                });
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
                let finish = FinishCall {
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

    async fn finish(&mut self, finish: &FinishCall) -> (ModelResponse, ModelResponse) {
        let FinishCall {
            name,
            token,
            finish: outcome,
            metadata,
        } = finish;
        let expected = into_response(self.model.finish(name, *token, *outcome, *metadata));
        (expected, self.sut.finish(finish).await)
    }

    /// Advances the time. The runtime moves from timer to timer only while every task is
    /// idle, so that every timer fires at its exact time.
    async fn advance_to(&mut self, target: i64) {
        let millis = u64::try_from(target - self.model.now).unwrap();
        sleep(Duration::from_millis(millis)).await;
        self.model.advance_to(target);
    }

    /// Compares what is visible to clients.
    async fn compare(&mut self) -> Result<(), String> {
        for parent in PARENTS {
            let actual = self.sut.list(parent).await;
            check_equal(&self.model.list(parent), &actual, "list")?;
            self.invariants.check_list(&actual)?;
        }
        // Unchanged operations are covered by the list and by `compare_everything`.
        for (name, known_response) in &mut self.known_responses {
            let expected = into_response(self.model.get(name));
            if *known_response != expected {
                check_equal(&expected, &self.sut.get(name).await, "response of Get")?;
                *known_response = expected;
            }
        }
        Ok(())
    }

    /// Compares all operations again, removed ones included.
    async fn compare_everything(&mut self) -> Result<(), String> {
        for known_response in self.known_responses.values_mut() {
            *known_response = ModelResponse::Empty;
        }
        self.compare().await
    }

    /// Records the operations of granted leases.
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
            (_, _, None) => "operations/unknown".to_owned(),
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

/// Runs the tasks of the server until they are idle. Paused time does not advance.
async fn wait_until_idle() {
    let mut idle_yields = 0;
    while idle_yields < IDLE_YIELDS {
        yield_now().await;
        // A durable write takes an unknown number of yields.
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
        "{subject} differs\n  model: {expected:#?}\n  service: {actual:#?}"
    ))
}
