//! Random lives of operations, against a model that knows only seconds and
//! four states. Single cells of the table are tested in `stage`.

use proptest::{prelude::*, test_runner::TestCaseError};
mod model;

use prost::Message;

use model::{At, LEASE, Model, RETENTION, Speaker, Step, Verdict, Wishes};

use super::*;
use crate::{
    operation::{
        lease::{LeaseToken, WorkerId},
        outcome::status,
        retry::RetryPolicy,
    },
    proto::google::{longrunning::operation::Result as Wired, rpc::Code},
};

const NAME: &str = "projects/p/operations/life";
const START: Timestamp = Timestamp::from_nanos(1_790_000_000_000_000_000);

fn own_metadata(n: u8) -> Payload {
    // Not a valid message of any type: nobody may look inside.
    let any = prost_types::Any {
        type_url: "example.com/x/Own".into(),
        value: vec![n, 0xff, 0x00, n],
    };
    Payload::new(any).unwrap()
}

fn born(wishes: &Wishes) -> Operation {
    let seconds = |time: Option<u64>| time.map(Duration::from_secs);
    let terms = Terms {
        queue: wishes.queued.then(|| QueueName::parse("q").unwrap()),
        retry: RetryPolicy {
            jitter: 0.0,
            ..RetryPolicy::attempts(wishes.attempts)
        },
        total_timeout: seconds(wishes.total),
        attempt_timeout: seconds(wishes.attempt),
        cancel_grace: seconds(wishes.grace),
        lease_duration: Duration::from_secs(LEASE),
        retention: Duration::from_secs(RETENTION),
        ..Terms::default()
    };
    let birth = Birth {
        name: OperationName::parse(NAME).unwrap(),
        number: 1,
        terms: Arc::new(terms),
        tags: None,
        input: None,
        metadata: wishes.own_metadata.then(|| own_metadata(0)),
        not_before: None,
        holder: (!wishes.queued).then(|| (LeaseToken::random(), WorkerId::new("creator"))),
    };
    Operation::new(birth, START)
}

/// An error of code 9 is what `Fail` leaves, so that the same one may come twice.
fn error(code: i32) -> Box<crate::proto::google::rpc::Status> {
    Box::new(status(
        Code::try_from(code).unwrap(),
        "WORK_FAILED",
        "it failed",
    ))
}

fn event(step: Step, token: LeaseToken) -> Event {
    match step {
        Step::Claim => Event::Claim {
            token: LeaseToken::random(),
            worker: WorkerId::new("w"),
        },
        Step::Renew(_) => Event::Renew(token, Report::default()),
        Step::Report(_, n) => {
            let metadata = Some(own_metadata(n));
            Event::Report(
                token,
                Report {
                    metadata,
                    ..Report::default()
                },
            )
        }
        Step::Cancel => Event::RequestCancel,
        Step::Release(_) => Event::Release(token, Report::default()),
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
        Step::Lapse | Step::Pass(_) => Event::Lapse,
    }
}

fn speaker() -> impl Strategy<Value = Speaker> {
    prop_oneof![4 => Just(Speaker::Holder), 1 => Just(Speaker::Stale), 1 => Just(Speaker::Foreign)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![0u64..5, 20u64..40, Just(LEASE), Just(RETENTION)].prop_map(Step::Pass),
        4 => Just(Step::Claim),
        2 => speaker().prop_map(Step::Renew),
        2 => (speaker(), 1u8..).prop_map(|(speaker, n)| Step::Report(speaker, n)),
        1 => Just(Step::Cancel),
        2 => speaker().prop_map(Step::Release),
        2 => speaker().prop_map(Step::Fail),
        1 => (speaker(), prop_oneof![Just(0), Just(7), Just(9)]).prop_map(|(speaker, code)| Step::Finish(speaker, code)),
        3 => Just(Step::Lapse),
    ]
}

fn wishes() -> impl Strategy<Value = Wishes> {
    let time = |range| prop::option::of(range);
    (
        any::<bool>(),
        1u32..4,
        time(50u64..300),
        time(1u64..60),
        time(0u64..40),
        any::<bool>(),
    )
        .prop_map(
            |(queued, attempts, total, attempt, grace, own_metadata)| Wishes {
                queued,
                attempts,
                total,
                attempt,
                grace,
                own_metadata,
            },
        )
}

