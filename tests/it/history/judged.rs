//! The checker, checked: histories made by hand that it must accept or reject.
//! Random ones are in `random`, long outages in `outage`.

mod outage;
mod random;

use super::{
    calls::{Answer, Ask, Call, End, Go, NEVER, Outcome, Reads, Shown, Stage, Time},
    checker::{check, explain},
    spec::Rules,
};

const RULES: Rules = Rules {
    is_named: true,
    attempts: Some(3),
    lease: 1000,
    slack: 100,
    outage: None,
};

const REQUEST: Rules = Rules {
    is_named: false,
    ..RULES
};

/// A call to process 1, which was there from the start.
fn call(begun: Time, ended: Time, ask: Ask, answer: Answer) -> Call {
    Call {
        begun,
        ended,
        process: 1,
        since: 0,
        ask,
        answer,
    }
}

fn lost(begun: Time, ask: Ask) -> Call {
    call(begun, NEVER, ask, Answer::Lost)
}

fn created() -> Call {
    let answer = Answer::Created {
        name: 0,
        reused: false,
    };
    call(0, 1, Ask::Create, answer)
}

fn leased(begun: Time, token: usize, attempt: u32) -> Call {
    let answer = Answer::Leased {
        name: 0,
        token,
        attempt,
    };
    call(begun, begun + 1, Ask::Lease, answer)
}

fn shown(stage: Stage, attempt: u32) -> Answer {
    Answer::Shown(Shown {
        stage,
        attempt,
        is_cancelled: stage == Stage::Done(Outcome::Cancelled),
        units: 0,
    })
}

fn done(number: i64) -> Answer {
    shown(Stage::Done(Outcome::Response(number)), 1)
}

fn finish(begun: Time, token: usize, number: i64, answer: Answer) -> Call {
    let ask = Ask::Finish(0, token, End::Response(number));
    call(begun, begun + 1, ask, answer)
}

fn got(begun: Time, reads: Reads, answer: Answer) -> Call {
    call(begun, begun + 1, Ask::Get(0, reads), answer)
}

/// The same call to another process.
fn elsewhere(call: Call) -> Call {
    Call { process: 2, ..call }
}

fn accepts(rules: Rules, calls: &[Call]) {
    if let Err(why) = check(&rules, calls) {
        panic!("{}", explain(&rules, calls, &why));
    }
}

fn rejects(rules: Rules, calls: &[Call]) {
    let why = check(&rules, calls).expect_err("an order was found");
    assert!(!explain(&rules, calls, &why).is_empty());
}

#[test]
fn a_history_without_anything_strange_is_accepted() {
    accepts(
        RULES,
        &[
            created(),
            got(2, Reads::Fresh, shown(Stage::Waiting, 0)),
            leased(4, 1, 1),
            got(6, Reads::Fresh, shown(Stage::Held, 1)),
            call(8, 9, Ask::Beat(0, 1, None), Answer::Go(Go::On)),
            finish(10, 1, 7, done(7)),
            finish(12, 1, 7, done(7)),
            finish(14, 1, 8, Answer::Over),
            call(16, 17, Ask::Cancel(0), Answer::Ok),
            got(18, Reads::Fresh, done(7)),
            call(20, 21, Ask::Create, Answer::Exists),
            call(22, 23, Ask::Delete(0), Answer::Ok),
            call(24, 25, Ask::Delete(0), Answer::Missing),
            call(26, 27, Ask::Cancel(0), Answer::Missing),
            got(28, Reads::Fresh, Answer::Missing),
        ],
    );
}

#[test]
fn two_leases_at_a_time_are_rejected() {
    rejects(RULES, &[created(), leased(2, 1, 1), leased(4, 2, 2)]);
    rejects(RULES, &[created(), leased(2, 1, 1), leased(880, 2, 2)]);
    accepts(RULES, &[created(), leased(2, 1, 1), leased(902, 2, 2)]);
    // A renewal begins the time anew.
    let renewed = call(500, 501, Ask::Beat(0, 1, None), Answer::Go(Go::On));
    rejects(
        RULES,
        &[
            created(),
            leased(2, 1, 1),
            renewed.clone(),
            leased(1300, 2, 2),
        ],
    );
    accepts(
        RULES,
        &[created(), leased(2, 1, 1), renewed, leased(1402, 2, 2)],
    );
}

