//! Jobs over the wire: creates operations, leases them and finishes them as
//! services and workers do, with the clients that tonic generates, on one
//! thread.
//!
//! `load-jobs CLIENTS WORKERS PID COUNT` prints lines `WHAT<tab>VALUE`. CPU is
//! that of the server, the process PID; the load has a processor of its own.

use std::{env, error::Error, fs, time::Duration};

use longrunning::proto::{
    google::longrunning::{CancelOperationRequest, operations_client::OperationsClient},
    longrunning::v1::{
        CreateOperationRequest, Directive, FinishOperationRequest, HeartbeatRequest, Lease,
        LeaseHeartbeat, LeaseOperationsRequest, WatchDirectivesRequest,
        create_operation_request::{Execution, Queued, SelfExecuted},
        directive::Kind,
        operation_worker_client::OperationWorkerClient,
    },
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval, sleep},
};
use tonic::{Status, transport::Channel};

type Worker = OperationWorkerClient<Channel>;
type Failed = Box<dyn Error + Send + Sync>;

/// Tasks that each create, lease and finish one operation after the other.
const SINGLES: usize = 64;
/// Tasks that create, and tasks that lease a hundred at a time.
const CREATORS: usize = 64;
const LEASERS: usize = 4;
const BATCH: i32 = 100;
/// How many latencies are taken.
const SAMPLES: usize = 2000;
const BEATS: usize = 60;

fn main() -> Result<(), Failed> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(measure())
}

async fn measure() -> Result<(), Failed> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [clients, workers, pid, count] = &arguments[..] else {
        return Err("load-jobs CLIENTS WORKERS PID COUNT".into());
    };
    let count: usize = count.parse()?;
    let clients = channel(clients).await?;
    let workers = channel(workers).await?;
    let worker = Worker::new(workers);

    let rate = timed("one by one", pid, count, singles(&worker, "singles", count)).await?;
    timed("leased by the hundred", pid, count, batches(&worker, count)).await?;

    tell("Create to lease, idle", pickups(&worker, "idle").await?);
    // Half of what goes through one by one, from the same process.
    let load = tokio::spawn(paced(worker.clone(), rate / 2.0));
    tell(
        "Create to lease, half load",
        pickups(&worker, "half").await?,
    );
    load.abort();

    let pushes = pushes(&worker, OperationsClient::new(clients.clone())).await?;
    tell("Cancel to worker, by push", pushes);
    let beats = beats(&worker, OperationsClient::new(clients)).await?;
    tell("Cancel to worker, by heartbeats at 333 ms", beats);
    Ok(())
}