/// What holds of the bytes of every record.
fn check_bytes(operation: &Operation) -> Result<(), TestCaseError> {
    let wired = google::longrunning::Operation::decode(operation.bytes()).unwrap();
    prop_assert_eq!(&wired.name, NAME);
    prop_assert_eq!(operation.name(), NAME);
    prop_assert!(wired.metadata.is_some());
    prop_assert_eq!(wired.done, wired.result.is_some());
    prop_assert_eq!(wired.done, operation.is_done());
    if let Some(Wired::Error(error)) = &wired.result {
        prop_assert!((1..=16).contains(&error.code));
    }
    prop_assert_eq!(wired.encode_to_vec(), operation.bytes());
    Ok(())
}

fn check_model(operation: &Operation, model: &Model) -> Result<(), TestCaseError> {
    let code = operation.to_proto().result.map(|result| match result {
        Wired::Error(error) => error.code,
        Wired::Response(_) => 0,
    });
    let (state, expected) = match &model.at {
        At::Pending { .. } => (State::Pending, None),
        At::Held { .. } => (State::Running, None),
        At::Done { code: 0, .. } => (State::Succeeded, Some(0)),
        At::Done { code: 1, .. } => (State::Cancelled, Some(1)),
        At::Done { code, .. } => (State::Failed, Some(*code)),
        At::Forgotten => return Ok(()),
    };
    prop_assert_eq!((operation.state(), code), (state, expected));
    prop_assert_eq!(operation.attempt(), model.attempt);
    prop_assert_eq!(operation.cancel_requested(), model.asked);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_random_life_is_the_life_that_the_model_says(wishes in wishes(), steps in prop::collection::vec(step(), 1..40)) {
        let (mut operation, mut model) = (born(&wishes), Model::new(wishes.clone()));
        let (mut metadata, mut stale) = (wishes.own_metadata.then(|| own_metadata(0)), LeaseToken::random());
        check_bytes(&operation)?;
        check_model(&operation, &model)?;
        for step in steps {
            let held = operation.lease().map(|lease| lease.token);
            let token = match step {
                Step::Renew(Speaker::Stale) | Step::Report(Speaker::Stale, _) | Step::Release(Speaker::Stale)
                | Step::Fail(Speaker::Stale) | Step::Finish(Speaker::Stale, _) => stale,
                Step::Renew(Speaker::Foreign) | Step::Report(Speaker::Foreign, _) | Step::Release(Speaker::Foreign)
                | Step::Fail(Speaker::Foreign) | Step::Finish(Speaker::Foreign, _) => LeaseToken::random(),
                _ => held.unwrap_or(stale),
            };
            let verdict = model.step(step);
            if let Step::Pass(_) = step {
                continue;
            }
            let now = START + Duration::from_secs(model.now);
            let change = operation.apply(&event(step, token), now);
            let told = match &change {
                Err(_) => Verdict::Refused,
                Ok(Change::Unchanged) => Verdict::Same,
                Ok(Change::Put(_) | Change::Renew(_)) => Verdict::Changed,
                Ok(Change::Forget(_)) => Verdict::Forgotten,
            };
            prop_assert_eq!(told, verdict, "{:?} of {:?}", step, model);
            if let Ok(Change::Put(next) | Change::Renew(next)) = change {
                prop_assert!(!operation.is_done(), "a done operation changed by {:?}", step);
                prop_assert_eq!(next.revision(), operation.revision() + 1);
                prop_assert!(operation.attempt() <= next.attempt());
                prop_assert!(operation.update_time() <= next.update_time());
                prop_assert_eq!(next.create_time(), START);
                if let Step::Report(_, n) = step {
                    metadata = Some(own_metadata(n));
                }
                let token = next.lease().map(|lease| lease.token);
                if let Some(held) = held && token != Some(held) {
                    stale = held;
                }
                operation = next;
            }
            check_bytes(&operation)?;
            check_model(&operation, &model)?;
            if let Some(own) = &metadata {
                prop_assert_eq!(operation.to_proto().metadata, Some(own.any().clone()));
            }
            if model.at == At::Forgotten {
                break;
            }
        }
    }
}
