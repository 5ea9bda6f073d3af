//! BEHAVIOUR §4 as a table: every stage, in every situation that time can put
//! it in, against every event. Sequences of events are tested in `operation`.

use std::time::Duration;

use prost::Message;

use super::*;
use crate::{
    operation::{options::QueueName, retry::RetryPolicy},
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
struct Fixture {
    phase: Phase,
    options: ExecutionOptions,
    create_time: Timestamp,
    update_time: Timestamp,
    counted_attempts: u32,
    same_outcome: bool,
}

fn seconds_ago(seconds: u32) -> Timestamp {
    Timestamp::from_nanos(NOW.nanos() - i64::from(seconds) * 1_000_000_000)
}

fn token(n: u8) -> LeaseToken {
    LeaseToken::from_bytes(&[n; 16]).unwrap()
}

fn fixture(phase: Phase) -> Fixture {
    Fixture {
        phase,
        options: ExecutionOptions {
            queue: Some(QueueName::parse("q").unwrap()),
            lease_duration: 30 * SECOND,
            retry_policy: RetryPolicy {
                jitter: 0.0,
                initial_backoff: 5 * SECOND,
                ..RetryPolicy::with_max_attempts(3)
            },
            retention: 60 * SECOND,
            ..ExecutionOptions::default()
        },
        create_time: seconds_ago(100),
        update_time: seconds_ago(10),
        counted_attempts: 1,
        same_outcome: false,
    }
}

fn lease(expires_at: Timestamp) -> Box<Lease> {
    Box::new(Lease {
        token: token(1),
        holder: WorkerId::new("w"),
        expires_at,
        attempt_deadline: None,
        cancel_deadline: None,
    })
}

fn pending() -> Fixture {
    fixture(Phase::Pending {
        ready_at: seconds_ago(1),
    })
}

fn running(expires_at: Timestamp) -> Fixture {
    fixture(Phase::Running(lease(expires_at)))
}

fn cancelling(expires_at: Timestamp) -> Fixture {
    fixture(Phase::Cancelling(lease(expires_at)))
}

fn done(state: TerminalState) -> Fixture {
    fixture(Phase::Done(state))
}

impl Fixture {
    fn with_options(mut self, change: impl FnOnce(&mut ExecutionOptions)) -> Self {
        change(&mut self.options);
        self
    }

    fn with_lease(mut self, change: impl FnOnce(&mut Lease)) -> Self {
        if let Phase::Running(lease) | Phase::Cancelling(lease) = &mut self.phase {
            change(lease);
        }
        self
    }

    fn with_counted_attempts(mut self, counted_attempts: u32) -> Self {
        self.counted_attempts = counted_attempts;
        self
    }

    fn with_total_timeout_exceeded(self) -> Self {
        self.with_options(|options| options.total_timeout = Some(100 * SECOND))
    }

    fn with_same_outcome(mut self) -> Self {
        self.same_outcome = true;
        self
    }

    /// One cell, in words.
    fn transition_text(&self, event: &Event) -> String {
        let context = TransitionContext {
            now: NOW,
            options: &self.options,
            create_time: self.create_time,
            update_time: self.update_time,
            counted_attempts: self.counted_attempts,
            same_outcome: self.same_outcome,
        };
        describe(transition(&self.phase, event, context))
    }

    fn transition_texts(&self, token: LeaseToken) -> Vec<String> {
        EVENTS
            .iter()
            .map(|name| self.transition_text(&event(name, token)))
            .collect()
    }
}

fn event(name: &str, token: LeaseToken) -> Event {
    let error = || {
        Box::new(status_with_reason(
            Code::NotFound,
            "WORK_FAILED",
            "no such file",
        ))
    };
    match name {
        "Claim" => Event::AcquireLease {
            token: self::token(2),
            worker: WorkerId::new("v"),
        },
        "Renew" => Event::RenewLease(token, Report::default()),
        "Report" => Event::Report(token, Report::default()),
        "RequestCancel" => Event::RequestCancel,
        "Release" => Event::ReleaseLease(token, Report::default()),
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
        _ => Event::TimerFired,
    }
}

fn describe(transition: Result<Transition, TransitionError>) -> String {
    match transition {
        Err(TransitionError::LeaseLost(_)) => "LeaseLost".into(),
        Err(error) => format!("{error:?}"),
        Ok(Transition::Unchanged) => "same".into(),
        Ok(Transition::MergeReport) => "note".into(),
        Ok(Transition::Remove) => "forget".into(),
        Ok(Transition::To(Phase::Pending { ready_at })) => {
            format!("pending+{}", ready_at.since(NOW).as_secs())
        }
        Ok(Transition::To(Phase::Running(lease))) => format!("running/{}", describe_lease(&lease)),
        Ok(Transition::To(Phase::Cancelling(lease))) => {
            format!("cancelling/{}", describe_lease(&lease))
        }
        Ok(Transition::To(Phase::Done(_))) => "done without an outcome".into(),
        Ok(Transition::Finish(Outcome::Response(_))) => "response".into(),
        Ok(Transition::Finish(Outcome::Error(error))) => {
            let info = ErrorInfo::decode(error.details[0].value.as_slice()).unwrap();
            format!("{} {}", error.code, info.reason)
        }
    }
}

/// Whose lease it is, and whether it has its full time before it.
fn describe_lease(lease: &Lease) -> String {
    let has_full_duration = lease.expires_at.since(NOW) == 30 * SECOND;
    format!(
        "{}{}",
        lease.token.as_bytes()[0],
        if has_full_duration { " full" } else { "" }
    )
}

const CANCELLED: &str = "1 OPERATION_CANCELLED";
const WORK_FAILED: &str = "5 WORK_FAILED";
const WORKER_LOST: &str = "14 WORKER_LOST";
const TOTAL_TIMEOUT: &str = "4 TOTAL_TIMEOUT";
const ATTEMPT_TIMEOUT: &str = "4 ATTEMPT_TIMEOUT";
const LOST: &str = "LeaseLost";
const HELD: &str = "LeaseHeld";
const LEASED: &str = "running/2 full";
const RENEWED: &str = "running/1 full";
const CANCELLING: &str = "cancelling/1 full";

/// Every situation, and what each of [`EVENTS`] does to it if the holder speaks.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, Fixture, [&'static str; 9])> {
    let later = NOW + 10 * SECOND;
    let cancel_deadline_reached = |lease: &mut Lease| lease.cancel_deadline = Some(NOW);
    let attempt_deadline_reached = |lease: &mut Lease| lease.attempt_deadline = Some(NOW);
    let self_executed = |terms: &mut ExecutionOptions| terms.queue = None;
    vec![
        // situation                         Claim      Renew     Report   RequestCancel   Release      Fail         Succeed     FinishFailed  Lapse
        ("pending", pending(),              [LEASED,     LOST,     LOST,    CANCELLED,      LOST,        LOST,        LOST,       LOST,         "same"]),
        ("pending, not before later", fixture(Phase::Pending { ready_at: later }),
                                            ["NotReady", LOST,    LOST,    CANCELLED,      LOST,        LOST,        LOST,       LOST,         "same"]),
        ("pending, too late", pending().with_total_timeout_exceeded(),
                                            [TOTAL_TIMEOUT, LOST, LOST,    CANCELLED,      LOST,        LOST,        LOST,       LOST,         TOTAL_TIMEOUT]),
        ("running", running(later),         [HELD,      RENEWED,     "note",  "cancelling/1", "pending+0", "pending+5", "response", WORK_FAILED,  "same"]),
        ("running, second attempt", running(later).with_counted_attempts(2),
                                            [HELD,      RENEWED,     "note",  "cancelling/1", "pending+0", "pending+10", "response", WORK_FAILED, "same"]),
        ("running, last attempt", running(later).with_counted_attempts(3),
                                            [HELD,      RENEWED,     "note",  "cancelling/1", "pending+0", WORK_FAILED, "response", WORK_FAILED,  "same"]),
        ("running by its creator", running(later).with_options(self_executed),
                                            [HELD,      RENEWED,     "note",  "cancelling/1", WORKER_LOST, WORK_FAILED, "response", WORK_FAILED,  "same"]),
        ("running, lease over", running(NOW),
                                            [LEASED,     LOST,     LOST,    "cancelling/1", LOST,        LOST,        LOST,       LOST,         "pending+0"]),
        ("running, lease over, last attempt", running(NOW).with_counted_attempts(3),
                                            [WORKER_LOST, LOST,   LOST,    "cancelling/1", LOST,        LOST,        LOST,       LOST,         WORKER_LOST]),
        ("running by its creator, lease over", running(NOW).with_options(self_executed),
                                            [WORKER_LOST, LOST,   LOST,    "cancelling/1", LOST,        LOST,        LOST,       LOST,         WORKER_LOST]),
        ("running, attempt over", running(later).with_lease(attempt_deadline_reached),
                                            ["NotReady", RENEWED,    "note",  "cancelling/1", "pending+0", "pending+5", "response", WORK_FAILED,  "pending+5"]),
        ("running, last attempt over", running(later).with_lease(attempt_deadline_reached).with_counted_attempts(3),
                                            [ATTEMPT_TIMEOUT, RENEWED, "note", "cancelling/1", "pending+0", WORK_FAILED, "response", WORK_FAILED, ATTEMPT_TIMEOUT]),
        ("running, too late", running(later).with_total_timeout_exceeded(),
                                            [TOTAL_TIMEOUT, RENEWED, "note",  "cancelling/1", "pending+0", "pending+5", "response", WORK_FAILED,  TOTAL_TIMEOUT]),
        ("cancelling", cancelling(later),   [HELD,      CANCELLING, "note",  "same",         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  "same"]),
        ("cancelling, last attempt", cancelling(later).with_counted_attempts(3),
                                            [HELD,      CANCELLING, "note",  "same",         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  "same"]),
        ("cancelling, lease over", cancelling(NOW),
                                            [CANCELLED, LOST,     LOST,    "same",         LOST,        LOST,        LOST,       LOST,         CANCELLED]),
        ("cancelling, attempt over", cancelling(later).with_lease(attempt_deadline_reached),
                                            [CANCELLED, CANCELLING, "note",  "same",         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  CANCELLED]),
        ("cancelling, grace over", cancelling(later).with_lease(cancel_deadline_reached),
                                            [CANCELLED, CANCELLING, "note",  "same",         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  CANCELLED]),
        ("cancelling, too late", cancelling(later).with_total_timeout_exceeded(),
                                            [TOTAL_TIMEOUT, CANCELLING, "note", "same",      CANCELLED,   CANCELLED,   "response", WORK_FAILED,  TOTAL_TIMEOUT]),
        ("done", done(TerminalState::Succeeded),   [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "same"]),
        ("done, failed", done(TerminalState::Failed),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "same"]),
        ("done, cancelled", done(TerminalState::Cancelled),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "same"]),
        ("done the same way", done(TerminalState::Succeeded).with_same_outcome(),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        "same",      "same",     "same",       "same"]),
        ("done, too late for all", done(TerminalState::Succeeded).with_total_timeout_exceeded(),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "same"]),
        ("done, retention over", done(TerminalState::Succeeded).with_options(|terms| terms.retention = 10 * SECOND),
                                            [DONE,      DONE,     DONE,    "same",         DONE,        DONE,        DONE,       DONE,         "forget"]),
    ]
}

