//! BEHAVIOUR §4 as a table: every stage, in every situation that time can put
//! it in, against every event. Sequences of events are tested in `operation`.

use std::time::Duration;

use prost::Message;

use super::*;
use crate::{
    operation::{retry::RetryPolicy, terms::QueueName},
    proto::google::rpc::ErrorInfo,
};

const NOW: Timestamp = Timestamp::from_nanos(1_790_000_000_000_000_000);
const SECOND: Duration = Duration::from_secs(1);

/// The events, in the order of the columns.
const EVENTS: [&str; 9] = [
    "Claim",
    "Renew",
    "Report",
    "RequestCancel",
    "Release",
    "Fail",
    "Succeed",
    "FinishFailed",
    "Lapse",
];

/// A stage and what the table must know of the operation.
struct Scene {
    stage: Stage,
    terms: Terms,
    create_time: Timestamp,
    update_time: Timestamp,
    attempts: u32,
    same_outcome: bool,
}

fn ago(seconds: u32) -> Timestamp {
    Timestamp::from_nanos(NOW.nanos() - i64::from(seconds) * 1_000_000_000)
}

fn token(n: u8) -> LeaseToken {
    LeaseToken::from_bytes(&[n; 16]).unwrap()
}

fn scene(stage: Stage) -> Scene {
    Scene {
        stage,
        terms: Terms {
            queue: Some(QueueName::parse("q").unwrap()),
            lease_duration: 30 * SECOND,
            retry: RetryPolicy {
                jitter: 0.0,
                initial_backoff: 5 * SECOND,
                ..RetryPolicy::attempts(3)
            },
            retention: 60 * SECOND,
            ..Terms::default()
        },
        create_time: ago(100),
        update_time: ago(10),
        attempts: 1,
        same_outcome: false,
    }
}

fn lease(until: Timestamp) -> Box<Lease> {
    Box::new(Lease {
        token: token(1),
        holder: WorkerId::new("w"),
        until,
        attempt_until: None,
        cancel_until: None,
    })
}

fn pending() -> Scene {
    scene(Stage::Pending { ready: ago(1) })
}

fn running(until: Timestamp) -> Scene {
    scene(Stage::Running(lease(until)))
}

fn cancelling(until: Timestamp) -> Scene {
    scene(Stage::Cancelling(lease(until)))
}

fn done(ending: Ending) -> Scene {
    scene(Stage::Done(ending))
}

impl Scene {
    fn terms(mut self, change: impl FnOnce(&mut Terms)) -> Self {
        change(&mut self.terms);
        self
    }

    fn lease(mut self, change: impl FnOnce(&mut Lease)) -> Self {
        if let Stage::Running(lease) | Stage::Cancelling(lease) = &mut self.stage {
            change(lease);
        }
        self
    }

    fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    fn total_timeout_over(self) -> Self {
        self.terms(|terms| terms.total_timeout = Some(100 * SECOND))
    }

    fn same_outcome(mut self) -> Self {
        self.same_outcome = true;
        self
    }

    /// One cell, in words.
    fn cell(&self, event: &Event) -> String {
        let facts = Facts {
            now: NOW,
            terms: &self.terms,
            create_time: self.create_time,
            update_time: self.update_time,
            attempts: self.attempts,
            same_outcome: self.same_outcome,
        };
        words(next(&self.stage, event, facts))
    }

    fn row(&self, speaker: LeaseToken) -> Vec<String> {
        EVENTS
            .iter()
            .map(|name| self.cell(&event(name, speaker)))
            .collect()
    }
}

fn event(name: &str, token: LeaseToken) -> Event {
    let error = || Box::new(status(Code::NotFound, "WORK_FAILED", "no such file"));
    match name {
        "Claim" => Event::Claim {
            token: self::token(2),
            worker: WorkerId::new("v"),
        },
        "Renew" => Event::Renew(token, Report::default()),
        "Report" => Event::Report(token, Report::default()),
        "RequestCancel" => Event::RequestCancel,
        "Release" => Event::Release(token, Report::default()),
        "Fail" => Event::Fail {
            token,
            error: error(),
            retry_after: None,
            report: Report::default(),
        },
        "Succeed" => Event::Finish(
            token,
            Outcome::Response(Payload::empty()),
            Report::default(),
        ),
        "FinishFailed" => Event::Finish(token, Outcome::Error(error()), Report::default()),
        _ => Event::Lapse,
    }
}

