//! Soak load: creates, reports, finishes, deletes, polls, lists and waits at a fixed rate, with
//! the generated tonic clients on one thread. Shows whether memory grows or calls fail.
//!
//! `load-soak CLIENTS WORKERS PID RATE MINUTES` prints a line per minute with the call rate,
//! the CPU and memory of the server, the latency of Get, and failures.

use std::{env, error::Error, fs, sync::Arc, time::Duration};

use longrunning::proto::{
    google::longrunning::{
        DeleteOperationRequest, GetOperationRequest, ListOperationsRequest, WaitOperationRequest,
        operations_client::OperationsClient,
    },
    longrunning::v1::{
        CreateOperationRequest, FinishOperationRequest, HeartbeatRequest, LeaseHeartbeat, Progress,
        create_operation_request::{Execution, SelfExecuted},
        finish_operation_request::Outcome,
        operation_worker_client::OperationWorkerClient,
    },
};
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval},
};
use tonic::{Status, transport::Channel};

type BoxError = Box<dyn Error + Send + Sync>;

/// The number of concurrent users, each with one operation at a time.
const USERS: u64 = 500;
/// The number of polls of an operation before it finishes.
const POLLS: i64 = 12;
/// The timeout of the wait for every tenth operation.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Measurements {
    gets: Vec<Duration>,
    calls: u64,
    failures: Vec<Status>,
}

#[derive(Clone)]
struct User {
    clients: OperationsClient<Channel>,
    workers: OperationWorkerClient<Channel>,
    measurements: Arc<Mutex<Measurements>>,
}

fn main() -> Result<(), BoxError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(soak())
}

async fn soak() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [clients, workers, pid, rate, minutes] = &arguments[..] else {
        return Err("usage: load-soak CLIENTS WORKERS PID RATE MINUTES".into());
    };
    let user = User {
        clients: OperationsClient::new(channel(clients).await?),
        workers: OperationWorkerClient::new(channel(workers).await?),
        measurements: Arc::default(),
    };
    // An operation makes about 19 calls, of which 12 are polls, one per tick.
    let pause = Duration::from_secs_f64(USERS as f64 * 19.0 / 12.0 / rate.parse::<f64>()?);
    for number in 0..USERS {
        tokio::spawn(user.clone().run(number, pause));
    }
    println!("| minute | calls/s | CPU | RSS, MB | Get p50 / p99 / p99.9, µs | failures |");
    println!("| --: | --: | --: | --: | --: | --: |");
    let mut minute = interval(Duration::from_secs(60));
    minute.tick().await;
    for number in 1..=minutes.parse::<u32>()? {
        let (begun, before) = (Instant::now(), cpu_nanos(pid)?);
        minute.tick().await;
        let (took, spent) = (begun.elapsed().as_secs_f64(), cpu_nanos(pid)? - before);
        let mut measured = std::mem::take(&mut *user.measurements.lock().await);
        measured.gets.sort_unstable();
        let at = |part: f64| {
            let place = (measured.gets.len() as f64 * part) as usize;
            measured.gets.get(place).map_or(0, Duration::as_micros)
        };
        println!(
            "| {number} | {:.0} | {:.0} % | {:.1} | {} / {} / {} | {} |",
            measured.calls as f64 / took,
            spent / took / 1e7,
            rss_mb(pid)?,
            at(0.5),
            at(0.99),
            at(0.999),
            measured.failures.len()
        );
        if let Some(failure) = measured.failures.first() {
            println!("first failure of the minute: {failure}");
        }
    }
    Ok(())
}

async fn channel(address: &str) -> Result<Channel, BoxError> {
    let endpoint = Channel::from_shared(format!("http://{address}"))?;
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

/// Returns the CPU time of a process in nanoseconds.
fn cpu_nanos(pid: &str) -> Result<f64, BoxError> {
    let mut nanos = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let spent = text.split_whitespace().next().ok_or("an empty schedstat")?;
        nanos += spent.parse::<f64>()?;
    }
    Ok(nanos)
}