const DONE: &str = "AlreadyDone";

#[test]
fn transition_table_matches_specification() {
    for (situation, fixture, expected) in table() {
        for (name, expected) in EVENTS.iter().zip(expected) {
            let actual = fixture.transition_text(&event(name, token(1)));
            assert_eq!(actual, expected, "{situation} × {name}");
        }
    }
}

#[test]
fn stale_or_foreign_token_is_rejected_in_every_leased_phase() {
    for (situation, fixture, expected) in table() {
        let texts = fixture.transition_texts(token(9));
        for ((name, actual), expected) in EVENTS.iter().zip(texts).zip(expected) {
            let needs_token = matches!(
                *name,
                "Renew" | "Report" | "Release" | "Fail" | "Succeed" | "FinishFailed"
            );
            let has_lease = fixture.phase.lease().is_some();
            let expected = if needs_token && has_lease {
                LOST
            } else {
                expected
            };
            assert_eq!(actual, expected, "{situation} × {name} of a stranger");
        }
    }
}

#[test]
fn lost_lease_error_names_its_reason() {
    let renew_lease = |fixture: Fixture, token| {
        let context = TransitionContext {
            now: NOW,
            options: &fixture.options,
            create_time: fixture.create_time,
            update_time: fixture.update_time,
            counted_attempts: fixture.counted_attempts,
            same_outcome: false,
        };
        transition(&fixture.phase, &event("Renew", token), context)
    };
    for (fixture, token, expected) in [
        (pending(), token(1), LeaseLostReason::Requeued),
        (running(NOW), token(1), LeaseLostReason::Expired),
        (running(NOW + SECOND), token(9), LeaseLostReason::Superseded),
        (cancelling(NOW), token(1), LeaseLostReason::Expired),
        (
            cancelling(NOW + SECOND),
            token(9),
            LeaseLostReason::Superseded,
        ),
    ] {
        assert_eq!(
            renew_lease(fixture, token),
            Err(TransitionError::LeaseLost(expected))
        );
    }
}

