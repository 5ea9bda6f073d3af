//! STATE-1 as a table: every phase, before and after each of its deadlines,
//! with every event.

use std::time::Duration;

use prost::Message;

use super::*;
use crate::{
    operation::{options::QueueName, payload::Payload, retry::RetryPolicy},
    proto::google::rpc::ErrorInfo,
};

const NOW: Timestamp = Timestamp::from_nanos(1_790_000_000_000_000_000);
const SECOND: Duration = Duration::from_secs(1);

/// The columns of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
enum EventKind {
    AcquireLease,
    RenewLease,
    Report,
    RequestCancel,
    ReleaseLease,
    Fail,
    Succeed,
    FinishFailed,
    TimerFired,
}

const EVENTS: [EventKind; 9] = [
    EventKind::AcquireLease,
    EventKind::RenewLease,
    EventKind::Report,
    EventKind::RequestCancel,
    EventKind::ReleaseLease,
    EventKind::Fail,
    EventKind::Succeed,
    EventKind::FinishFailed,
    EventKind::TimerFired,
];

/// A phase with its [`TransitionContext`].
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

    fn transition(&self, event: &Event) -> Result<Transition, TransitionError> {
        let context = TransitionContext {
            now: NOW,
            options: &self.options,
            create_time: self.create_time,
            update_time: self.update_time,
            counted_attempts: self.counted_attempts,
            same_outcome: self.same_outcome,
        };
        transition(&self.phase, event, context)
    }

    /// Returns the cell of the table.
    fn transition_text(&self, event: &Event) -> String {
        describe(self.transition(event))
    }
}

fn event(kind: EventKind, token: LeaseToken) -> Event {
    let error = || {
        Box::new(status_with_reason(
            Code::NotFound,
            "WORK_FAILED",
            "no such file",
        ))
    };
    match kind {
        EventKind::AcquireLease => Event::AcquireLease {
            token: self::token(2),
            worker: WorkerId::new("v"),
        },
        EventKind::RenewLease => Event::RenewLease(token, Report::default()),
        EventKind::Report => Event::Report(token, Report::default()),
        EventKind::RequestCancel => Event::RequestCancel,
        EventKind::ReleaseLease => Event::ReleaseLease(token, Report::default()),
        EventKind::Fail => Event::Fail {
            token,
            error: error(),
            retry_after: None,
            report: Report::default(),
        },
        EventKind::Succeed => Event::Finish(
            token,
            Outcome::Response(Payload::empty()),
            Report::default(),
        ),
        EventKind::FinishFailed => Event::Finish(token, Outcome::Error(error()), Report::default()),
        EventKind::TimerFired => Event::TimerFired,
    }
}

fn describe(transition: Result<Transition, TransitionError>) -> String {
    match transition {
        Err(TransitionError::LeaseLost(_)) => "LeaseLost".into(),
        Err(error) => format!("{error:?}"),
        Ok(Transition::Unchanged) => "unchanged".into(),
        Ok(Transition::MergeReport) => "merged".into(),
        Ok(Transition::Remove) => "removed".into(),
        Ok(Transition::To(Phase::Pending { ready_at })) => {
            format!("pending+{}", ready_at.since(NOW).as_secs())
        }
        Ok(Transition::To(Phase::Running(lease))) => format!("running/{}", describe_lease(&lease)),
        Ok(Transition::To(Phase::Cancelling(lease))) => {
            format!("cancelling/{}", describe_lease(&lease))
        }
        Ok(Transition::To(Phase::Done(_))) => "invalid: done without an outcome".into(),
        Ok(Transition::Finish(Outcome::Response(_))) => "response".into(),
        Ok(Transition::Finish(Outcome::Error(error))) => {
            let info = ErrorInfo::decode(error.details[0].value.as_slice()).unwrap();
            format!("{} {}", error.code, info.reason)
        }
    }
}

/// Returns the first byte of the token, and whether the lease has its full duration.
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
const DONE: &str = "AlreadyDone";
const UNCHANGED: &str = "unchanged";
const MERGED: &str = "merged";
const LEASED: &str = "running/2 full";
const RENEWED: &str = "running/1 full";
const CANCELLING: &str = "cancelling/1 full";

