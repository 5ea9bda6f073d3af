//! Histories of long outages: many calls without a response, of which a few took effect.

use super::{NAMED_SPEC, assert_accepted, call, created, leased, unanswered};
use crate::{
    linearizability::{
        events::{Call, FinishRequest, Invocation, ReadMode},
        sequential_spec::SequentialSpec,
        spec_state::SpecState,
    },
    support::rng::TestRng,
};

const UNANSWERED_CALL_COUNT: i64 = 200;

/// Returns a random invocation for operation 0 and token 1, with a unique number.
fn random_invocation(rng: &mut TestRng, number: i64) -> Invocation {
    match rng.random_range(0..12) {
        0 => Invocation::Create,
        1..4 => Invocation::Lease,
        4 => Invocation::Heartbeat(0, 1, None),
        5 | 6 => Invocation::Heartbeat(0, 1, Some(number)),
        7 => Invocation::Finish(0, 1, FinishRequest::Release),
        8 => Invocation::Finish(0, 1, FinishRequest::RetryableFailure(number)),
        9 => Invocation::Finish(0, 1, FinishRequest::Response(number)),
        10 => Invocation::Cancel(0),
        _ => Invocation::Delete(0),
    }
}

/// Generates a history of an outage in which one call in twelve takes effect.
fn history(spec: &SequentialSpec, seed: u64) -> Vec<Call> {
    let (mut rng, mut state) = (TestRng::new(seed), SpecState::default());
    let mut calls = vec![created(), leased(4, 1, 1)];
    for call in &calls {
        state = spec.apply(&state, call).remove(0);
    }
    for number in 1..UNANSWERED_CALL_COUNT {
        let call = unanswered(number * 5, random_invocation(&mut rng, number));
        if rng.one_in(12)
            && let Some(next) = rng.choose(&spec.apply(&state, &call))
        {
            state = next.clone();
        }
        calls.push(call);
    }
    let get = Invocation::Get(0, ReadMode::Linearizable);
    calls.push(call(
        UNANSWERED_CALL_COUNT * 5,
        UNANSWERED_CALL_COUNT * 5 + 1,
        get,
        state.get_response(0),
    ));
    calls
}

#[test]
fn checker_handles_outage_with_200_unanswered_calls() {
    for is_named in [false, true] {
        let spec = SequentialSpec {
            has_client_id: is_named,
            ..NAMED_SPEC
        };
        for seed in 0..20 {
            assert_accepted(spec, &history(&spec, seed));
        }
    }
}