#[test]
fn lease_expires_exactly_at_expires_at() {
    let next_nanosecond = Timestamp::from_nanos(NOW.nanos() + 1);
    assert_eq!(
        running(next_nanosecond).transition_text(&event("Renew", token(1))),
        RENEWED
    );
    assert_eq!(
        running(NOW).transition_text(&event("Renew", token(1))),
        LOST
    );
    assert_eq!(
        running(next_nanosecond).transition_text(&Event::TimerFired),
        "same"
    );
}

#[test]
fn retention_counts_from_completion_and_not_from_creation() {
    let fixture =
        done(TerminalState::Succeeded).with_options(|terms| terms.retention = 11 * SECOND);
    assert_eq!(fixture.create_time, seconds_ago(100));
    assert_eq!(fixture.transition_text(&Event::TimerFired), "same");
}

#[test]
fn retry_after_extends_but_never_shortens_backoff() {
    let fail_with_retry_after = |retry_after| {
        let error = Box::new(status_with_reason(Code::Unavailable, "BUSY", "busy"));
        running(NOW + SECOND).transition_text(&Event::Fail {
            token: token(1),
            error,
            retry_after,
            report: Report::default(),
        })
    };
    assert_eq!(fail_with_retry_after(Some(60 * SECOND)), "pending+60");
    assert_eq!(fail_with_retry_after(Some(SECOND)), "pending+5");
}