/// Returns every situation with the effect of each of [`EVENTS`] under the holder's token.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, Fixture, [&'static str; 9])> {
    let later = NOW + 10 * SECOND;
    let cancel_deadline_reached = |lease: &mut Lease| lease.cancel_deadline = Some(NOW);
    let attempt_deadline_reached = |lease: &mut Lease| lease.attempt_deadline = Some(NOW);
    let self_executed = |options: &mut ExecutionOptions| options.queue = None;
    vec![
        // situation                         AcquireLease RenewLease Report RequestCancel ReleaseLease Fail      Succeed     FinishFailed  TimerFired
        ("pending", pending(),              [LEASED,     LOST,     LOST,    CANCELLED,      LOST,        LOST,        LOST,       LOST,         UNCHANGED]),
        ("pending, not ready", fixture(Phase::Pending { ready_at: later }),
                                            ["NotReady", LOST,    LOST,    CANCELLED,      LOST,        LOST,        LOST,       LOST,         UNCHANGED]),
        ("pending, total timeout exceeded", pending().with_total_timeout_exceeded(),
                                            [TOTAL_TIMEOUT, LOST, LOST,    CANCELLED,      LOST,        LOST,        LOST,       LOST,         TOTAL_TIMEOUT]),
        ("running", running(later),         [HELD,      RENEWED,     MERGED,  "cancelling/1", "pending+0", "pending+5", "response", WORK_FAILED,  UNCHANGED]),
        ("running, second attempt", running(later).with_counted_attempts(2),
                                            [HELD,      RENEWED,     MERGED,  "cancelling/1", "pending+0", "pending+10", "response", WORK_FAILED, UNCHANGED]),
        ("running, last attempt", running(later).with_counted_attempts(3),
                                            [HELD,      RENEWED,     MERGED,  "cancelling/1", "pending+0", WORK_FAILED, "response", WORK_FAILED,  UNCHANGED]),
        ("self-executed", running(later).with_options(self_executed),
                                            [HELD,      RENEWED,     MERGED,  "cancelling/1", WORKER_LOST, WORK_FAILED, "response", WORK_FAILED,  UNCHANGED]),
        ("running, lease expired", running(NOW),
                                            [LEASED,     LOST,     LOST,    "cancelling/1", LOST,        LOST,        LOST,       LOST,         "pending+0"]),
        ("running, lease expired, last attempt", running(NOW).with_counted_attempts(3),
                                            [WORKER_LOST, LOST,   LOST,    "cancelling/1", LOST,        LOST,        LOST,       LOST,         WORKER_LOST]),
        ("self-executed, lease expired", running(NOW).with_options(self_executed),
                                            [WORKER_LOST, LOST,   LOST,    "cancelling/1", LOST,        LOST,        LOST,       LOST,         WORKER_LOST]),
        ("running, attempt timed out", running(later).with_lease(attempt_deadline_reached),
                                            ["NotReady", RENEWED,    MERGED,  "cancelling/1", "pending+0", "pending+5", "response", WORK_FAILED,  "pending+5"]),
        ("running, last attempt timed out", running(later).with_lease(attempt_deadline_reached).with_counted_attempts(3),
                                            [ATTEMPT_TIMEOUT, RENEWED, MERGED, "cancelling/1", "pending+0", WORK_FAILED, "response", WORK_FAILED, ATTEMPT_TIMEOUT]),
        ("running, total timeout exceeded", running(later).with_total_timeout_exceeded(),
                                            [TOTAL_TIMEOUT, RENEWED, MERGED,  "cancelling/1", "pending+0", "pending+5", "response", WORK_FAILED,  TOTAL_TIMEOUT]),
        ("cancelling", cancelling(later),   [HELD,      CANCELLING, MERGED,  UNCHANGED,         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  UNCHANGED]),
        ("cancelling, last attempt", cancelling(later).with_counted_attempts(3),
                                            [HELD,      CANCELLING, MERGED,  UNCHANGED,         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  UNCHANGED]),
        ("cancelling, lease expired", cancelling(NOW),
                                            [CANCELLED, LOST,     LOST,    UNCHANGED,         LOST,        LOST,        LOST,       LOST,         CANCELLED]),
        ("cancelling, attempt timed out", cancelling(later).with_lease(attempt_deadline_reached),
                                            [CANCELLED, CANCELLING, MERGED,  UNCHANGED,         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  CANCELLED]),
        ("cancelling, grace period over", cancelling(later).with_lease(cancel_deadline_reached),
                                            [CANCELLED, CANCELLING, MERGED,  UNCHANGED,         CANCELLED,   CANCELLED,   "response", WORK_FAILED,  CANCELLED]),
        ("cancelling, total timeout exceeded", cancelling(later).with_total_timeout_exceeded(),
                                            [TOTAL_TIMEOUT, CANCELLING, MERGED, UNCHANGED,      CANCELLED,   CANCELLED,   "response", WORK_FAILED,  TOTAL_TIMEOUT]),
        ("done", done(TerminalState::Succeeded),   [DONE,      DONE,     DONE,    UNCHANGED,         DONE,        DONE,        DONE,       DONE,         UNCHANGED]),
        ("done, failed", done(TerminalState::Failed),
                                            [DONE,      DONE,     DONE,    UNCHANGED,         DONE,        DONE,        DONE,       DONE,         UNCHANGED]),
        ("done, cancelled", done(TerminalState::Cancelled),
                                            [DONE,      DONE,     DONE,    UNCHANGED,         DONE,        DONE,        DONE,       DONE,         UNCHANGED]),
        ("done with the same outcome", done(TerminalState::Succeeded).with_same_outcome(),
                                            [DONE,      DONE,     DONE,    UNCHANGED,         DONE,        UNCHANGED,      UNCHANGED,     UNCHANGED,       UNCHANGED]),
        ("done, total timeout exceeded", done(TerminalState::Succeeded).with_total_timeout_exceeded(),
                                            [DONE,      DONE,     DONE,    UNCHANGED,         DONE,        DONE,        DONE,       DONE,         UNCHANGED]),
        ("done, retention exceeded", done(TerminalState::Succeeded).with_options(|options| options.retention = 10 * SECOND),
                                            [DONE,      DONE,     DONE,    UNCHANGED,         DONE,        DONE,        DONE,       DONE,         "removed"]),
    ]
}

