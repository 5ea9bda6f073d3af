//! Random sequences of events, compared with a simple model.

mod model;

use std::time::Duration;

use proptest::{prelude::*, test_runner::TestCaseError};
use prost::Message;

use model::{
    LEASE_DURATION_SECS, Model, ModelOptions, ModelPhase, ModelResult, RETENTION_SECS, Step,
    TokenKind,
};

use super::*;
use crate::{
    operation::{
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        options::QueueName,
        outcome::status_with_reason,
        retry::RetryPolicy,
    },
    proto::{
        google::{self, longrunning::operation::Result as ProtoResult, rpc::Code},
        longrunning::v1::{
            OperationMetadata,
            operation_metadata::{Attempt, State},
        },
    },
};

const NAME: &str = "projects/p/operations/life";
const START: Timestamp = Timestamp::from_nanos(1_790_000_000_000_000_000);

fn custom_metadata(n: u8) -> Payload {
    // No valid message: the value must stay opaque.
    let any = prost_types::Any {
        type_url: "example.com/x/Own".into(),
        value: vec![n, 0xff, 0x00, n],
    };
    Payload::new(any).unwrap()
}

fn new_operation(options: &ModelOptions) -> Operation {
    let seconds = |time: Option<u64>| time.map(Duration::from_secs);
    let execution_options = ExecutionOptions {
        queue: options.is_queued.then(|| QueueName::parse("q").unwrap()),
        retry_policy: RetryPolicy {
            jitter: 0.0,
            max_worker_losses: options.max_worker_losses,
            ..RetryPolicy::with_max_attempts(options.max_attempts)
        },
        total_timeout: seconds(options.total_timeout_secs),
        attempt_timeout: seconds(options.attempt_timeout_secs),
        cancel_grace_period: seconds(options.cancel_grace_secs),
        lease_duration: Duration::from_secs(LEASE_DURATION_SECS),
        retention: Duration::from_secs(RETENTION_SECS),
        ..ExecutionOptions::default()
    };
    let spec = OperationSpec {
        name: OperationName::parse(NAME).unwrap(),
        number: 1,
        options: Arc::new(execution_options),
        attributes: None,
        input: None,
        metadata: options.has_custom_metadata.then(|| custom_metadata(0)),
        not_before: None,
        initial_lease: (!options.is_queued).then(|| InitialLease {
            token: LeaseToken::random(),
            worker: WorkerId::new("creator"),
        }),
    };
    Operation::new(spec, START)
}

/// Makes an error. `Fail` uses code 9, so that `Finish` can repeat the same error.
fn error(code: i32) -> Box<crate::proto::google::rpc::Status> {
    Box::new(status_with_reason(
        Code::try_from(code).unwrap(),
        "WORK_FAILED",
        "it failed",
    ))
}

fn event(step: Step, token: LeaseToken) -> Event {
    match step {
        Step::AcquireLease(confirm_secs) => Event::AcquireLease {
            token: LeaseToken::random(),
            worker: WorkerId::new("w"),
            confirm_within: confirm_secs.map(Duration::from_secs),
        },
        Step::Heartbeat(_) => Event::Heartbeat(token, Report::default()),
        Step::Report(_, n) => {
            let metadata = Some(custom_metadata(n));
            Event::Report(
                token,
                Report {
                    metadata,
                    ..Report::default()
                },
            )
        }
        Step::RequestCancel => Event::RequestCancel,
        Step::ReleaseLease(_) => Event::ReleaseLease(token, Report::default()),
        Step::RevokeLease(_) => Event::RevokeLease(token),
        Step::Fail(_) => Event::Fail {
            token,
            error: error(9),
            retry_after: None,
            report: Report::default(),
        },
        Step::Finish(_, 0) => Event::Finish(
            token,
            Outcome::Response(Payload::empty()),
            Report::default(),
        ),
        Step::Finish(_, code) => {
            Event::Finish(token, Outcome::Error(error(code)), Report::default())
        }
        Step::FireTimer | Step::AdvanceClock(_) => Event::TimerFired,
    }
}

