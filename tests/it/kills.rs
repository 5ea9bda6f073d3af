//! The program over a SQLite file, killed again and again while clients of all
//! kinds call it: after each restart everything that was acknowledged or seen is
//! there as it was, and nothing is there that nobody asked for.
//!
//! `KILL_ROUNDS` sets how often it is killed, `KILL_SEED` what the clients do;
//! when the kill comes depends on the machine too.

mod clients;
mod lookers;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use longrunning::proto::{
    google::longrunning::{Operation, WaitOperationRequest},
    longrunning::v1::{CreateOperationRequest, operation_metadata::State},
};
use tokio::{task::JoinSet, time::sleep};
use tonic::Code;

use clients::{Hand, ORDER};
use world::{Held, Requested, World, priority};

use crate::support::{
    dice::Dice,
    error, get,
    ledger::{Effect, KEY, is_ours},
    metadata, reason,
    shop::{Kind, look, seconds, self_executed},
    stored::{Fail, begin, spawn},
};

/// What each client of a server does, by number.
const CLIENTS: [u64; 11] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 15];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

// BEHAVIOUR §5: acknowledged means durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_at_random_loses_nothing_that_was_acknowledged_or_seen() {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = setting("KILL_SEED", u64::from(clock.unwrap().subsec_nanos()));
    let rounds = setting("KILL_ROUNDS", 20);
    eprintln!("KILL_SEED={seed} KILL_ROUNDS={rounds}");
    let mut dice = Dice::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("operations.db");
    let world = Arc::new(World::default());
    let (mut kills, mut answers) = (0, 0);
    for round in 0..rounds {
        while dice.once_in(4) {
            let starting = spawn(&file, &[]);
            // Whatever it is doing then.
            sleep(Duration::from_micros(dice.within(0..200_000))).await;
            starting.kill().await;
            kills += 1;
        }
        let serving = begin(&file, &[]).await.serving();
        let mut hand = Hand::new(5, &world, dice.fork(), &serving);
        inspect(&mut hand).await;
        let hands = CLIENTS.map(|number| Hand::new(number, &world, dice.fork(), &serving));
        let mut running: JoinSet<()> = hands.into_iter().map(Hand::run).collect();
        let enough = *world.answers.borrow() + dice.within(5..300);
        let mut news = world.answers.subscribe();
        tokio::select! {
            _ = news.wait_for(|answers| enough <= *answers) => {}
            Some(ended) = running.join_next() => {
                ended.unwrap();
                panic!("a client had no answer in round {round}: {:?}", serving.said());
            }
        }
        if dice.once_in(8) {
            let ended = serving.stop().await;
            assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        } else {
            serving.kill().await;
            kills += 1;
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
        answers = *world.answers.borrow();
    }
    let serving = begin(&file, &[]).await.serving();
    let mut hand = Hand::new(5, &world, dice.fork(), &serving);
    inspect(&mut hand).await;
    let operations = hand.list().await.unwrap().len();
    serving.kill().await;
    check_grace(&file).await;
    check_integrity(&file);
    eprintln!("{kills} kills, {answers} answers, {operations} operations at the end");
}

/// After a start: what is there is what must be there, and goes on.
async fn inspect(hand: &mut Hand) {
    let all = hand.list().await.unwrap();
    let world = hand.world.clone();
    let there: BTreeMap<String, Operation> = all
        .iter()
        .map(|operation| (operation.name.clone(), operation.clone()))
        .collect();
    assert_eq!(there.len(), all.len(), "each is listed once");
    world.ledger.lock().settle(&there);
    check_ages(&world, &all);
    check_gets(hand, &there).await;
    check_requests(hand, &there).await;
    let held: Vec<Held> = world.held.lock().clone();
    for held in &held {
        let kind = hand.sign(held).await;
        let is_held = matches!(
            kind,
            Kind::Continue | Kind::CancelRequested | Kind::OperationDeleted
        );
        assert!(is_held, "{kind:?} for {held:?}");
    }
    end_again(hand).await;
    create_again(hand, &there).await;
    check_order(hand).await;
}

/// Who was created later is listed earlier.
fn check_ages(world: &World, all: &[Operation]) {
    let place = |(place, operation): (usize, &Operation)| (operation.name.clone(), place);
    let places: BTreeMap<_, _> = all.iter().enumerate().map(place).collect();
    for names in world.ages.lock().values() {
        let places: Vec<_> = names.iter().filter_map(|name| places.get(name)).collect();
        assert!(
            places.is_sorted_by(|older, newer| newer < older),
            "{names:?}"
        );
    }
}

async fn check_gets(hand: &mut Hand, there: &BTreeMap<String, Operation>) {
    let known = hand.world.ledger.lock().all();
    let names: Vec<&String> = known.keys().collect();
    for _ in 0..40 {
        let Some(name) = hand.dice.one_of(&names) else {
            return;
        };
        let answer = hand.client.get_operation(get(name)).await;
        match (answer.map_err(Fail::from), there.get(*name)) {
            (Ok(answer), Some(operation)) => assert_eq!(answer.get_ref(), operation),
            (Err(Fail::Refused(Code::NotFound, _)), None) => {}
            (answer, listed) => panic!("{name}: {answer:?}, but listed: {listed:?}"),
        }
    }
}