#[test]
fn lease_gets_attempt_deadline_and_cancellation_gets_cancel_deadline() {
    let set_timeouts = |terms: &mut ExecutionOptions| {
        terms.attempt_timeout = Some(7 * SECOND);
        terms.cancel_grace_period = Some(3 * SECOND);
    };
    let apply = |fixture: &Fixture, event: &Event| {
        let context = TransitionContext {
            now: NOW,
            options: &fixture.options,
            create_time: fixture.create_time,
            update_time: fixture.update_time,
            counted_attempts: 1,
            same_outcome: false,
        };
        transition(&fixture.phase, event, context).unwrap()
    };
    let Transition::To(phase) = apply(
        &pending().with_options(set_timeouts),
        &event("Claim", token(1)),
    ) else {
        panic!("a claim leads to another stage");
    };
    let lease = phase.lease().unwrap();
    assert_eq!(lease.attempt_deadline, Some(NOW + 7 * SECOND));
    assert_eq!(lease.cancel_deadline, None);
    assert_eq!(lease.next_deadline(), NOW + 7 * SECOND);

    let fixture = running(NOW + SECOND).with_options(set_timeouts);
    let Transition::To(phase) = apply(&fixture, &Event::RequestCancel) else {
        panic!("a cancellation leads to another stage");
    };
    assert_eq!(
        phase.lease().unwrap().cancel_deadline,
        Some(NOW + 3 * SECOND)
    );

    // Renewing moves neither of the two.
    let fixture = Fixture { phase, ..fixture };
    let Transition::To(phase) = apply(&fixture, &Event::RenewLease(token(1), Report::default()))
    else {
        panic!("a renewal leads to another lease");
    };
    assert_eq!(
        phase.lease().unwrap().cancel_deadline,
        Some(NOW + 3 * SECOND)
    );
}
