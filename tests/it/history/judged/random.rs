//! Small random histories, for which trying every order says what the search says.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{RULES, created};
use crate::history::{
    calls::{Answer, Ask, Call, End, Go, NEVER, Outcome, Reads, Shown, Stage},
    checker::check,
    spec::{Rules, State},
};

/// Whether any order at all explains a history, the long way round.
fn is_explained(rules: &Rules, calls: &[Call]) -> bool {
    fn go_on(rules: &Rules, calls: &[Call], state: &State, left: &BTreeSet<usize>) -> bool {
        let is_answered = |at: &usize| calls[*at].answer != Answer::Lost;
        if !left.iter().any(is_answered) {
            return true;
        }
        let waiting = || left.iter().copied().filter(is_answered);
        let latest = waiting().map(|at| calls[at].ended).min().unwrap_or(NEVER);
        for next in rules.pass(state, latest) {
            // Each makes a lease less, so that this ends.
            if go_on(rules, calls, &next, left) {
                return true;
            }
        }
        left.iter().any(|at| {
            let call = &calls[*at];
            let is_next = waiting().all(|other| {
                let other = &calls[other];
                let is_late = matches!(call.ask, Ask::Get(_, Reads::MayBeLate))
                    && call.answer != Answer::Missing;
                let is_told = other.process == call.process && other.name() == call.name();
                let is_behind = is_late && !is_told;
                call.begun <= other.ended || is_behind && call.since <= other.ended
            });
            let mut rest = left.clone();
            rest.remove(at);
            is_next
                && (rules.apply(state, call).iter()).any(|next| go_on(rules, calls, next, &rest))
        })
    }
    let all = (0..calls.len()).collect();
    go_on(rules, calls, &State::default(), &all)
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        Just(Stage::Waiting),
        Just(Stage::Held),
        Just(Stage::Done(Outcome::Cancelled)),
        Just(Stage::Done(Outcome::Response(7))),
    ]
}

fn any_call(is_named: bool) -> impl Strategy<Value = Call> {
    let reads = prop_oneof![Just(Reads::Fresh), Just(Reads::MayBeLate)];
    let name = 0..if is_named { 1_usize } else { 2 };
    let seen = || {
        (stage(), 0..3_u32, any::<bool>()).prop_map(|(stage, attempt, is_cancelled)| {
            Answer::Shown(Shown {
                stage,
                attempt,
                is_cancelled: is_cancelled && stage != Stage::Waiting,
                units: 0,
            })
        })
    };
    let create = (name.clone(), any::<bool>()).prop_map(move |(name, reused)| {
        let is_refused = is_named && reused;
        let made = Answer::Created { name, reused };
        (Ask::Create, if is_refused { Answer::Exists } else { made })
    });
    let lease = (name.clone(), 1..3_usize, 1..3_u32).prop_map(|(name, token, attempt)| {
        (
            Ask::Lease,
            Answer::Leased {
                name,
                token,
                attempt,
            },
        )
    });
    let refused = || prop_oneof![Just(Answer::LeaseLost), Just(Answer::Over)];
    let end = prop_oneof![Just(End::Response(7)), Just(End::Release)];
    let finish = (
        name.clone(),
        1..3_usize,
        end,
        prop_oneof![3 => seen(), 1 => refused()],
    )
        .prop_map(|(name, token, end, answer)| (Ask::Finish(name, token, end), answer));
    let beat = (
        name.clone(),
        1..3_usize,
        prop_oneof![Just(Answer::Go(Go::On)), refused()],
    )
        .prop_map(|(name, token, answer)| (Ask::Beat(name, token, None), answer));
    let yes = || prop_oneof![2 => Just(Answer::Ok), 1 => Just(Answer::Missing)];
    let cancel = (name.clone(), yes()).prop_map(|(name, answer)| (Ask::Cancel(name), answer));
    let delete = (name.clone(), yes()).prop_map(|(name, answer)| (Ask::Delete(name), answer));
    let get = (
        name,
        reads,
        prop_oneof![3 => seen(), 1 => Just(Answer::Missing)],
    )
        .prop_map(|(name, reads, answer)| (Ask::Get(name, reads), answer));
    let what = prop_oneof![
        2 => create, 3 => lease, 3 => finish, 1 => beat, 1 => cancel, 2 => delete, 4 => get
    ];
    let times = (0..30_i64, prop_oneof![4 => 0..20_i64, 1 => 900..1500_i64]);
    let ways = (
        1..3_usize,
        prop_oneof![3 => Just(0), 1 => Just(10)],
        0..5_u8,
    );
    (what, times, ways).prop_map(|((ask, answer), (begun, length), (process, since, luck))| {
        let is_lost = luck == 0 && !matches!(ask, Ask::Get(..));
        Call {
            begun: begun.max(since),
            ended: if is_lost {
                NEVER
            } else {
                begun.max(since) + length
            },
            process,
            since,
            ask,
            answer: if is_lost { Answer::Lost } else { answer },
        }
    })
}

fn history() -> impl Strategy<Value = (Rules, Vec<Call>)> {
    any::<bool>().prop_flat_map(|is_named| {
        let rules = Rules { is_named, ..RULES };
        let calls = proptest::collection::vec(any_call(is_named), 1..6);
        calls.prop_map(move |calls| {
            let begun = Call {
                process: 1,
                since: 0,
                ..created()
            };
            let mut calls = [vec![begun], calls].concat();
            calls.sort_by_key(|call| call.begun);
            (rules, calls)
        })
    })
}

/// What may well have happened: calls that were answered as the rules say, at times
/// that overlap, but for one that was left out.
fn likely() -> impl Strategy<Value = (Rules, Vec<Call>)> {
    let around = || (0..25_i64, 0..25_i64);
    any::<bool>().prop_flat_map(move |is_named| {
        let rules = Rules { is_named, ..RULES };
        let calls = proptest::collection::vec((any_call(is_named), around()), 1..40);
        (calls, 0..12_usize).prop_map(move |(raw, left_out)| {
            let (mut state, mut calls, mut now) = (State::default(), Vec::new(), 30);
            for (mut call, (before, after)) in [(created(), (0, 0))].into_iter().chain(raw) {
                (call.begun, call.since) = (now - before, 0);
                if call.ended != NEVER {
                    call.ended = now + after;
                }
                if calls.len() < 7
                    && let Some(next) = rules.apply(&state, &call).pop()
                {
                    state = next;
                    calls.push(call);
                    now += 10;
                }
            }
            if left_out < calls.len() {
                calls.remove(left_out);
            }
            calls.sort_by_key(|call| call.begun);
            (rules, calls)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_search_finds_an_order_exactly_if_trying_every_order_does((rules, calls) in history()) {
        prop_assert_eq!(check(&rules, &calls).is_ok(), is_explained(&rules, &calls));
    }

    #[test]
    fn the_search_is_right_about_what_nearly_happened((rules, calls) in likely()) {
        prop_assert_eq!(check(&rules, &calls).is_ok(), is_explained(&rules, &calls));
    }
}