async fn channel(address: &str) -> Result<Channel, Failed> {
    let endpoint = Channel::from_shared(format!("http://{address}"))?;
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

// === How much goes through ===

async fn timed(
    how: &str,
    pid: &str,
    count: usize,
    work: impl Future<Output = Result<(), Failed>>,
) -> Result<f64, Failed> {
    let (begun, before) = (Instant::now(), cpu(pid)?);
    work.await?;
    let (took, spent) = (begun.elapsed().as_secs_f64(), cpu(pid)? - before);
    let rate = count as f64 / took;
    println!("Create, lease, finish, {how}: per second\t{rate:.0}");
    let each = spent / 1000.0 / count as f64;
    println!("Create, lease, finish, {how}: server CPU, µs each\t{each:.2}");
    Ok(rate)
}

async fn singles(worker: &Worker, queue: &'static str, count: usize) -> Result<(), Failed> {
    let mut tasks = JoinSet::new();
    for _ in 0..SINGLES {
        let mut worker = worker.clone();
        tasks.spawn(async move {
            for _ in 0..count / SINGLES {
                cycle(&mut worker, queue).await?;
            }
            Ok::<_, Status>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn cycle(worker: &mut Worker, queue: &str) -> Result<(), Status> {
    create(worker, queue).await?;
    for lease in lease(worker, queue, 1).await? {
        finish(worker, lease).await?;
    }
    Ok(())
}

async fn batches(worker: &Worker, count: usize) -> Result<(), Failed> {
    let mut tasks = JoinSet::new();
    for _ in 0..CREATORS {
        let mut worker = worker.clone();
        tasks.spawn(async move {
            for _ in 0..count / CREATORS {
                create(&mut worker, "batches").await?;
            }
            Ok::<_, Status>(())
        });
    }
    let (done, mut finished) = mpsc::channel(1024);
    for _ in 0..LEASERS {
        let (mut worker, done) = (worker.clone(), done.clone());
        tasks.spawn(async move {
            loop {
                let leases = lease(&mut worker, "batches", BATCH).await?;
                let ends = leases.into_iter().map(|lease| {
                    let (mut worker, done) = (worker.clone(), done.clone());
                    async move {
                        finish(&mut worker, lease).await?;
                        let _ = done.send(()).await;
                        Ok::<_, Status>(())
                    }
                });
                let mut ends: JoinSet<_> = ends.collect();
                while let Some(end) = ends.join_next().await {
                    end.map_err(|error| Status::internal(error.to_string()))??;
                }
            }
        });
    }
    for _ in 0..count / CREATORS * CREATORS {
        finished.recv().await;
    }
    Ok(())
}

// === How soon ===

/// How long after the call that creates it a waiting worker has an operation.
async fn pickups(worker: &Worker, queue: &'static str) -> Result<Vec<Duration>, Failed> {
    let (leased, mut seen) = mpsc::channel(1);
    let mut taker = worker.clone();
    let taking = tokio::spawn(async move {
        loop {
            for lease in lease(&mut taker, queue, 1).await? {
                let _ = leased.send(Instant::now()).await;
                finish(&mut taker, lease).await?;
            }
        }
        #[expect(unreachable_code, reason = "the type of the errors")]
        Ok::<_, Status>(())
    });
    let mut worker = worker.clone();
    let mut took = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        // The worker is back at its poll.
        sleep(Duration::from_millis(2)).await;
        let begun = Instant::now();
        create(&mut worker, queue).await?;
        took.push(seen.recv().await.ok_or("the worker broke off")? - begun);
    }
    taking.abort();
    Ok(took)
}

/// So many operations a second, for ever.
async fn paced(worker: Worker, rate: f64) {
    let mut tick = interval(Duration::from_millis(10));
    loop {
        tick.tick().await;
        let mut burst: JoinSet<_> = (0..(rate / 100.0) as usize)
            .map(|_| {
                let mut worker = worker.clone();
                async move { cycle(&mut worker, "load").await }
            })
            .collect();
        while burst.join_next().await.is_some() {}
    }
}

/// How long after the call that cancels it the holder of a lease is told.
async fn pushes(
    worker: &Worker,
    mut clients: OperationsClient<Channel>,
) -> Result<Vec<Duration>, Failed> {
    let mut worker = worker.clone();
    let request = WatchDirectivesRequest {
        worker_id: "pushes".to_owned(),
    };
    let mut directives = worker.watch_directives(request).await?.into_inner();
    directives.message().await?;
    let mut took = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let lease = held(&mut worker, "pushes", None).await?;
        let begun = Instant::now();
        let cancel = clients.cancel_operation(CancelOperationRequest {
            name: lease.name.clone(),
        });
        let (_, directive) = (cancel.await?, directives.message().await?);
        let directive: Directive = directive.ok_or("the stream ended")?;
        if directive.kind() != Kind::CancelRequested || directive.name != lease.name {
            return Err(format!("another directive: {directive:?}").into());
        }
        took.push(begun.elapsed());
        finish(&mut worker, lease).await?;
    }
    Ok(took)
}

/// The same, for a worker that only sends heartbeats, as often as it is asked to.
async fn beats(
    worker: &Worker,
    clients: OperationsClient<Channel>,
) -> Result<Vec<Duration>, Failed> {
    let mut tasks = JoinSet::new();
    for number in 0..BEATS {
        let (mut worker, mut clients) = (worker.clone(), clients.clone());
        tasks.spawn(async move {
            let short = Duration::from_secs(1).try_into().ok();
            let lease = held(&mut worker, "beats", short).await?;
            let name = lease.name.clone();
            let cancelling = tokio::spawn(async move {
                // Spread over the time between two heartbeats.
                sleep(Duration::from_millis(
                    333 + 333 * number as u64 / BEATS as u64,
                ))
                .await;
                let begun = Instant::now();
                clients
                    .cancel_operation(CancelOperationRequest { name })
                    .await?;
                Ok::<_, Status>(begun)
            });
            loop {
                let report = LeaseHeartbeat {
                    name: lease.name.clone(),
                    lease_token: lease.lease_token.clone(),
                    ..LeaseHeartbeat::default()
                };
                let request = HeartbeatRequest {
                    worker_id: "beats".to_owned(),
                    reports: vec![report],
                    draining: false,
                };
                let answer = worker.heartbeat(request).await?.into_inner();
                if answer.directives[0].kind() == Kind::CancelRequested {
                    break;
                }
                let next = answer
                    .heartbeat_interval
                    .and_then(|next| next.try_into().ok());
                sleep(next.unwrap_or_default()).await;
            }
            let told = Instant::now();
            let begun = cancelling.await??;
            Ok::<_, Failed>(told - begun)
        });
    }
    let mut took = Vec::new();
    while let Some(done) = tasks.join_next().await {
        took.push(done??);
    }
    Ok(took)
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort();
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let at = ((took.len() - 1) as f64 * part) as usize;
        println!("{what}: {name}, µs\t{}", took[at].as_micros());
    }
}

// === Calls ===

async fn create(worker: &mut Worker, queue: &str) -> Result<(), Status> {
    let queued = Queued {
        queue: queue.to_owned(),
        ..Queued::default()
    };
    let request = CreateOperationRequest {
        execution: Some(Execution::Queued(queued)),
        ..CreateOperationRequest::default()
    };
    worker.create_operation(request).await.map(drop)
}

async fn held(
    worker: &mut Worker,
    id: &str,
    lease_duration: Option<prost_types::Duration>,
) -> Result<Lease, Status> {
    let own = SelfExecuted {
        worker_id: id.to_owned(),
    };
    let request = CreateOperationRequest {
        execution: Some(Execution::SelfExecuted(own)),
        lease_duration,
        ..CreateOperationRequest::default()
    };
    let created = worker.create_operation(request).await?.into_inner();
    created
        .lease
        .ok_or_else(|| Status::internal("no lease came"))
}

async fn lease(worker: &mut Worker, queue: &str, most: i32) -> Result<Vec<Lease>, Status> {
    let request = LeaseOperationsRequest {
        queues: vec![queue.to_owned()],
        worker_id: "jobs".to_owned(),
        max_leases: most,
        wait_timeout: None,
    };
    Ok(worker.lease_operations(request).await?.into_inner().leases)
}

async fn finish(worker: &mut Worker, lease: Lease) -> Result<(), Status> {
    let request = FinishOperationRequest {
        name: lease.name,
        lease_token: lease.lease_token,
        ..FinishOperationRequest::default()
    };
    worker.finish_operation(request).await.map(drop)
}

/// Nanoseconds on a processor, of all threads of a process.
fn cpu(pid: &str) -> Result<f64, Failed> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let spent = text.split(' ').next().ok_or("schedstat has another form")?;
        sum += spent.parse::<f64>()?;
    }
    Ok(sum)
}
