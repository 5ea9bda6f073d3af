//! Long outages: many calls without an answer, of which a few took effect.

use super::{RULES, accepts, call, created, leased, lost};
use crate::{
    history::{
        calls::{Ask, Call, End, Reads},
        spec::{Rules, State},
    },
    support::dice::Dice,
};

/// How many calls nobody answers.
const LOST: i64 = 200;

/// What may be asked of the operation of that name, with a number of its own.
fn any_ask(dice: &mut Dice, number: i64) -> Ask {
    match dice.within(0..12) {
        0 => Ask::Create,
        1..4 => Ask::Lease,
        4 => Ask::Beat(0, 1, None),
        5 | 6 => Ask::Beat(0, 1, Some(number)),
        7 => Ask::Finish(0, 1, End::Release),
        8 => Ask::Finish(0, 1, End::Retryable(number)),
        9 => Ask::Finish(0, 1, End::Response(number)),
        10 => Ask::Cancel(0),
        _ => Ask::Delete(0),
    }
}

/// What clients were told before, during and after an outage in which one call in
/// twelve took effect.
fn history(rules: &Rules, seed: u64) -> Vec<Call> {
    let (mut dice, mut state) = (Dice::new(seed), State::default());
    let mut calls = vec![created(), leased(4, 1, 1)];
    for call in &calls {
        state = rules.apply(&state, call).remove(0);
    }
    for number in 1..LOST {
        let call = lost(number * 5, any_ask(&mut dice, number));
        if dice.once_in(12)
            && let Some(next) = dice.one_of(&rules.apply(&state, &call))
        {
            state = next.clone();
        }
        calls.push(call);
    }
    let get = Ask::Get(0, Reads::Fresh);
    calls.push(call(LOST * 5, LOST * 5 + 1, get, state.shown(0)));
    calls
}

#[test]
fn an_outage_with_many_calls_that_nobody_answered_is_judged() {
    for is_named in [false, true] {
        let rules = Rules { is_named, ..RULES };
        for seed in 0..20 {
            accepts(rules, &history(&rules, seed));
        }
    }
}
