//! STATE-1 as a table: every phase, before and after each of its deadlines, with every event.

use std::time::Duration;

use prost::Message;

use super::*;
use crate::{
    operation::{
        options::{ExecutionOptions, QueueName},
        outcome::status_with_reason,
        payload::Payload,
        retry::RetryPolicy,
    },
    proto::google::rpc::ErrorInfo,
};

const NOW: Timestamp = Timestamp::from_nanos(1_790_000_000_000_000_000);
const SECOND: Duration = Duration::from_secs(1);

/// The columns of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
enum EventKind {
    AcquireLease,
    Heartbeat,
    Report,
    RequestCancel,
    ReleaseLease,
    RevokeLease,
    Fail,
    Succeed,
    FinishFailed,
    TimerFired,
}

const EVENTS: [EventKind; 10] = [
    EventKind::AcquireLease,
    EventKind::Heartbeat,
    EventKind::Report,
    EventKind::RequestCancel,
    EventKind::ReleaseLease,
    EventKind::RevokeLease,
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
    failed_attempts: u32,
    worker_losses: u32,
    unconfirmed_leases: u32,
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
                max_worker_losses: 2,
                ..RetryPolicy::with_max_attempts(3)
            },
            retention: 60 * SECOND,
            ..ExecutionOptions::default()
        },
        create_time: seconds_ago(100),
        update_time: seconds_ago(10),
        failed_attempts: 0,
        worker_losses: 0,
        unconfirmed_leases: 0,
        same_outcome: false,
    }
}

fn lease(expires_at: Timestamp) -> Box<Lease> {
    Box::new(Lease {
        token: token(1),
        holder: WorkerId::new("w"),
        start_time: seconds_ago(20),
        expires_at,
        confirm_by: None,
        attempt_deadline: None,
        cancel_deadline: None,
    })
}

fn unconfirmed_lease(confirm_by: Timestamp) -> Box<Lease> {
    let mut lease = lease(NOW + 10 * SECOND);
    lease.confirm_by = Some(confirm_by);
    lease
}

fn pending() -> Fixture {
    fixture(Phase::Pending {
        ready_at: seconds_ago(1),
    })
}

fn running(expires_at: Timestamp) -> Fixture {
    fixture(Phase::Running(lease(expires_at)))
}