/// The same request again gets the same operation.
async fn check_requests(hand: &mut Hand, there: &BTreeMap<String, Operation>) {
    let mut requests = hand.world.requests.lock().clone();
    requests.retain(|requested| there.contains_key(&requested.name));
    for _ in 0..20 {
        let Some(Requested {
            request,
            name,
            token,
        }) = hand.dice.one_of(&requests).cloned()
        else {
            return;
        };
        let again = hand.worker.create_operation(request).await.unwrap();
        let again = again.into_inner();
        assert!(again.reused, "{name}");
        assert_eq!(again.operation.as_ref(), Some(&there[&name]));
        if let (Some(lease), Some(token)) = (again.lease, token) {
            assert_eq!(lease.lease_token, token, "{name}");
        }
    }
}

/// An end whose answer was lost can be told again.
async fn end_again(hand: &mut Hand) {
    let ends = std::mem::take(&mut *hand.world.ends.lock());
    for (request, effect) in ends {
        let world = hand.world.clone();
        let before = world.known(&request.name);
        let answer = hand.worker.finish_operation(request.clone());
        match world.call(&request.name, effect.clone(), answer).await {
            Ok(operation) if !before.gone => world.saw(&before, &operation),
            Ok(_) => {}
            Err(Fail::Refused(Code::NotFound, _)) if before.gone => {}
            // It was given back the first time.
            Err(Fail::Refused(Code::FailedPrecondition, _)) if effect == Effect::Return => {}
            Err(other) => panic!("{other:?} for {request:?}"),
        }
    }
}

/// A creation whose answer was lost can be asked for again, if it has an id.
async fn create_again(hand: &mut Hand, there: &BTreeMap<String, Operation>) {
    let creations = std::mem::take(&mut *hand.world.creations.lock());
    for (request, name) in creations {
        let is_gone = (name.as_ref()).is_some_and(|name| hand.world.known(name).gone);
        if is_gone || (request.request_id.is_empty() && name.is_none()) {
            continue;
        }
        let key = request.labels[KEY].clone();
        let before = there.values().find(|one| match &name {
            Some(name) => one.name == *name,
            None => is_ours(one) && metadata(one).labels.get(KEY) == Some(&key),
        });
        let answer = hand.ask_again(request.clone(), name.as_deref()).await;
        match (answer, before) {
            (Ok(created), before) => {
                assert_eq!(created.reused, before.is_some(), "{request:?}");
                let has_id = !request.request_id.is_empty();
                assert!(has_id || before.is_none(), "{request:?}");
                let held = created.lease.map(|lease| Held {
                    is_own: request.metadata.is_some(),
                    ..Held::from(lease)
                });
                hand.world.held.lock().extend(held);
            }
            (Err(Fail::Refused(Code::AlreadyExists, _)), Some(_)) => {
                assert_eq!(request.request_id, "");
            }
            (Err(other), _) => panic!("{other:?} for {request:?}"),
        }
    }
}

/// What waits in a queue is leased by priority, then age.
async fn check_order(hand: &mut Hand) {
    let all = hand.list().await.unwrap();
    let ours = all.iter().filter(|operation| is_ours(operation));
    let mut waiting: Vec<_> = ours
        .map(|operation| (operation, metadata(operation)))
        .filter(|(_, ours)| ours.state() == State::Pending && ours.queue == ORDER)
        .collect();
    waiting.reverse();
    waiting.sort_by_key(|(_, ours)| -priority(&ours.labels[KEY]));
    let expected: Vec<_> = waiting.iter().map(|(one, _)| one.name.clone()).collect();
    let listed: BTreeSet<_> = all.iter().map(|operation| &operation.name).collect();
    let (mut leased, mut held) = (Vec::new(), Vec::new());
    loop {
        let request = look(&[ORDER], "w", 1000);
        let leases = hand.worker.lease_operations(request).await.unwrap();
        let leases = leases.into_inner().leases;
        if leases.is_empty() {
            break;
        }
        held.extend(leases.iter().map(|lease| hand.world.check_lease(lease)));
        leased.extend(leases.into_iter().map(|lease| lease.name));
    }
    // Deleted ones are worked on unseen.
    leased.retain(|name| listed.contains(name));
    assert_eq!(leased, expected);
    for held in held {
        hand.work(held).await.unwrap();
    }
}

/// A lease that was short before the death of the server has its full length
/// after it.
async fn check_grace(file: &Path) {
    // On a machine that stands still it may be over before the death.
    while !has_grace(file).await {}
}

/// Whether the lease was still there when the server died.
async fn has_grace(file: &Path) -> bool {
    let serving = begin(file, &[]).await.serving();
    let request = CreateOperationRequest {
        lease_duration: seconds(1),
        ..self_executed("w")
    };
    let created = serving.worker().create_operation(request).await.unwrap();
    let name = created.into_inner().operation.unwrap().name;
    serving.kill().await;
    let begun = SystemTime::now();
    let serving = begin(file, &[]).await.serving();
    let request = WaitOperationRequest {
        name,
        timeout: seconds(60),
    };
    let done = serving.client().wait_operation(request).await.unwrap();
    let done = done.into_inner();
    assert_eq!(reason(&error(&done)), "WORKER_LOST");
    let end: SystemTime = metadata(&done).end_time.unwrap().try_into().unwrap();
    serving.kill().await;
    assert!(end < begun || begun + Duration::from_secs(1) <= end);
    begun <= end
}

fn check_integrity(file: &Path) {
    let connection = rusqlite::Connection::open(file).unwrap();
    let found: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(found, "ok");
}