// Rules: STATE-1
#[test]
fn transition_table_matches_specification() {
    for (situation, fixture, expected) in table() {
        for (kind, expected) in EVENTS.into_iter().zip(expected) {
            let actual = fixture.transition_text(&event(kind, token(1)));
            assert_eq!(actual, expected, "{situation} × {kind:?}");
        }
    }
}

// Rules: STATE-2
#[test]
fn stale_or_foreign_token_is_rejected_in_every_leased_phase() {
    for (situation, fixture, expected) in table() {
        for (kind, expected) in EVENTS.into_iter().zip(expected) {
            let needs_token = !matches!(
                kind,
                EventKind::AcquireLease | EventKind::RequestCancel | EventKind::TimerFired
            );
            let is_rejected = needs_token && fixture.phase.lease().is_some();
            let expected = if is_rejected { LOST } else { expected };
            let actual = fixture.transition_text(&event(kind, token(9)));
            assert_eq!(
                actual, expected,
                "{situation} × {kind:?} with a foreign token"
            );
        }
    }
}

// Rules: LEASE-6
#[test]
fn lost_lease_error_names_its_reason() {
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
            fixture.transition(&event(EventKind::RenewLease, token)),
            Err(TransitionError::LeaseLost(expected))
        );
    }
}

// Rules: LEASE-3
#[test]
fn lease_expires_exactly_at_expires_at() {
    let next_nanosecond = Timestamp::from_nanos(NOW.nanos() + 1);
    assert_eq!(
        running(next_nanosecond).transition_text(&event(EventKind::RenewLease, token(1))),
        RENEWED
    );
    assert_eq!(
        running(NOW).transition_text(&event(EventKind::RenewLease, token(1))),
        LOST
    );
    assert_eq!(
        running(next_nanosecond).transition_text(&Event::TimerFired),
        UNCHANGED
    );
}

// Rules: OP-10
#[test]
fn retention_counts_from_completion_and_not_from_creation() {
    let fixture =
        done(TerminalState::Succeeded).with_options(|options| options.retention = 11 * SECOND);
    assert_eq!(fixture.create_time, seconds_ago(100));
    assert_eq!(fixture.transition_text(&Event::TimerFired), UNCHANGED);
}

// Rules: STATE-6
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

// Rules: CAN-6, STATE-9
#[test]
fn lease_gets_attempt_deadline_and_cancellation_gets_cancel_deadline() {
    let set_timeouts = |options: &mut ExecutionOptions| {
        options.attempt_timeout = Some(7 * SECOND);
        options.cancel_grace_period = Some(3 * SECOND);
    };
    let next_lease = |fixture: &Fixture, event: &Event| match fixture.transition(event) {
        Ok(Transition::To(phase)) => phase.lease().unwrap().clone(),
        other => panic!("expected a phase with a lease, got {other:?}"),
    };
    let leased = next_lease(
        &pending().with_options(set_timeouts),
        &event(EventKind::AcquireLease, token(1)),
    );
    assert_eq!(leased.attempt_deadline, Some(NOW + 7 * SECOND));
    assert_eq!(leased.cancel_deadline, None);
    assert_eq!(leased.next_deadline(), NOW + 7 * SECOND);

    let fixture = running(NOW + SECOND).with_options(set_timeouts);
    let cancelling = next_lease(&fixture, &Event::RequestCancel);
    assert_eq!(cancelling.cancel_deadline, Some(NOW + 3 * SECOND));

    // A renewal moves neither deadline.
    let fixture = Fixture {
        phase: Phase::Cancelling(Box::new(cancelling)),
        ..fixture
    };
    let renewed = next_lease(&fixture, &event(EventKind::RenewLease, token(1)));
    assert_eq!(renewed.cancel_deadline, Some(NOW + 3 * SECOND));
}