fn unconfirmed(confirm_by: Timestamp) -> Fixture {
    fixture(Phase::Running(unconfirmed_lease(confirm_by)))
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

    fn with_failed_attempts(mut self, failed_attempts: u32) -> Self {
        self.failed_attempts = failed_attempts;
        self
    }

    fn with_worker_losses(mut self, worker_losses: u32) -> Self {
        self.worker_losses = worker_losses;
        self
    }

    fn with_unconfirmed_leases(mut self, unconfirmed_leases: u32) -> Self {
        self.unconfirmed_leases = unconfirmed_leases;
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
            failed_attempts: self.failed_attempts,
            worker_losses: self.worker_losses,
            unconfirmed_leases: self.unconfirmed_leases,
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
            confirm_within: None,
        },
        EventKind::Heartbeat => Event::Heartbeat(token, Report::default()),
        EventKind::Report => Event::Report(token, Report::default()),
        EventKind::RequestCancel => Event::RequestCancel,
        EventKind::ReleaseLease => Event::ReleaseLease(token, Report::default()),
        EventKind::RevokeLease => Event::RevokeLease(token),
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
        Ok(Transition::To(Phase::Pending { .. })) => "invalid: pending without a reason".into(),
        Ok(Transition::Requeue { ready_at, reason }) => {
            let reason = match reason {
                RequeueReason::Failed(_) => "failed",
                RequeueReason::WorkerLost(_) => "lost",
                RequeueReason::Released => "released",
                RequeueReason::Unconfirmed => "unconfirmed",
                RequeueReason::Revoked => "revoked",
            };
            format!("{reason}+{}", ready_at.since(NOW).as_secs())
        }
        Ok(Transition::RenewLease { expires_at }) => {
            format!("renewed+{}", expires_at.since(NOW).as_secs())
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
const RENEWED: &str = "renewed+30";

/// Returns every situation with the effect of each of [`EVENTS`] under the holder's token.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, Fixture, [&'static str; 10])> {
    let later = NOW + 10 * SECOND;
    let cancel_deadline_reached = |lease: &mut Lease| lease.cancel_deadline = Some(NOW);
    let attempt_deadline_reached = |lease: &mut Lease| lease.attempt_deadline = Some(NOW);
    let self_executed = |options: &mut ExecutionOptions| options.queue = None;
    vec![
        // situation: AcquireLease, Heartbeat, Report, RequestCancel, ReleaseLease, RevokeLease, Fail, Succeed, FinishFailed, TimerFired
        ("pending", pending(), [LEASED, LOST, LOST, CANCELLED, LOST, LOST, LOST, LOST, LOST, UNCHANGED]),
        ("pending, not ready", fixture(Phase::Pending { ready_at: later }), ["NotReady", LOST, LOST, CANCELLED, LOST, LOST, LOST, LOST, LOST, UNCHANGED]),
        ("pending, total timeout exceeded", pending().with_total_timeout_exceeded(), [TOTAL_TIMEOUT, LOST, LOST, CANCELLED, LOST, LOST, LOST, LOST, LOST, TOTAL_TIMEOUT]),
        ("running", running(later), [HELD, RENEWED, MERGED, "cancelling/1", "released+0", "revoked+0", "failed+5", "response", WORK_FAILED, UNCHANGED]),
        ("running, after one failure", running(later).with_failed_attempts(1), [HELD, RENEWED, MERGED, "cancelling/1", "released+0", "revoked+0", "failed+10", "response", WORK_FAILED, UNCHANGED]),
        ("running, after two failures", running(later).with_failed_attempts(2), [HELD, RENEWED, MERGED, "cancelling/1", "released+0", "revoked+0", WORK_FAILED, "response", WORK_FAILED, UNCHANGED]),
        ("running, after nine worker losses", running(later).with_worker_losses(9), [HELD, RENEWED, MERGED, "cancelling/1", "released+0", "revoked+0", "failed+5", "response", WORK_FAILED, UNCHANGED]),
        ("self-executed", running(later).with_options(self_executed), [HELD, RENEWED, MERGED, "cancelling/1", WORKER_LOST, WORKER_LOST, WORK_FAILED, "response", WORK_FAILED, UNCHANGED]),
        ("running, lease expired", running(NOW), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, "lost+5"]),
        ("running, lease expired after two failures", running(NOW).with_failed_attempts(2), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, "lost+5"]),
        ("running, lease expired, second worker loss", running(NOW).with_worker_losses(1), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, "lost+10"]),
        ("running, lease expired, third worker loss", running(NOW).with_worker_losses(2), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, WORKER_LOST]),
        ("running, lease expired, no worker loss allowed", running(NOW).with_options(|options| options.retry_policy.max_worker_losses = 0), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, WORKER_LOST]),
        ("self-executed, lease expired", running(NOW).with_options(self_executed), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, WORKER_LOST]),
        ("running, attempt timed out", running(later).with_lease(attempt_deadline_reached), [HELD, RENEWED, MERGED, "cancelling/1", "released+0", "revoked+0", "failed+5", "response", WORK_FAILED, "failed+5"]),
        ("running, last attempt timed out", running(later).with_lease(attempt_deadline_reached).with_failed_attempts(2), [HELD, RENEWED, MERGED, "cancelling/1", "released+0", "revoked+0", WORK_FAILED, "response", WORK_FAILED, ATTEMPT_TIMEOUT]),
        ("running, total timeout exceeded", running(later).with_total_timeout_exceeded(), [HELD, RENEWED, MERGED, "cancelling/1", "released+0", "revoked+0", "failed+5", "response", WORK_FAILED, TOTAL_TIMEOUT]),
        ("cancelling", cancelling(later), [HELD, RENEWED, MERGED, UNCHANGED, CANCELLED, CANCELLED, CANCELLED, "response", WORK_FAILED, UNCHANGED]),
        ("cancelling, after two failures", cancelling(later).with_failed_attempts(2), [HELD, RENEWED, MERGED, UNCHANGED, CANCELLED, CANCELLED, CANCELLED, "response", WORK_FAILED, UNCHANGED]),
        ("cancelling, lease expired", cancelling(NOW), [HELD, LOST, LOST, UNCHANGED, LOST, LOST, LOST, LOST, LOST, CANCELLED]),
        ("cancelling, attempt timed out", cancelling(later).with_lease(attempt_deadline_reached), [HELD, RENEWED, MERGED, UNCHANGED, CANCELLED, CANCELLED, CANCELLED, "response", WORK_FAILED, CANCELLED]),
        ("cancelling, grace period over", cancelling(later).with_lease(cancel_deadline_reached), [HELD, RENEWED, MERGED, UNCHANGED, CANCELLED, CANCELLED, CANCELLED, "response", WORK_FAILED, CANCELLED]),
        ("cancelling, total timeout exceeded", cancelling(later).with_total_timeout_exceeded(), [HELD, RENEWED, MERGED, UNCHANGED, CANCELLED, CANCELLED, CANCELLED, "response", WORK_FAILED, TOTAL_TIMEOUT]),
        ("unconfirmed", unconfirmed(later), [HELD, RENEWED, MERGED, "cancelling/1", "released+0", "revoked+0", "failed+5", "response", WORK_FAILED, UNCHANGED]),
        ("unconfirmed, attempt not begun", unconfirmed(later).with_lease(attempt_deadline_reached), [HELD, RENEWED, MERGED, "cancelling/1", "released+0", "revoked+0", "failed+5", "response", WORK_FAILED, UNCHANGED]),
        ("not confirmed in time", unconfirmed(NOW), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, "unconfirmed+0"]),
        ("second not confirmed in time", unconfirmed(NOW).with_unconfirmed_leases(1), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, "unconfirmed+0"]),
        ("third not confirmed in time", unconfirmed(NOW).with_unconfirmed_leases(2), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, "unconfirmed+5"]),
        ("fourth not confirmed in time, no worker loss allowed", unconfirmed(NOW).with_unconfirmed_leases(3).with_options(|options| options.retry_policy.max_worker_losses = 0), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, "unconfirmed+10"]),
        ("fifth not confirmed in time", unconfirmed(NOW).with_unconfirmed_leases(4), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, "unconfirmed+20"]),
        ("fifth not confirmed in time, third worker loss", unconfirmed(NOW).with_unconfirmed_leases(4).with_worker_losses(2), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, WORKER_LOST]),
        ("fifth not confirmed in time, no worker loss allowed", unconfirmed(NOW).with_unconfirmed_leases(4).with_options(|options| options.retry_policy.max_worker_losses = 0), [HELD, LOST, LOST, "cancelling/1", LOST, LOST, LOST, LOST, LOST, WORKER_LOST]),
        ("cancelling, not confirmed in time", fixture(Phase::Cancelling(unconfirmed_lease(NOW))), [HELD, LOST, LOST, UNCHANGED, LOST, LOST, LOST, LOST, LOST, CANCELLED]),
        ("done", done(TerminalState::Succeeded), [DONE, DONE, DONE, UNCHANGED, DONE, DONE, DONE, DONE, DONE, UNCHANGED]),
        ("done, failed", done(TerminalState::Failed), [DONE, DONE, DONE, UNCHANGED, DONE, DONE, DONE, DONE, DONE, UNCHANGED]),
        ("done, cancelled", done(TerminalState::Cancelled), [DONE, DONE, DONE, UNCHANGED, DONE, DONE, DONE, DONE, DONE, UNCHANGED]),
        ("done with the same outcome", done(TerminalState::Succeeded).with_same_outcome(), [DONE, DONE, DONE, UNCHANGED, DONE, DONE, UNCHANGED, UNCHANGED, UNCHANGED, UNCHANGED]),
        ("done, total timeout exceeded", done(TerminalState::Succeeded).with_total_timeout_exceeded(), [DONE, DONE, DONE, UNCHANGED, DONE, DONE, DONE, DONE, DONE, UNCHANGED]),
        ("done, retention exceeded", done(TerminalState::Succeeded).with_options(|options| options.retention = 10 * SECOND), [DONE, DONE, DONE, UNCHANGED, DONE, DONE, DONE, DONE, DONE, "removed"]),
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
            fixture.transition(&event(EventKind::Heartbeat, token)),
            Err(TransitionError::LeaseLost(expected))
        );
    }
}

// Rules: LEASE-3
#[test]
fn lease_expires_exactly_at_expires_at() {
    let next_nanosecond = Timestamp::from_nanos(NOW.nanos() + 1);
    assert_eq!(
        running(next_nanosecond).transition_text(&event(EventKind::Heartbeat, token(1))),
        RENEWED
    );
    assert_eq!(
        running(NOW).transition_text(&event(EventKind::Heartbeat, token(1))),
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
    assert_eq!(fail_with_retry_after(Some(60 * SECOND)), "failed+60");
    assert_eq!(fail_with_retry_after(Some(SECOND)), "failed+5");
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
}
