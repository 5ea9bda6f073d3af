//! Long outages: many calls without an answer, of which a few took effect.

use super::{RULES, accepts, call, created, leased, lost};
use crate::{
    history::{
        calls::{Answer, Ask, Call, End, Outcome, Reads, Shown, Stage},
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

/// The same call with the answer that it gets in this state.
fn answered(rules: &Rules, state: &State, asked: &Call) -> Call {
    let mut all = vec![Answer::Missing, Answer::LeaseLost, Answer::Over, Answer::Ok];
    let outcomes = (0..LOST)
        .flat_map(|number| [Outcome::Response(number), Outcome::Failure(number)].map(Stage::Done));
    let others = [Outcome::Cancelled, Outcome::WorkerLost].map(Stage::Done);
    for stage in [Stage::Waiting, Stage::Held]
        .into_iter()
        .chain(others)
        .chain(outcomes)
    {
        for attempt in 0..5 {
            for is_cancelled in [false, true] {
                all.extend((0..LOST).map(|units| {
                    Answer::Shown(Shown {
                        stage,
                        attempt,
                        is_cancelled,
                        units,
                    })
                }));
            }
        }
    }
    let answers = all.into_iter().map(|answer| Call {
        answer,
        ..asked.clone()
    });
    let fits = |call: &Call| rules.apply(state, call).contains(state);
    answers.into_iter().find(fits).expect("there is an answer")
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
    let after = LOST * 5;
    for (at, ask) in [Ask::Get(0, Reads::Fresh), Ask::Finish(0, 9, End::Release)]
        .into_iter()
        .enumerate()
    {
        let begun = after + 10 * i64::try_from(at).unwrap();
        let asked = call(begun, begun + 1, ask, Answer::Lost);
        calls.push(answered(rules, &state, &asked));
    }
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
