//! Tests of the checker with handwritten histories that it must accept or reject.

mod leases;
mod outage;
mod random;
mod reads;

use super::{
    checker::{check, explain},
    events::{
        Call, CallResponse, FinishRequest, HeartbeatDirective, Invocation, NEVER_RETURNED, Nanos,
        OperationSnapshot, Outage, ReadMode, SnapshotPhase, TerminalOutcome,
    },
    sequential_spec::SequentialSpec,
};

const NAMED_SPEC: SequentialSpec = SequentialSpec {
    has_client_id: true,
    max_attempts: Some(3),
    max_worker_losses: Some(1),
    lease_duration: 1000,
    max_clock_skew: 100,
    outage: None,
};

const REQUEST_SPEC: SequentialSpec = SequentialSpec {
    has_client_id: false,
    ..NAMED_SPEC
};

/// Builds a call to process 1, which runs from the start.
fn call(
    invoked_at: Nanos,
    returned_at: Nanos,
    invocation: Invocation,
    response: CallResponse,
) -> Call {
    Call {
        invoked_at,
        returned_at,
        process: 1,
        process_started_at: 0,
        invocation,
        response,
    }
}

fn unanswered(invoked_at: Nanos, invocation: Invocation) -> Call {
    call(
        invoked_at,
        NEVER_RETURNED,
        invocation,
        CallResponse::Unknown,
    )
}

fn created() -> Call {
    let response = CallResponse::Created {
        name: 0,
        already_existed: false,
    };
    call(0, 1, Invocation::Create, response)
}

fn leased(invoked_at: Nanos, token: usize, attempt: u32) -> Call {
    let response = CallResponse::Leased {
        name: 0,
        token,
        attempt,
    };
    call(invoked_at, invoked_at + 1, Invocation::Lease, response)
}

fn snapshot(phase: SnapshotPhase, attempt: u32) -> CallResponse {
    CallResponse::Snapshot(OperationSnapshot {
        phase,
        attempt,
        is_cancel_requested: phase == SnapshotPhase::Done(TerminalOutcome::Cancelled),
        units: 0,
    })
}

fn done_snapshot(number: i64) -> CallResponse {
    snapshot(SnapshotPhase::Done(TerminalOutcome::Response(number)), 1)
}

fn finish(invoked_at: Nanos, token: usize, number: i64, response: CallResponse) -> Call {
    let invocation = Invocation::Finish(0, token, FinishRequest::Response(number));
    call(invoked_at, invoked_at + 1, invocation, response)
}

fn get_call(invoked_at: Nanos, read_mode: ReadMode, response: CallResponse) -> Call {
    call(
        invoked_at,
        invoked_at + 1,
        Invocation::Get(0, read_mode),
        response,
    )
}

/// Moves a call to process 2.
fn at_other_process(call: Call) -> Call {
    Call { process: 2, ..call }
}

fn assert_accepted(spec: SequentialSpec, calls: &[Call]) {
    if let Err(counterexample) = check(&spec, calls) {
        panic!("{}", explain(&spec, calls, &counterexample));
    }
}

fn assert_rejected(spec: SequentialSpec, calls: &[Call]) {
    let counterexample = check(&spec, calls).expect_err("expected no order to be found");
    assert!(!explain(&spec, calls, &counterexample).is_empty());
}

#[test]
fn checker_accepts_ordinary_history() {
    assert_accepted(
        NAMED_SPEC,
        &[
            created(),
            get_call(
                2,
                ReadMode::Linearizable,
                snapshot(SnapshotPhase::Pending, 0),
            ),
            leased(4, 1, 1),
            get_call(
                6,
                ReadMode::Linearizable,
                snapshot(SnapshotPhase::Running, 1),
            ),
            call(
                8,
                9,
                Invocation::Heartbeat(0, 1, None),
                CallResponse::Renewed(HeartbeatDirective::Continue),
            ),
            finish(10, 1, 7, done_snapshot(7)),
            finish(12, 1, 7, done_snapshot(7)),
            finish(14, 1, 8, CallResponse::AlreadyDone),
            call(16, 17, Invocation::Cancel(0), CallResponse::Ok),
            get_call(18, ReadMode::Linearizable, done_snapshot(7)),
            call(20, 21, Invocation::Create, CallResponse::AlreadyExists),
            call(22, 23, Invocation::Delete(0), CallResponse::Ok),
            call(24, 25, Invocation::Delete(0), CallResponse::NotFound),
            call(26, 27, Invocation::Cancel(0), CallResponse::NotFound),
            get_call(28, ReadMode::Linearizable, CallResponse::NotFound),
        ],
    );
}

#[test]
fn checker_rejects_lost_or_replaced_outcome() {
    let prefix = || {
        vec![
            created(),
            leased(2, 1, 1),
            finish(4, 1, 7, done_snapshot(7)),
        ]
    };
    let followed_by = |call| [prefix(), vec![call]].concat();
    assert_rejected(
        NAMED_SPEC,
        &followed_by(get_call(
            6,
            ReadMode::Linearizable,
            snapshot(SnapshotPhase::Running, 1),
        )),
    );
    assert_rejected(
        NAMED_SPEC,
        &followed_by(get_call(6, ReadMode::Linearizable, done_snapshot(8))),
    );
    assert_rejected(NAMED_SPEC, &followed_by(finish(6, 1, 8, done_snapshot(8))));
    assert_rejected(NAMED_SPEC, &followed_by(leased(2000, 2, 2)));
    assert_rejected(
        NAMED_SPEC,
        &followed_by(get_call(6, ReadMode::Linearizable, CallResponse::NotFound)),
    );
}