/// Returns the resident memory of a process in MB.
fn rss_mb(pid: &str) -> Result<f64, BoxError> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.ok_or("no VmRSS")?.parse::<f64>()? / 1000.0 * 1.024)
}

// === impl User ===

impl User {
    async fn run(mut self, number: u64, pause: Duration) {
        let mut turns = interval(pause);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Spreads the first ticks of the users.
        let late = pause.mul_f64(number as f64 / USERS as f64);
        tokio::time::sleep(late).await;
        for round in number.. {
            if let Err(failure) = self.run_operation(round, &mut turns).await {
                self.measurements.lock().await.failures.push(failure);
            }
        }
    }

    /// Runs one operation from creation to finish; deletes every third one.
    async fn run_operation(
        &mut self,
        round: u64,
        turns: &mut tokio::time::Interval,
    ) -> Result<(), Status> {
        let created = self.workers.create_operation(CreateOperationRequest {
            labels: [("round".to_owned(), (round % 100).to_string())].into(),
            execution: Some(Execution::SelfExecuted(SelfExecuted {
                worker_id: "soak".to_owned(),
            })),
            ..CreateOperationRequest::default()
        });
        let created = created.await?.into_inner();
        let name = created
            .operation
            .map(|operation| operation.name)
            .unwrap_or_default();
        let lease_token = created
            .lease
            .map(|lease| lease.lease_token)
            .unwrap_or_default();
        let waiter = (round % 10 == 0).then(|| {
            let (mut clients, name) = (self.clients.clone(), name.clone());
            tokio::spawn(async move {
                let request = WaitOperationRequest {
                    name,
                    timeout: prost_types::Duration::try_from(WAIT_TIMEOUT).ok(),
                };
                clients.wait_operation(request).await
            })
        });
        for poll in 1..=POLLS {
            turns.tick().await;
            let started = Instant::now();
            let request = GetOperationRequest { name: name.clone() };
            self.clients.get_operation(request).await?;
            let took = started.elapsed();
            let mut measured = self.measurements.lock().await;
            measured.gets.push(took);
            measured.calls += 1;
            drop(measured);
            if poll % 4 == 0 {
                let report = LeaseHeartbeat {
                    name: name.clone(),
                    lease_token: lease_token.clone(),
                    progress: Some(Progress {
                        done_units: poll,
                        total_units: POLLS,
                        ..Progress::default()
                    }),
                    ..LeaseHeartbeat::default()
                };
                let beat = HeartbeatRequest {
                    worker_id: "soak".to_owned(),
                    reports: vec![report],
                    ..HeartbeatRequest::default()
                };
                self.workers.heartbeat(beat).await?;
                self.measurements.lock().await.calls += 1;
            }
        }
        if round % 4 == 0 {
            let request = ListOperationsRequest {
                name: "operations".to_owned(),
                filter: if round % 8 == 0 { "done = false" } else { "" }.to_owned(),
                page_size: 20,
                ..ListOperationsRequest::default()
            };
            self.clients.list_operations(request).await?;
        }
        let finish = FinishOperationRequest {
            name: name.clone(),
            lease_token,
            outcome: Some(Outcome::Response(prost_types::Any {
                type_url: "type.googleapis.com/bench.Filling".to_owned(),
                value: vec![b'.'; 100],
            })),
            ..FinishOperationRequest::default()
        };
        self.workers.finish_operation(finish).await?;
        if let Some(waiter) = waiter {
            let waited = waiter
                .await
                .map_err(|error| Status::internal(error.to_string()))??;
            if !waited.into_inner().done {
                return Err(Status::internal("a wait ended before its operation"));
            }
        }
        if round % 3 == 0 {
            self.clients
                .delete_operation(DeleteOperationRequest { name })
                .await?;
        }
        self.measurements.lock().await.calls += 3;
        Ok(())
    }
}
