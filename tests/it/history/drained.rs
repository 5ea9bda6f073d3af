//! A queue that workers at three servers empty, while two of these are killed and
//! the database loses its power: each operation has exactly one outcome, and it is
//! the one that was acknowledged.
//!
//! `DRAIN_OPERATIONS` sets how many there are.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use longrunning::{
    State,
    proto::{
        google::longrunning::operation,
        longrunning::v1::{
            CreateOperationRequest, Lease, create_operation_request::Execution,
            finish_operation_request::Outcome,
        },
    },
};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

use super::{
    replicas::{Fault, Process, REPLICAS, Replicas},
    rows, setting,
};
use crate::support::{
    dice::Dice,
    postgres::Postgres,
    shop::{attempts, finish, look, queued},
    stored::Fail,
    text,
};

const QUEUE: &str = "jobs";

/// Who creates, and who works, at each server.
const CREATORS: usize = 64;
const WORKERS: usize = 3;

/// How many leases a worker takes at once, and how many it ends at once.
const BATCH: i32 = 64;

/// How long a call may take until another server is asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// What workers know of what they did.
#[derive(Default)]
struct Ledger {
    /// The outcomes that somebody tried to record, by the name of the operation.
    tried: HashMap<String, HashSet<String>>,
    acknowledged: BTreeMap<String, String>,
}