#[test]
fn a_lease_that_is_over_serves_no_more() {
    let late = |begun| finish(begun, 1, 7, done(7));
    accepts(RULES, &[created(), leased(2, 1, 1), late(1100)]);
    rejects(RULES, &[created(), leased(2, 1, 1), late(1110)]);
    // Unless nobody could renew it.
    let away = |begun, ended| Rules {
        outage: Some((begun, ended)),
        ..RULES
    };
    accepts(away(500, 2000), &[created(), leased(2, 1, 1), late(3100)]);
    rejects(away(500, 2000), &[created(), leased(2, 1, 1), late(3110)]);
    rejects(away(1200, 2000), &[created(), leased(2, 1, 1), late(1300)]);
    let refused = |begun| finish(begun, 1, 7, Answer::LeaseLost);
    rejects(RULES, &[created(), leased(2, 1, 1), refused(800)]);
    accepts(RULES, &[created(), leased(2, 1, 1), refused(1000)]);
}

#[test]
fn an_outcome_that_is_lost_or_replaced_is_rejected() {
    let so_far = || vec![created(), leased(2, 1, 1), finish(4, 1, 7, done(7))];
    let and = |call| [so_far(), vec![call]].concat();
    rejects(RULES, &and(got(6, Reads::Fresh, shown(Stage::Held, 1))));
    rejects(RULES, &and(got(6, Reads::Fresh, done(8))));
    rejects(RULES, &and(finish(6, 1, 8, done(8))));
    rejects(RULES, &and(leased(2000, 2, 2)));
    rejects(RULES, &and(got(6, Reads::Fresh, Answer::Missing)));
}

#[test]
fn two_outcomes_at_a_time_are_rejected() {
    let at_once = |number| {
        call(
            4,
            20,
            Ask::Finish(0, 1, End::Response(number)),
            done(number),
        )
    };
    rejects(RULES, &[created(), leased(2, 1, 1), at_once(7), at_once(8)]);
    let over = call(4, 20, Ask::Finish(0, 1, End::Response(8)), Answer::Over);
    accepts(RULES, &[created(), leased(2, 1, 1), at_once(7), over]);
}

#[test]
fn a_late_read_is_rejected_where_reads_are_fresh_only() {
    let reads = |reads| {
        vec![
            created(),
            call(2, 3, Ask::Cancel(0), Answer::Ok),
            elsewhere(got(5, reads, shown(Stage::Waiting, 0))),
        ]
    };
    rejects(RULES, &reads(Reads::Fresh));
    accepts(RULES, &reads(Reads::MayBeLate));
}

#[test]
fn a_read_that_goes_back_or_misses_what_was_done_through_its_server_is_rejected() {
    let cancelled = shown(Stage::Done(Outcome::Cancelled), 0);
    let waiting = shown(Stage::Waiting, 0);
    let late = |begun, answer: &Answer| got(begun, Reads::MayBeLate, answer.clone());
    let cancel = call(2, 3, Ask::Cancel(0), Answer::Ok);
    rejects(RULES, &[created(), cancel.clone(), late(5, &waiting)]);
    let back = |second| {
        vec![
            created(),
            cancel.clone(),
            elsewhere(late(5, &cancelled)),
            elsewhere(late(7, second)),
        ]
    };
    rejects(RULES, &back(&waiting));
    accepts(RULES, &back(&cancelled));
    // Of another operation it need not have heard.
    let other = vec![
        call(
            0,
            1,
            Ask::Create,
            Answer::Created {
                name: 0,
                reused: false,
            },
        ),
        call(2, 3, Ask::Delete(0), Answer::Ok),
        elsewhere(call(
            4,
            5,
            Ask::Create,
            Answer::Created {
                name: 1,
                reused: false,
            },
        )),
        elsewhere(late(7, &waiting)),
    ];
    accepts(REQUEST, &other);
    // A server that began later knows what was done before.
    let mut young = elsewhere(late(5, &waiting));
    young.since = 4;
    rejects(RULES, &[created(), cancel.clone(), young]);
    // What was never so is no late read, nor is what is still to come.
    rejects(RULES, &[created(), elsewhere(late(5, &done(7)))]);
    let early = elsewhere(got(0, Reads::MayBeLate, cancelled.clone()));
    rejects(RULES, &[created(), early, cancel]);
}

#[test]
fn what_was_deleted_does_not_come_back() {
    let so_far = || vec![created(), call(2, 3, Ask::Delete(0), Answer::Ok)];
    let and = |call| [so_far(), vec![call]].concat();
    rejects(RULES, &and(got(5, Reads::Fresh, shown(Stage::Waiting, 0))));
    rejects(RULES, &and(call(5, 6, Ask::Delete(0), Answer::Ok)));
    rejects(RULES, &and(call(5, 6, Ask::Cancel(0), Answer::Ok)));
    // Its work goes on unseen, and its name is taken until that is done.
    accepts(RULES, &and(leased(5, 1, 1)));
    accepts(RULES, &and(call(5, 6, Ask::Create, Answer::Exists)));
    rejects(
        RULES,
        &and(Call {
            begun: 5,
            ended: 6,
            ..created()
        }),
    );
}

