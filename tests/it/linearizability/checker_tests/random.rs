//! Compares the checker with an exhaustive search on small random histories.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{NAMED_SPEC, created};
use crate::linearizability::{
    checker::check,
    events::{
        Call, CallResponse, FinishRequest, HeartbeatDirective, Invocation, NEVER_RETURNED,
        OperationSnapshot, ReadMode, SnapshotPhase, TerminalOutcome,
    },
    sequential_spec::SequentialSpec,
    spec_state::SpecState,
};

/// Tries every order of the calls.
fn is_linearizable_by_exhaustive_search(spec: &SequentialSpec, calls: &[Call]) -> bool {
    fn search(
        spec: &SequentialSpec,
        calls: &[Call],
        state: &SpecState,
        remaining: &BTreeSet<usize>,
    ) -> bool {
        let has_response = |index: &usize| calls[*index].response != CallResponse::Unknown;
        if !remaining.iter().any(has_response) {
            return true;
        }
        let answered = || remaining.iter().copied().filter(has_response);
        let latest = answered()
            .map(|index| calls[index].returned_at)
            .min()
            .unwrap_or(NEVER_RETURNED);
        for next in spec.unprompted_steps(state, latest) {
            // Terminates, because each step ends a lease.
            if search(spec, calls, &next, remaining) {
                return true;
            }
        }
        remaining.iter().any(|index| {
            let call = &calls[*index];
            let may_be_next = answered().all(|other| {
                let other = &calls[other];
                let may_be_stale = matches!(call.invocation, Invocation::Get(_, ReadMode::Local))
                    && call.response != CallResponse::NotFound;
                let is_same_session = other.process == call.process && other.name() == call.name();
                let may_precede = may_be_stale && !is_same_session;
                call.invoked_at <= other.returned_at
                    || may_precede && call.process_started_at <= other.returned_at
            });
            let mut rest = remaining.clone();
            rest.remove(index);
            may_be_next
                && (spec.apply(state, call).iter()).any(|next| search(spec, calls, next, &rest))
        })
    }
    let all_calls = (0..calls.len()).collect();
    search(spec, calls, &SpecState::default(), &all_calls)
}

fn any_phase() -> impl Strategy<Value = SnapshotPhase> {
    prop_oneof![
        Just(SnapshotPhase::Pending),
        Just(SnapshotPhase::Running),
        Just(SnapshotPhase::Done(TerminalOutcome::Cancelled)),
        Just(SnapshotPhase::Done(TerminalOutcome::Response(7))),
    ]
}