#[test]
fn checker_rejects_two_concurrent_outcomes() {
    let concurrent_finish = |number| {
        call(
            4,
            20,
            Invocation::Finish(0, 1, FinishRequest::Response(number)),
            done_snapshot(number),
        )
    };
    assert_rejected(
        NAMED_SPEC,
        &[
            created(),
            leased(2, 1, 1),
            concurrent_finish(7),
            concurrent_finish(8),
        ],
    );
    let rejected = call(
        4,
        20,
        Invocation::Finish(0, 1, FinishRequest::Response(8)),
        CallResponse::AlreadyDone,
    );
    assert_accepted(
        NAMED_SPEC,
        &[created(), leased(2, 1, 1), concurrent_finish(7), rejected],
    );
}

#[test]
fn checker_rejects_reappearance_of_deleted_operation() {
    let prefix = || {
        vec![
            created(),
            call(2, 3, Invocation::Delete(0), CallResponse::Ok),
        ]
    };
    let followed_by = |call| [prefix(), vec![call]].concat();
    assert_rejected(
        NAMED_SPEC,
        &followed_by(get_call(
            5,
            ReadMode::Linearizable,
            snapshot(SnapshotPhase::Pending, 0),
        )),
    );
    assert_rejected(
        NAMED_SPEC,
        &followed_by(call(5, 6, Invocation::Delete(0), CallResponse::Ok)),
    );
    assert_rejected(
        NAMED_SPEC,
        &followed_by(call(5, 6, Invocation::Cancel(0), CallResponse::Ok)),
    );
    // Work on a deleted operation continues, and its name is taken until it is done.
    assert_accepted(NAMED_SPEC, &followed_by(leased(5, 1, 1)));
    assert_accepted(
        NAMED_SPEC,
        &followed_by(call(5, 6, Invocation::Create, CallResponse::AlreadyExists)),
    );
    assert_rejected(
        NAMED_SPEC,
        &followed_by(Call {
            invoked_at: 5,
            returned_at: 6,
            ..created()
        }),
    );
}

#[test]
fn checker_accepts_no_op_cancel_taking_effect_late() {
    let cancelled = || snapshot(SnapshotPhase::Done(TerminalOutcome::Cancelled), 0);
    let calls = [
        created(),
        call(2, 3, Invocation::Cancel(0), CallResponse::Ok),
        // Has no effect at its invocation, but may have one before it returns.
        call(4, 20, Invocation::Cancel(0), CallResponse::Ok),
        call(5, 6, Invocation::Delete(0), CallResponse::Ok),
        Call {
            invoked_at: 7,
            returned_at: 8,
            ..created()
        },
        get_call(10, ReadMode::Linearizable, cancelled()),
    ];
    assert_accepted(NAMED_SPEC, &calls);
}

#[test]
fn checker_lets_unanswered_call_take_effect_or_not() {
    let cancelled = snapshot(SnapshotPhase::Done(TerminalOutcome::Cancelled), 0);
    let pending = snapshot(SnapshotPhase::Pending, 0);
    let cancel = unanswered(2, Invocation::Cancel(0));
    let get = |invoked_at, response: &CallResponse| {
        get_call(invoked_at, ReadMode::Linearizable, response.clone())
    };
    assert_accepted(NAMED_SPEC, &[created(), cancel.clone(), get(5, &pending)]);
    assert_accepted(NAMED_SPEC, &[created(), cancel.clone(), get(5, &cancelled)]);
    assert_accepted(
        NAMED_SPEC,
        &[
            created(),
            cancel.clone(),
            get(5, &pending),
            get(90, &cancelled),
        ],
    );
    assert_rejected(
        NAMED_SPEC,
        &[
            created(),
            cancel.clone(),
            get(5, &cancelled),
            get(90, &pending),
        ],
    );
    assert_rejected(NAMED_SPEC, &[created(), get(0, &cancelled), cancel]);
    // A call takes effect at most once.
    let twice = [
        unanswered(0, Invocation::Create),
        call(2, 3, Invocation::Delete(0), CallResponse::Ok),
        leased(5, 1, 1),
        finish(7, 1, 7, done_snapshot(7)),
        call(9, 10, Invocation::Delete(0), CallResponse::Ok),
    ];
    assert_rejected(NAMED_SPEC, &twice);
}

#[test]
fn checker_allows_one_operation_per_request_id_at_a_time() {
    let create_call = |invoked_at, name, already_existed| {
        call(
            invoked_at,
            invoked_at + 1,
            Invocation::Create,
            CallResponse::Created {
                name,
                already_existed,
            },
        )
    };
    let delete = call(3, 4, Invocation::Delete(0), CallResponse::Ok);
    assert_accepted(
        REQUEST_SPEC,
        &[create_call(0, 0, false), create_call(2, 0, true)],
    );
    assert_rejected(
        REQUEST_SPEC,
        &[create_call(0, 0, false), create_call(2, 1, false)],
    );
    assert_rejected(
        REQUEST_SPEC,
        &[create_call(0, 0, false), create_call(2, 1, true)],
    );
    assert_rejected(
        REQUEST_SPEC,
        &[
            create_call(0, 0, false),
            delete.clone(),
            create_call(5, 0, true),
        ],
    );
    assert_accepted(
        REQUEST_SPEC,
        &[create_call(0, 0, false), delete, create_call(5, 1, false)],
    );
    // A repeated request resolves a creation without a response.
    assert_accepted(
        REQUEST_SPEC,
        &[unanswered(0, Invocation::Create), create_call(2, 4, true)],
    );
    assert_accepted(
        REQUEST_SPEC,
        &[unanswered(0, Invocation::Create), create_call(2, 4, false)],
    );
    assert_rejected(
        REQUEST_SPEC,
        &[
            unanswered(0, Invocation::Create),
            create_call(2, 4, true),
            create_call(5, 3, true),
        ],
    );
}
