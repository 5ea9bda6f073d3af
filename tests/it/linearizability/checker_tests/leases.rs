//! Histories of leases: overlap, expiry, renewal and lost workers.

use super::*;

fn renewed(invoked_at: Nanos) -> Call {
    call(
        invoked_at,
        invoked_at + 1,
        Invocation::Heartbeat(0, 1, None),
        CallResponse::Renewed(HeartbeatDirective::Continue),
    )
}

#[test]
fn checker_rejects_overlapping_leases() {
    assert_rejected(NAMED_SPEC, &[created(), leased(2, 1, 1), leased(4, 2, 2)]);
    assert_rejected(NAMED_SPEC, &[created(), leased(2, 1, 1), leased(880, 2, 2)]);
    assert_accepted(NAMED_SPEC, &[created(), leased(2, 1, 1), leased(902, 2, 2)]);
    // A renewal restarts the lease duration.
    let renewed = renewed(500);
    assert_rejected(
        NAMED_SPEC,
        &[
            created(),
            leased(2, 1, 1),
            renewed.clone(),
            leased(1300, 2, 2),
        ],
    );
    assert_accepted(
        NAMED_SPEC,
        &[created(), leased(2, 1, 1), renewed, leased(1402, 2, 2)],
    );
}

#[test]
fn checker_rejects_use_of_expired_lease() {
    let finish_at = |invoked_at| finish(invoked_at, 1, 7, done_snapshot(7));
    assert_accepted(NAMED_SPEC, &[created(), leased(2, 1, 1), finish_at(1100)]);
    assert_rejected(NAMED_SPEC, &[created(), leased(2, 1, 1), finish_at(1110)]);
    // An outage extends the lease.
    let with_outage = |start, end| SequentialSpec {
        outage: Some(Outage { start, end }),
        ..NAMED_SPEC
    };
    assert_accepted(
        with_outage(500, 2000),
        &[created(), leased(2, 1, 1), finish_at(3100)],
    );
    assert_rejected(
        with_outage(500, 2000),
        &[created(), leased(2, 1, 1), finish_at(3110)],
    );
    assert_rejected(
        with_outage(1200, 2000),
        &[created(), leased(2, 1, 1), finish_at(1300)],
    );
    let finish_rejected_at = |invoked_at| finish(invoked_at, 1, 7, CallResponse::LeaseLost);
    assert_rejected(
        NAMED_SPEC,
        &[created(), leased(2, 1, 1), finish_rejected_at(800)],
    );
    assert_accepted(
        NAMED_SPEC,
        &[created(), leased(2, 1, 1), finish_rejected_at(1000)],
    );
}

#[test]
fn checker_lets_unreceived_lease_requeue_or_expire() {
    let lease_call = unanswered(2, Invocation::Lease);
    let running = get_call(
        5,
        ReadMode::Linearizable,
        snapshot(SnapshotPhase::Running, 1),
    );
    assert_accepted(
        NAMED_SPEC,
        &[
            created(),
            lease_call.clone(),
            running.clone(),
            leased(20, 1, 2),
        ],
    );
    assert_rejected(NAMED_SPEC, &[created(), running, leased(20, 1, 2)]);
    assert_rejected(NAMED_SPEC, &[created(), lease_call, leased(20, 1, 3)]);
}

#[test]
fn checker_accepts_worker_lost_only_after_last_loss() {
    let worker_lost = snapshot(SnapshotPhase::Done(TerminalOutcome::WorkerLost), 1);
    let no_loss = SequentialSpec {
        max_worker_losses: Some(0),
        ..NAMED_SPEC
    };
    let calls = |response| {
        [
            created(),
            leased(2, 1, 1),
            renewed(5),
            get_call(2000, ReadMode::Linearizable, response),
        ]
    };
    assert_accepted(no_loss, &calls(worker_lost.clone()));
    assert_rejected(NAMED_SPEC, &calls(worker_lost));
    assert_accepted(NAMED_SPEC, &calls(snapshot(SnapshotPhase::Pending, 1)));
    assert_rejected(no_loss, &calls(snapshot(SnapshotPhase::Pending, 1)));
}

#[test]
fn checker_accepts_end_of_unconfirmed_lease_only_without_loss() {
    let no_loss = SequentialSpec {
        max_worker_losses: Some(0),
        ..NAMED_SPEC
    };
    let read = |at, phase| get_call(at, ReadMode::Linearizable, snapshot(phase, 1));
    let worker_lost = SnapshotPhase::Done(TerminalOutcome::WorkerLost);
    let calls = |read| [created(), leased(2, 1, 1), read];
    assert_accepted(no_loss, &calls(read(2000, SnapshotPhase::Pending)));
    assert_rejected(no_loss, &calls(read(2000, worker_lost)));
    assert_rejected(no_loss, &calls(read(800, SnapshotPhase::Pending)));
}