fn words(next: Result<Next, Refusal>) -> String {
    match next {
        Err(Refusal::LeaseLost(_)) => "LeaseLost".into(),
        Err(refusal) => format!("{refusal:?}"),
        Ok(Next::Same) => "same".into(),
        Ok(Next::Note) => "note".into(),
        Ok(Next::Forget) => "forget".into(),
        Ok(Next::To(Stage::Pending { ready })) => format!("pending+{}", ready.since(NOW).as_secs()),
        Ok(Next::To(Stage::Running(lease))) => format!("running/{}", holder(&lease)),
        Ok(Next::To(Stage::Cancelling(lease))) => format!("cancelling/{}", holder(&lease)),
        Ok(Next::To(Stage::Done(_))) => "done without an outcome".into(),
        Ok(Next::Done(Outcome::Response(_))) => "response".into(),
        Ok(Next::Done(Outcome::Error(error))) => {
            let info = ErrorInfo::decode(error.details[0].value.as_slice()).unwrap();
            format!("{} {}", error.code, info.reason)
        }
    }
}

/// Whose lease it is, and whether it has its full time before it.
fn holder(lease: &Lease) -> String {
    let full = lease.until.since(NOW) == 30 * SECOND;
    format!(
        "{}{}",
        lease.token.as_bytes()[0],
        if full { " full" } else { "" }
    )
}

const CANCELLED: &str = "1 OPERATION_CANCELLED";
const WORK_FAILED: &str = "5 WORK_FAILED";
const WORKER_LOST: &str = "14 WORKER_LOST";
const TOTAL_TIMEOUT: &str = "4 TOTAL_TIMEOUT";
const ATTEMPT_TIMEOUT: &str = "4 ATTEMPT_TIMEOUT";
const LOST: &str = "LeaseLost";
const HELD: &str = "StillHeld";
const TAKEN: &str = "running/2 full";
const KEPT: &str = "running/1 full";
const STOPPING: &str = "cancelling/1 full";