fn any_call(is_named: bool) -> impl Strategy<Value = Call> {
    let read_modes = prop_oneof![Just(ReadMode::Linearizable), Just(ReadMode::Local)];
    let name = 0..if is_named { 1_usize } else { 2 };
    let any_snapshot = || {
        (any_phase(), 0..3_u32, any::<bool>()).prop_map(|(phase, attempt, is_cancel_requested)| {
            CallResponse::Snapshot(OperationSnapshot {
                phase,
                attempt,
                is_cancel_requested: is_cancel_requested && phase != SnapshotPhase::Pending,
                units: 0,
            })
        })
    };
    let create = (name.clone(), any::<bool>()).prop_map(move |(name, already_existed)| {
        let is_rejected = is_named && already_existed;
        let created = CallResponse::Created {
            name,
            already_existed,
        };
        (
            Invocation::Create,
            if is_rejected {
                CallResponse::AlreadyExists
            } else {
                created
            },
        )
    });
    let lease = (name.clone(), 1..3_usize, 1..3_u32).prop_map(|(name, token, attempt)| {
        (
            Invocation::Lease,
            CallResponse::Leased {
                name,
                token,
                attempt,
            },
        )
    });
    let any_rejection = || {
        prop_oneof![
            Just(CallResponse::LeaseLost),
            Just(CallResponse::AlreadyDone)
        ]
    };
    let finish_requests = prop_oneof![
        Just(FinishRequest::Response(7)),
        Just(FinishRequest::Release)
    ];
    let finish = (
        name.clone(),
        1..3_usize,
        finish_requests,
        prop_oneof![3 => any_snapshot(), 1 => any_rejection()],
    )
        .prop_map(|(name, token, request, response)| {
            (Invocation::Finish(name, token, request), response)
        });
    let heartbeat = (
        name.clone(),
        1..3_usize,
        prop_oneof![
            Just(CallResponse::Renewed(HeartbeatDirective::Continue)),
            any_rejection()
        ],
    )
        .prop_map(|(name, token, response)| (Invocation::Heartbeat(name, token, None), response));
    let ok_or_not_found =
        || prop_oneof![2 => Just(CallResponse::Ok), 1 => Just(CallResponse::NotFound)];
    let cancel = (name.clone(), ok_or_not_found())
        .prop_map(|(name, response)| (Invocation::Cancel(name), response));
    let delete = (name.clone(), ok_or_not_found())
        .prop_map(|(name, response)| (Invocation::Delete(name), response));
    let get = (
        name,
        read_modes,
        prop_oneof![3 => any_snapshot(), 1 => Just(CallResponse::NotFound)],
    )
        .prop_map(|(name, read_mode, response)| (Invocation::Get(name, read_mode), response));
    let invocations = prop_oneof![
        2 => create, 3 => lease, 3 => finish, 1 => heartbeat, 1 => cancel, 2 => delete, 4 => get
    ];
    let times = (0..30_i64, prop_oneof![4 => 0..20_i64, 1 => 900..1500_i64]);
    let conditions = (
        1..3_usize,
        prop_oneof![3 => Just(0), 1 => Just(10)],
        0..5_u8,
    );
    (invocations, times, conditions).prop_map(
        |((invocation, response), (invoked_at, duration), (process, process_started_at, luck))| {
            let is_unanswered = luck == 0 && !matches!(invocation, Invocation::Get(..));
            Call {
                invoked_at: invoked_at.max(process_started_at),
                returned_at: if is_unanswered {
                    NEVER_RETURNED
                } else {
                    invoked_at.max(process_started_at) + duration
                },
                process,
                process_started_at,
                invocation,
                response: if is_unanswered {
                    CallResponse::Unknown
                } else {
                    response
                },
            }
        },
    )
}

fn any_history() -> impl Strategy<Value = (SequentialSpec, Vec<Call>)> {
    any::<bool>().prop_flat_map(|is_named| {
        let spec = SequentialSpec {
            has_client_id: is_named,
            ..NAMED_SPEC
        };
        let calls = proptest::collection::vec(any_call(is_named), 1..6);
        calls.prop_map(move |calls| {
            let create_call = Call {
                process: 1,
                process_started_at: 0,
                ..created()
            };
            let mut calls = [vec![create_call], calls].concat();
            calls.sort_by_key(|call| call.invoked_at);
            (spec, calls)
        })
    })
}

/// Generates overlapping calls that conform to the specification, of which one may be
/// missing.
fn near_valid_history() -> impl Strategy<Value = (SequentialSpec, Vec<Call>)> {
    let any_offsets = || (0..25_i64, 0..25_i64);
    any::<bool>().prop_flat_map(move |is_named| {
        let spec = SequentialSpec {
            has_client_id: is_named,
            ..NAMED_SPEC
        };
        let calls = proptest::collection::vec((any_call(is_named), any_offsets()), 1..40);
        (calls, 0..12_usize).prop_map(move |(generated, removed)| {
            let (mut state, mut calls, mut now) = (SpecState::default(), Vec::new(), 30);
            for (mut call, (before, after)) in [(created(), (0, 0))].into_iter().chain(generated) {
                (call.invoked_at, call.process_started_at) = (now - before, 0);
                if call.returned_at != NEVER_RETURNED {
                    call.returned_at = now + after;
                }
                if calls.len() < 7
                    && let Some(next) = spec.apply(&state, &call).pop()
                {
                    state = next;
                    calls.push(call);
                    now += 10;
                }
            }
            if removed < calls.len() {
                calls.remove(removed);
            }
            calls.sort_by_key(|call| call.invoked_at);
            (spec, calls)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn search_agrees_with_exhaustive_search_on_random_histories((spec, calls) in any_history()) {
        prop_assert_eq!(check(&spec, &calls).is_ok(), is_linearizable_by_exhaustive_search(&spec, &calls));
    }

    #[test]
    fn search_agrees_with_exhaustive_search_on_near_valid_histories((spec, calls) in near_valid_history()) {
        prop_assert_eq!(check(&spec, &calls).is_ok(), is_linearizable_by_exhaustive_search(&spec, &calls));
    }
}