fn token_kind() -> impl Strategy<Value = TokenKind> {
    prop_oneof![4 => Just(TokenKind::Current), 1 => Just(TokenKind::Stale), 1 => Just(TokenKind::Foreign)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![0u64..5, 20u64..40, Just(LEASE_DURATION_SECS), Just(RETENTION_SECS)].prop_map(Step::AdvanceClock),
        4 => prop::option::of(1u64..40).prop_map(Step::AcquireLease),
        2 => token_kind().prop_map(Step::Heartbeat),
        2 => (token_kind(), 1u8..).prop_map(|(token, n)| Step::Report(token, n)),
        1 => Just(Step::RequestCancel),
        2 => token_kind().prop_map(Step::ReleaseLease),
        1 => token_kind().prop_map(Step::RevokeLease),
        2 => token_kind().prop_map(Step::Fail),
        1 => (token_kind(), prop_oneof![Just(0), Just(7), Just(9)]).prop_map(|(token, code)| Step::Finish(token, code)),
        3 => Just(Step::FireTimer),
    ]
}

fn model_options() -> impl Strategy<Value = ModelOptions> {
    let time = |range| prop::option::of(range);
    (
        any::<bool>(),
        (1u32..4, 0u32..3),
        time(50u64..300),
        time(1u64..60),
        time(0u64..40),
        any::<bool>(),
    )
        .prop_map(
            |(
                is_queued,
                (max_attempts, max_worker_losses),
                total_timeout_secs,
                attempt_timeout_secs,
                cancel_grace_secs,
                has_custom_metadata,
            )| ModelOptions {
                is_queued,
                max_attempts,
                max_worker_losses,
                total_timeout_secs,
                attempt_timeout_secs,
                cancel_grace_secs,
                has_custom_metadata,
            },
        )
}

/// Checks the invariants of the encoded bytes of every revision.
fn check_encoding(operation: &Operation) -> Result<(), TestCaseError> {
    let decoded = google::longrunning::Operation::decode(operation.bytes()).unwrap();
    prop_assert_eq!(&decoded.name, NAME);
    prop_assert_eq!(operation.name(), NAME);
    let metadata = decoded.metadata.as_ref().unwrap();
    if metadata.type_url == metadata::TYPE_URL {
        let metadata = OperationMetadata::decode(&*metadata.value).unwrap();
        prop_assert_eq!(metadata.state(), operation.state());
        prop_assert_eq!(metadata.create_time, Some(START.into()));
        prop_assert_eq!(metadata.start_time, operation.start_time().map(Into::into));
        prop_assert_eq!(metadata.end_time, operation.end_time().map(Into::into));
        prop_assert_eq!(metadata.attempt.unsigned_abs(), operation.attempt());
        prop_assert_eq!(metadata.cancel_requested, operation.cancel_requested());
        prop_assert_eq!(metadata.queue.is_empty(), operation.queue().is_none());
    }
    prop_assert_eq!(decoded.done, decoded.result.is_some());
    prop_assert_eq!(decoded.done, operation.is_done());
    if let Some(ProtoResult::Error(error)) = &decoded.result {
        prop_assert!((1..=16).contains(&error.code));
    }
    prop_assert_eq!(decoded.encode_to_vec(), operation.bytes());
    Ok(())
}

fn check_against_model(operation: &Operation, model: &Model) -> Result<(), TestCaseError> {
    let code = operation.to_proto().result.map(|result| match result {
        ProtoResult::Error(error) => error.code,
        ProtoResult::Response(_) => 0,
    });
    let (state, expected) = match &model.phase {
        ModelPhase::Pending { .. } => (State::Pending, None),
        ModelPhase::Running { .. } => (State::Running, None),
        ModelPhase::Done { code: 0, .. } => (State::Succeeded, Some(0)),
        ModelPhase::Done { code: 1, .. } => (State::Cancelled, Some(1)),
        ModelPhase::Done { code, .. } => (State::Failed, Some(*code)),
        ModelPhase::Removed => return Ok(()),
    };
    prop_assert_eq!((operation.state(), code), (state, expected));
    prop_assert_eq!(operation.attempt(), model.attempt);
    let start_time = model
        .start_time
        .map(|secs| START + Duration::from_secs(secs));
    prop_assert_eq!(operation.start_time(), start_time);
    prop_assert_eq!(operation.cancel_requested(), model.cancel_requested);
    let metadata = operation.to_proto().metadata.unwrap_or_default();
    if metadata.type_url == metadata::TYPE_URL {
        check_history(
            &OperationMetadata::decode(&*metadata.value).unwrap(),
            operation,
            model,
        )?;
    }
    Ok(())
}