/// Every situation, and what each of [`EVENTS`] does to it if the holder speaks.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, Scene, [&'static str; 9])> {
    let later = NOW + 10 * SECOND;
    let no_grace = |lease: &mut Lease| lease.cancel_until = Some(NOW);
    let attempt_over = |lease: &mut Lease| lease.attempt_until = Some(NOW);
    let own = |terms: &mut Terms| terms.queue = None;
    vec![
        // situation                         Claim      Renew     Report   RequestCancel   Release      Fail         Succeed     FinishFailed  Lapse
        ("pending", pending(),              [TAKEN,     LOST,     LOST,    CANCELLED,      LOST,        LOST,        LOST,       LOST,         "same"]),
        ("pending, not before later", scene(Stage::Pending { ready: later }),
                                            ["NotReady", LOST,    LOST,    CANCELLED,      LOST,        LOST,        LOST,       LOST,         "same"]),
        ("pending, too late", pending().total_timeout_over(),
                                            [TOTAL_TIMEOUT, LOST, LOST,    CANCELLED,      LOST,        LOST,        LOST,       LOST,         TOTAL_TIMEOUT]),
        ("running", running(later),         [HELD,      KEPT,     "note",  "cancelling/1", "pending+0", "pending+5", "response", WORK_FAILED,  "same"]),
        ("running, second attempt", running(later).attempts(2),
                                            [HELD,      KEPT,     "note",  "cancelling/1", "pending+0", "pending+10", "response", WORK_FAILED, "same"]),
        ("running, last attempt", running(later).attempts(3),
                                            [HELD,      KEPT,     "note",  "cancelling/1", "pending+0", WORK_FAILED, "response", WORK_FAILED,  "same"]),
        ("running by its creator", running(later).terms(own),
                                            [HELD,      KEPT,     "note",  "cancelling/1", WORKER_LOST, WORK_FAILED, "response", WORK_FAILED,  "same"]),
        ("running, lease over", running(NOW),
                                            [TAKEN,     LOST,     LOST,    "cancelling/1", LOST,        LOST,        LOST,       LOST,         "pending+0"]),
        ("running, lease over, last attempt", running(NOW).attempts(3),
                                            [WORKER_LOST, LOST,   LOST,    "cancelling/1", LOST,        LOST,        LOST,       LOST,         WORKER_LOST]),
        ("running by its creator, lease over", running(NOW).terms(own),
                                            [WORKER_LOST, LOST,   LOST,    "cancelling/1", LOST,        LOST,        LOST,       LOST,         WORKER_LOST]),
        ("running, attempt over", running(later).lease(attempt_over),
                                            ["NotReady", KEPT,    "note",  "cancelling/1", "pending+0", "pending+5", "response", WORK_FAILED,  "pending+5"]),
        ("running, last attempt over", running(later).lease(attempt_over).attempts(3),
                                            [ATTEMPT_TIMEOUT, KEPT, "note", "cancelling/1", "pending+0", WORK_FAILED, "response", WORK_FAILED, ATTEMPT_TIMEOUT]),
        ("running, too late", running(later).total_timeout_over(),
                                            [TOTAL_TIMEOUT, KEPT, "note",  "cancelling/1", "pending+0", "pending+5", "response", WORK_FAILED,  TOTAL_TIMEOUT]),
        ("cancelling", cancelling(later),   [HELD,      STOPPING, "note",  "same",         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  "same"]),
        ("cancelling, last attempt", cancelling(later).attempts(3),
                                            [HELD,      STOPPING, "note",  "same",         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  "same"]),
        ("cancelling, lease over", cancelling(NOW),
                                            [CANCELLED, LOST,     LOST,    "same",         LOST,        LOST,        LOST,       LOST,         CANCELLED]),
        ("cancelling, attempt over", cancelling(later).lease(attempt_over),
                                            [CANCELLED, STOPPING, "note",  "same",         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  CANCELLED]),
        ("cancelling, grace over", cancelling(later).lease(no_grace),
                                            [CANCELLED, STOPPING, "note",  "same",         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  CANCELLED]),
        ("cancelling, too late", cancelling(later).total_timeout_over(),
                                            [TOTAL_TIMEOUT, STOPPING, "note", "same",      CANCELLED,   CANCELLED,   "response", WORK_FAILED,  TOTAL_TIMEOUT]),
        ("done", done(Ending::Succeeded),   [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "same"]),
        ("done, failed", done(Ending::Failed),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "same"]),
        ("done, cancelled", done(Ending::Cancelled),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "same"]),
        ("done the same way", done(Ending::Succeeded).same_outcome(),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        "same",      "same",     "same",       "same"]),
        ("done, too late for all", done(Ending::Succeeded).total_timeout_over(),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "same"]),
        ("done, retention over", done(Ending::Succeeded).terms(|terms| terms.retention = 10 * SECOND),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "forget"]),
    ]
}

const DONE: &str = "AlreadyDone";

#[test]
fn every_cell_of_the_table_is_as_the_behaviour_says() {
    for (situation, scene, expected) in table() {
        for (name, expected) in EVENTS.iter().zip(expected) {
            let cell = scene.cell(&event(name, token(1)));
            assert_eq!(cell, expected, "{situation} × {name}");
        }
    }
}

#[test]
fn a_stale_or_foreign_token_is_refused_in_every_stage_that_has_a_lease() {
    for (situation, scene, expected) in table() {
        let row = scene.row(token(9));
        for ((name, cell), expected) in EVENTS.iter().zip(row).zip(expected) {
            let of_holder = matches!(
                *name,
                "Renew" | "Report" | "Release" | "Fail" | "Succeed" | "FinishFailed"
            );
            let has_lease = scene.stage.lease().is_some();
            let expected = if of_holder && has_lease {
                LOST
            } else {
                expected
            };
            assert_eq!(cell, expected, "{situation} × {name} of a stranger");
        }
    }
}

