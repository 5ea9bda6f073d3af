//! Job load: creates, leases and finishes operations with the generated tonic clients on one
//! thread.
//!
//! `load-jobs CLIENTS WORKERS PID COUNT` prints lines `METRIC<tab>VALUE`. CPU time is that of
//! the server, the process PID; the load runs on another processor.

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
type BoxError = Box<dyn Error + Send + Sync>;

/// The number of tasks that create, lease and finish operations one by one.
const CYCLE_TASKS: usize = 64;
/// The number of tasks that create, and of tasks that lease in batches.
const CREATORS: usize = 64;
const LEASERS: usize = 4;
const BATCH_SIZE: i32 = 100;
/// The number of measured latencies.
const SAMPLES: usize = 2000;
/// The number of workers that learn of a cancellation from heartbeats.
const HEARTBEAT_WORKERS: usize = 60;

fn main() -> Result<(), BoxError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(measure())
}

async fn measure() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [clients, workers, pid, count] = &arguments[..] else {
        return Err("usage: load-jobs CLIENTS WORKERS PID COUNT".into());
    };
    let count: usize = count.parse()?;
    let clients = channel(clients).await?;
    let workers = channel(workers).await?;
    let worker = Worker::new(workers);

    let rate = timed("one by one", pid, count, singles(&worker, "singles", count)).await?;
    timed(
        "leased in batches of 100",
        pid,
        count,
        batches(&worker, count),
    )
    .await?;

    print_quantiles("Create to lease, idle", pickups(&worker, "idle").await?);
    // Half of the throughput of single jobs, from the same process.
    let load = tokio::spawn(paced(worker.clone(), rate / 2.0));
    print_quantiles(
        "Create to lease, half load",
        pickups(&worker, "half").await?,
    );
    load.abort();

    let pushes = pushes(&worker, OperationsClient::new(clients.clone())).await?;
    print_quantiles("Cancel to worker, by push", pushes);
    let by_heartbeat = heartbeats(&worker, OperationsClient::new(clients)).await?;
    print_quantiles("Cancel to worker, by heartbeats at 333 ms", by_heartbeat);
    Ok(())
}

async fn channel(address: &str) -> Result<Channel, BoxError> {
    let endpoint = Channel::from_shared(format!("http://{address}"))?;
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

// === Throughput ===

async fn timed(
    how: &str,
    pid: &str,
    count: usize,
    work: impl Future<Output = Result<(), BoxError>>,
) -> Result<f64, BoxError> {
    let (begun, before) = (Instant::now(), cpu_nanos(pid)?);
    work.await?;
    let (took, spent) = (begun.elapsed().as_secs_f64(), cpu_nanos(pid)? - before);
    let rate = count as f64 / took;
    println!("Create, lease, finish, {how}: per second\t{rate:.0}");
    let each = spent / 1000.0 / count as f64;
    println!("Create, lease, finish, {how}: server CPU, µs each\t{each:.2}");
    Ok(rate)
}

async fn singles(worker: &Worker, queue: &'static str, count: usize) -> Result<(), BoxError> {
    let mut tasks = JoinSet::new();
    for _ in 0..CYCLE_TASKS {
        let mut worker = worker.clone();
        tasks.spawn(async move {
            for _ in 0..count / CYCLE_TASKS {
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

async fn batches(worker: &Worker, count: usize) -> Result<(), BoxError> {
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
                let leases = lease(&mut worker, "batches", BATCH_SIZE).await?;
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

// === Latency ===

/// Measures the time from the create call until a waiting worker has the lease.
async fn pickups(worker: &Worker, queue: &'static str) -> Result<Vec<Duration>, BoxError> {
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
        // Lets the worker return to its long poll.
        sleep(Duration::from_millis(2)).await;
        let begun = Instant::now();
        create(&mut worker, queue).await?;
        took.push(seen.recv().await.ok_or("the worker task failed")? - begun);
    }
    taking.abort();
    Ok(took)
}

/// Runs `rate` jobs per second until aborted.
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

/// Measures the time from the cancel call until the lease holder receives the directive.
async fn pushes(
    worker: &Worker,
    mut clients: OperationsClient<Channel>,
) -> Result<Vec<Duration>, BoxError> {
    let mut worker = worker.clone();
    let request = WatchDirectivesRequest {
        worker_id: "pushes".to_owned(),
    };
    let mut directives = worker.watch_directives(request).await?.into_inner();
    directives.message().await?;
    let mut took = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let lease = create_self_executed(&mut worker, "pushes", None).await?;
        let begun = Instant::now();
        let cancel = clients.cancel_operation(CancelOperationRequest {
            name: lease.name.clone(),
        });
        let (_, directive) = (cancel.await?, directives.message().await?);
        let directive: Directive = directive.ok_or("the stream ended")?;
        if directive.kind() != Kind::CancelRequested || directive.name != lease.name {
            return Err(format!("unexpected directive: {directive:?}").into());
        }
        took.push(begun.elapsed());
        finish(&mut worker, lease).await?;
    }
    Ok(took)
}

/// Measures the same for workers that only send heartbeats at the requested interval.
async fn heartbeats(
    worker: &Worker,
    clients: OperationsClient<Channel>,
) -> Result<Vec<Duration>, BoxError> {
    let mut tasks = JoinSet::new();
    for number in 0..HEARTBEAT_WORKERS {
        let (mut worker, mut clients) = (worker.clone(), clients.clone());
        tasks.spawn(async move {
            let short = Duration::from_secs(1).try_into().ok();
            let lease = create_self_executed(&mut worker, "beats", short).await?;
            let name = lease.name.clone();
            let cancelling = tokio::spawn(async move {
                // Spreads the cancel calls over one heartbeat interval.
                sleep(Duration::from_millis(
                    333 + 333 * number as u64 / HEARTBEAT_WORKERS as u64,
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
            let received = Instant::now();
            let begun = cancelling.await??;
            Ok::<_, BoxError>(received - begun)
        });
    }
    let mut took = Vec::new();
    while let Some(done) = tasks.join_next().await {
        took.push(done??);
    }
    Ok(took)
}

fn print_quantiles(metric: &str, mut took: Vec<Duration>) {
    took.sort();
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let at = ((took.len() - 1) as f64 * part) as usize;
        println!("{metric}: {name}, µs\t{}", took[at].as_micros());
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

async fn create_self_executed(
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
        .ok_or_else(|| Status::internal("the response has no lease"))
}

async fn lease(worker: &mut Worker, queue: &str, most: i32) -> Result<Vec<Lease>, Status> {
    let request = LeaseOperationsRequest {
        queues: vec![queue.to_owned()],
        worker_id: "jobs".to_owned(),
        max_leases: most,
        wait_timeout: None,
        confirm_within: None,
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

/// Returns the CPU time of all threads of a process in nanoseconds.
fn cpu_nanos(pid: &str) -> Result<f64, BoxError> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let spent = text.split(' ').next().ok_or("schedstat has another form")?;
        sum += spent.parse::<f64>()?;
    }
    Ok(sum)
}