struct Work {
    replicas: Arc<Replicas>,
    ledger: Mutex<Ledger>,
    /// How many ends were acknowledged.
    done: watch::Sender<usize>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_emptied_through_kills_of_servers_and_a_restart_of_the_database() {
    let count = usize::try_from(setting("DRAIN_OPERATIONS").unwrap_or(2000)).unwrap();
    let Some(postgres) = Postgres::start(&[]) else {
        return;
    };
    let postgres = Arc::new(Mutex::new(postgres));
    let begun = Instant::now();
    let arguments = ["--lease-duration", "10s", "--max-queue", "1000000"];
    let replicas = Arc::new(Replicas::start(begun, &postgres, &arguments).await);
    let work = Arc::new(Work {
        replicas: replicas.clone(),
        ledger: Mutex::default(),
        done: watch::Sender::new(0),
    });
    create(&work, count).await;
    let created = begun.elapsed();
    let mut workers: JoinSet<()> = (0..REPLICAS * WORKERS)
        .map(|number| work_on(work.clone(), number))
        .collect();
    // Each comes when so much is done, whenever that is.
    for (part, fault) in [
        (1, Fault::Kill(0)),
        (2, Fault::Database),
        (3, Fault::Kill(1)),
    ] {
        let mut done = work.done.subscribe();
        done.wait_for(|done| count * part / 4 <= *done)
            .await
            .unwrap();
        replicas.suffer(fault).await;
    }
    let open = "SELECT count(*) FROM longrunning.operations WHERE NOT is_done";
    // Ends whose acknowledgement was lost are counted by nobody but the database.
    let last = async {
        while replicas.ask(open) != "0" {
            sleep(Duration::from_millis(200)).await;
        }
    };
    let last = timeout(Duration::from_secs(600), last).await;
    last.unwrap_or_else(|_| panic!("some are never done\n{}", replicas.faults()));
    let drained = begun.elapsed();
    workers.abort_all();
    while workers.join_next().await.is_some() {}
    let rows = rows(&replicas).await;
    replicas.end().await;
    let ledger = work.ledger.lock();
    assert_eq!(
        rows.len(),
        count,
        "each is there once\n{}",
        replicas.faults()
    );
    let mut again = 0;
    for (name, row) in &rows {
        assert_eq!(
            row.state(),
            State::Succeeded,
            "{name}\n{}",
            replicas.faults()
        );
        let Some(operation::Result::Response(any)) = row.to_proto().result else {
            panic!("{name} has no response: {row:?}");
        };
        let outcome = String::decode(any.value.as_slice()).unwrap();
        let tried = &ledger.tried[name];
        assert!(tried.contains(&outcome), "{name}: {outcome} of {tried:?}");
        again += usize::from(1 < row.attempt());
    }
    for (name, outcome) in &ledger.acknowledged {
        let Some(operation::Result::Response(any)) = rows[name].to_proto().result else {
            panic!("{name} has no response");
        };
        assert_eq!(
            String::decode(any.value.as_slice()).unwrap(),
            *outcome,
            "{name}"
        );
    }
    eprintln!(
        "{count} operations made in {created:.1?}, done after {drained:.1?}; {} ends acknowledged, \
         {again} tried again\n{}",
        ledger.acknowledged.len(),
        replicas.faults()
    );
}

/// Any server that can be asked.
async fn any(replicas: &Replicas, dice: &mut Dice) -> Process {
    loop {
        if let Some(process) = dice.one_of(&replicas.open()) {
            return process.clone();
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn create(work: &Arc<Work>, count: usize) {
    let mut creators = JoinSet::new();
    for creator in 0..CREATORS {
        let work = work.clone();
        creators.spawn(async move {
            let mut dice = Dice::new(creator as u64);
            for number in (creator..count).step_by(CREATORS) {
                let request = CreateOperationRequest {
                    operation_id: format!("job-{number}"),
                    retry_policy: attempts(1_000_000),
                    ..queued(QUEUE)
                };
                assert!(matches!(request.execution, Some(Execution::Queued(_))));
                let mut process = any(&work.replicas, &mut dice).await;
                process.worker.create_operation(request).await.unwrap();
            }
        });
    }
    while let Some(ended) = creators.join_next().await {
        ended.unwrap();
    }
}

/// A worker, which asks whatever server there is, for ever.
async fn work_on(work: Arc<Work>, number: usize) {
    let mut dice = Dice::new(1000 + number as u64);
    let worker = format!("w{number}");
    loop {
        let mut process = any(&work.replicas, &mut dice).await;
        let request = look(&[QUEUE], &worker, BATCH);
        let leased = timeout(PATIENCE, process.worker.lease_operations(request)).await;
        let leases = match leased {
            Ok(Ok(leased)) => leased.into_inner().leases,
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        if leases.is_empty() {
            sleep(Duration::from_millis(50)).await;
            continue;
        }
        let ends: Vec<_> = leases
            .into_iter()
            .map(|lease| end(&work, dice.fork(), lease, &worker))
            .collect();
        futures_util::future::join_all(ends).await;
    }
}

/// Ends an operation, and goes on until it is known how that went.
async fn end(work: &Work, mut dice: Dice, lease: Lease, worker: &str) {
    let outcome = format!("{worker} in attempt {}", lease.attempt);
    {
        let mut ledger = work.ledger.lock();
        let tried = ledger.tried.entry(lease.name.clone()).or_default();
        tried.insert(outcome.clone());
    }
    loop {
        let mut process = any(&work.replicas, &mut dice).await;
        let request = finish(&lease, Outcome::Response(text(&outcome)));
        let ended = timeout(PATIENCE, process.worker.finish_operation(request)).await;
        match ended.map(|ended| ended.map_err(Fail::from)) {
            Ok(Ok(_)) => {
                let mut ledger = work.ledger.lock();
                let before = ledger.acknowledged.insert(lease.name.clone(), outcome);
                assert_eq!(before, None, "{} ended twice", lease.name);
                work.done.send_modify(|done| *done += 1);
                return;
            }
            // Another worker has it, or had it.
            Ok(Err(Fail::Refused(Code::FailedPrecondition, _))) => return,
            Ok(Err(Fail::Refused(Code::Unavailable, _) | Fail::Lost(_))) | Err(_) => {
                sleep(Duration::from_millis(dice.within(20..200))).await;
            }
            Ok(Err(Fail::Refused(code, reason))) => panic!("{code:?} {reason} for {}", lease.name),
        }
    }
}