#[test]
fn a_worker_that_lost_its_lease_is_told_how() {
    let loss = |scene: Scene, speaker| {
        let facts = Facts {
            now: NOW,
            terms: &scene.terms,
            create_time: scene.create_time,
            update_time: scene.update_time,
            attempts: scene.attempts,
            same_outcome: false,
        };
        next(&scene.stage, &event("Renew", speaker), facts)
    };
    for (scene, speaker, expected) in [
        (pending(), token(1), Loss::Returned),
        (running(NOW), token(1), Loss::Over),
        (running(NOW + SECOND), token(9), Loss::Taken),
        (cancelling(NOW), token(1), Loss::Over),
        (cancelling(NOW + SECOND), token(9), Loss::Taken),
    ] {
        assert_eq!(loss(scene, speaker), Err(Refusal::LeaseLost(expected)));
    }
}

#[test]
fn a_lease_is_over_at_its_very_end_and_not_a_nanosecond_before() {
    let last = Timestamp::from_nanos(NOW.nanos() + 1);
    assert_eq!(running(last).cell(&event("Renew", token(1))), KEPT);
    assert_eq!(running(NOW).cell(&event("Renew", token(1))), LOST);
    assert_eq!(running(last).cell(&Event::Lapse), "same");
}

#[test]
fn retention_counts_from_completion_and_not_from_creation() {
    let scene = done(Ending::Succeeded).terms(|terms| terms.retention = 11 * SECOND);
    assert_eq!(scene.create_time, ago(100));
    assert_eq!(scene.cell(&Event::Lapse), "same");
}

#[test]
fn retry_after_makes_the_pause_longer_but_never_shorter() {
    let pause = |retry_after| {
        let error = Box::new(status(Code::Unavailable, "BUSY", "busy"));
        running(NOW + SECOND).cell(&Event::Fail {
            token: token(1),
            error,
            retry_after,
            report: Report::default(),
        })
    };
    assert_eq!(pause(Some(60 * SECOND)), "pending+60");
    assert_eq!(pause(Some(SECOND)), "pending+5");
}

#[test]
fn a_new_lease_carries_the_attempt_timeout_and_a_cancellation_carries_its_grace() {
    let limits = |terms: &mut Terms| {
        terms.attempt_timeout = Some(7 * SECOND);
        terms.cancel_grace = Some(3 * SECOND);
    };
    let facts = |scene: &Scene, event: &Event| {
        let facts = Facts {
            now: NOW,
            terms: &scene.terms,
            create_time: scene.create_time,
            update_time: scene.update_time,
            attempts: 1,
            same_outcome: false,
        };
        next(&scene.stage, event, facts).unwrap()
    };
    let Next::To(stage) = facts(&pending().terms(limits), &event("Claim", token(1))) else {
        panic!("a claim leads to another stage");
    };
    let lease = stage.lease().unwrap();
    assert_eq!(lease.attempt_until, Some(NOW + 7 * SECOND));
    assert_eq!(lease.cancel_until, None);
    assert_eq!(lease.deadline(), NOW + 7 * SECOND);

    let scene = running(NOW + SECOND).terms(limits);
    let Next::To(stage) = facts(&scene, &Event::RequestCancel) else {
        panic!("a cancellation leads to another stage");
    };
    assert_eq!(stage.lease().unwrap().cancel_until, Some(NOW + 3 * SECOND));

    // Renewing moves neither of the two.
    let scene = Scene { stage, ..scene };
    let Next::To(stage) = facts(&scene, &Event::Renew(token(1), Report::default())) else {
        panic!("a renewal leads to another lease");
    };
    assert_eq!(stage.lease().unwrap().cancel_until, Some(NOW + 3 * SECOND));
}