/// Checks that the history has the last ten attempts, with the code that each ended with.
fn check_history(
    metadata: &OperationMetadata,
    operation: &Operation,
    model: &Model,
) -> Result<(), TestCaseError> {
    let to_pair = |attempt: &Attempt| {
        let code = attempt.status.as_ref().map(|status| status.code);
        (attempt.number.unsigned_abs(), code)
    };
    let confirmed = operation.lease().filter(|lease| lease.is_confirmed());
    let running = confirmed.map(|_| (model.attempt, None));
    let ended = model.ended_attempts.iter();
    let ended = ended.map(|(number, code)| (*number, Some(*code)));
    let expected: Vec<_> = ended.chain(running).collect();
    let oldest = expected.len().saturating_sub(10);
    let actual: Vec<_> = metadata.attempts.iter().map(to_pair).collect();
    prop_assert_eq!(&actual, &expected[oldest..]);
    for attempt in &metadata.attempts {
        prop_assert_eq!(attempt.end_time.is_some(), attempt.status.is_some());
        let nanos =
            |time: Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos));
        prop_assert!(nanos(attempt.start_time) >= nanos(metadata.start_time));
        prop_assert!(nanos(attempt.end_time) <= nanos(metadata.update_time));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    // Rules: STATE-1
    #[test]
    fn random_event_sequence_matches_model(options in model_options(), steps in prop::collection::vec(step(), 1..40)) {
        let (mut operation, mut model) = (new_operation(&options), Model::new(options.clone()));
        let (mut metadata, mut stale) = (options.has_custom_metadata.then(|| custom_metadata(0)), LeaseToken::random());
        check_encoding(&operation)?;
        check_against_model(&operation, &model)?;
        for step in steps {
            let current = operation.lease().map(|lease| lease.token);
            let token = match step {
                Step::Heartbeat(TokenKind::Stale) | Step::Report(TokenKind::Stale, _) | Step::ReleaseLease(TokenKind::Stale) | Step::RevokeLease(TokenKind::Stale)
                | Step::Fail(TokenKind::Stale) | Step::Finish(TokenKind::Stale, _) => stale,
                Step::Heartbeat(TokenKind::Foreign) | Step::Report(TokenKind::Foreign, _) | Step::ReleaseLease(TokenKind::Foreign) | Step::RevokeLease(TokenKind::Foreign)
                | Step::Fail(TokenKind::Foreign) | Step::Finish(TokenKind::Foreign, _) => LeaseToken::random(),
                _ => current.unwrap_or(stale),
            };
            let expected = model.apply(step);
            if let Step::AdvanceClock(_) = step {
                continue;
            }
            let now = START + Duration::from_secs(model.now);
            let update = operation.apply(&event(step, token), now);
            let result = match &update {
                Err(_) => ModelResult::Rejected,
                Ok(OperationUpdate::Unchanged) => ModelResult::Unchanged,
                Ok(OperationUpdate::Put(_) | OperationUpdate::RenewLease(_)) => ModelResult::Changed,
                Ok(OperationUpdate::Remove(_)) => ModelResult::Removed,
            };
            prop_assert_eq!(result, expected, "{:?} of {:?}", step, model);
            if let Ok(OperationUpdate::Put(next) | OperationUpdate::RenewLease(next)) = update {
                prop_assert!(!operation.is_done(), "a done operation changed by {:?}", step);
                prop_assert_eq!(next.revision(), operation.revision() + 1);
                prop_assert!(next.attempt() >= operation.attempt());
                prop_assert!(next.update_time() >= operation.update_time());
                prop_assert_eq!(next.create_time(), START);
                if let Step::Report(_, n) = step {
                    metadata = Some(custom_metadata(n));
                }
                let token = next.lease().map(|lease| lease.token);
                if let Some(current) = current && token != Some(current) {
                    stale = current;
                }
                operation = next;
            }
            check_encoding(&operation)?;
            check_against_model(&operation, &model)?;
            if let Some(expected) = &metadata {
                prop_assert_eq!(operation.to_proto().metadata, Some(expected.any().clone()));
            }
            if model.phase == ModelPhase::Removed {
                break;
            }
        }
    }
}