#[test]
fn what_was_granted_without_need_may_have_been_granted_later() {
    let cancelled = || shown(Stage::Done(Outcome::Cancelled), 0);
    let calls = [
        created(),
        call(2, 3, Ask::Cancel(0), Answer::Ok),
        // There is nothing to do when it begins, and there may be before it ends.
        call(4, 20, Ask::Cancel(0), Answer::Ok),
        call(5, 6, Ask::Delete(0), Answer::Ok),
        Call {
            begun: 7,
            ended: 8,
            ..created()
        },
        got(10, Reads::Fresh, cancelled()),
    ];
    accepts(RULES, &calls);
}

#[test]
fn a_call_without_an_answer_may_have_taken_effect_or_not() {
    let cancelled = shown(Stage::Done(Outcome::Cancelled), 0);
    let waiting = shown(Stage::Waiting, 0);
    let cancel = lost(2, Ask::Cancel(0));
    let get = |begun, answer: &Answer| got(begun, Reads::Fresh, answer.clone());
    accepts(RULES, &[created(), cancel.clone(), get(5, &waiting)]);
    accepts(RULES, &[created(), cancel.clone(), get(5, &cancelled)]);
    accepts(
        RULES,
        &[
            created(),
            cancel.clone(),
            get(5, &waiting),
            get(90, &cancelled),
        ],
    );
    rejects(
        RULES,
        &[
            created(),
            cancel.clone(),
            get(5, &cancelled),
            get(90, &waiting),
        ],
    );
    rejects(RULES, &[created(), get(0, &cancelled), cancel]);
    // Nor did it happen twice.
    let twice = [
        lost(0, Ask::Create),
        call(2, 3, Ask::Delete(0), Answer::Ok),
        leased(5, 1, 1),
        finish(7, 1, 7, done(7)),
        call(9, 10, Ask::Delete(0), Answer::Ok),
    ];
    rejects(RULES, &twice);
}

#[test]
fn a_lease_that_nobody_got_goes_back_or_runs_out() {
    let claim = lost(2, Ask::Lease);
    let held = got(5, Reads::Fresh, shown(Stage::Held, 1));
    accepts(
        RULES,
        &[created(), claim.clone(), held.clone(), leased(20, 1, 2)],
    );
    rejects(RULES, &[created(), held, leased(20, 1, 2)]);
    rejects(RULES, &[created(), claim, leased(20, 1, 3)]);
}

#[test]
fn a_worker_is_lost_with_its_last_attempt_only() {
    let lost = shown(Stage::Done(Outcome::WorkerLost), 1);
    let one = Rules {
        attempts: Some(1),
        ..RULES
    };
    let calls = |answer| [created(), leased(2, 1, 1), got(2000, Reads::Fresh, answer)];
    accepts(one, &calls(lost.clone()));
    rejects(RULES, &calls(lost));
    accepts(RULES, &calls(shown(Stage::Waiting, 1)));
    rejects(one, &calls(shown(Stage::Waiting, 1)));
}

#[test]
fn a_request_makes_one_operation_at_a_time() {
    let made = |begun, name, reused| {
        call(
            begun,
            begun + 1,
            Ask::Create,
            Answer::Created { name, reused },
        )
    };
    let delete = call(3, 4, Ask::Delete(0), Answer::Ok);
    accepts(REQUEST, &[made(0, 0, false), made(2, 0, true)]);
    rejects(REQUEST, &[made(0, 0, false), made(2, 1, false)]);
    rejects(REQUEST, &[made(0, 0, false), made(2, 1, true)]);
    rejects(
        REQUEST,
        &[made(0, 0, false), delete.clone(), made(5, 0, true)],
    );
    accepts(REQUEST, &[made(0, 0, false), delete, made(5, 1, false)]);
    // Whose answer was lost, who asks again finds out.
    accepts(REQUEST, &[lost(0, Ask::Create), made(2, 4, true)]);
    accepts(REQUEST, &[lost(0, Ask::Create), made(2, 4, false)]);
    rejects(
        REQUEST,
        &[lost(0, Ask::Create), made(2, 4, true), made(5, 3, true)],
    );
}
