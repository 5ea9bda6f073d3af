//! Histories of stale reads.

use super::*;

#[test]
fn checker_rejects_stale_read_only_if_reads_are_linearizable() {
    let history_with = |read_mode| {
        vec![
            created(),
            call(2, 3, Invocation::Cancel(0), CallResponse::Ok),
            at_other_process(get_call(5, read_mode, snapshot(SnapshotPhase::Pending, 0))),
        ]
    };
    assert_rejected(NAMED_SPEC, &history_with(ReadMode::Linearizable));
    assert_accepted(NAMED_SPEC, &history_with(ReadMode::Local));
}

#[test]
fn checker_rejects_read_that_goes_back_or_misses_own_write() {
    let cancelled = snapshot(SnapshotPhase::Done(TerminalOutcome::Cancelled), 0);
    let pending = snapshot(SnapshotPhase::Pending, 0);
    let stale_get = |invoked_at, response: &CallResponse| {
        get_call(invoked_at, ReadMode::Local, response.clone())
    };
    let cancel = call(2, 3, Invocation::Cancel(0), CallResponse::Ok);
    assert_rejected(
        NAMED_SPEC,
        &[created(), cancel.clone(), stale_get(5, &pending)],
    );
    let two_reads = |second| {
        vec![
            created(),
            cancel.clone(),
            at_other_process(stale_get(5, &cancelled)),
            at_other_process(stale_get(7, second)),
        ]
    };
    assert_rejected(NAMED_SPEC, &two_reads(&pending));
    assert_accepted(NAMED_SPEC, &two_reads(&cancelled));
    // A response about another operation does not order a stale read.
    let other_operation = vec![
        call(
            0,
            1,
            Invocation::Create,
            CallResponse::Created {
                name: 0,
                already_existed: false,
            },
        ),
        call(2, 3, Invocation::Delete(0), CallResponse::Ok),
        at_other_process(call(
            4,
            5,
            Invocation::Create,
            CallResponse::Created {
                name: 1,
                already_existed: false,
            },
        )),
        at_other_process(stale_get(7, &pending)),
    ];
    assert_accepted(REQUEST_SPEC, &other_operation);
    // A process knows all calls that returned before it started.
    let mut young_process = at_other_process(stale_get(5, &pending));
    young_process.process_started_at = 4;
    assert_rejected(NAMED_SPEC, &[created(), cancel.clone(), young_process]);
    // A stale read must return a state that existed by then.
    assert_rejected(
        NAMED_SPEC,
        &[created(), at_other_process(stale_get(5, &done_snapshot(7)))],
    );
    let early_read = at_other_process(get_call(0, ReadMode::Local, cancelled.clone()));
    assert_rejected(NAMED_SPEC, &[created(), early_read, cancel]);
}
