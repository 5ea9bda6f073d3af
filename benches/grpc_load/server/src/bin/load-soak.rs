//! A mixed load for a long time: creates, reports, finishes, deletes, polls,
//! lists and waits, at a fixed rate, with the clients that tonic generates, on
//! one thread. What matters is that nothing grows and nothing fails.
//!
//! `load-soak CLIENTS WORKERS PID RATE MINUTES` prints a line a minute: the
//! server's CPU and memory, operations and waits, latencies of Get, failures.

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

type Failed = Box<dyn Error + Send + Sync>;

/// Users at a time, each of whom follows one operation after the other.
const USERS: u64 = 500;
/// Polls of an operation between its creation and its end.
const POLLS: i64 = 12;
/// How long one of ten operations is waited for.
const WAIT: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Found {
    gets: Vec<Duration>,
    calls: u64,
    failures: Vec<Status>,
}

#[derive(Clone)]
struct User {
    clients: OperationsClient<Channel>,
    workers: OperationWorkerClient<Channel>,
    found: Arc<Mutex<Found>>,
}

fn main() -> Result<(), Failed> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(soak())
}

async fn soak() -> Result<(), Failed> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [clients, workers, pid, rate, minutes] = &arguments[..] else {
        return Err("load-soak CLIENTS WORKERS PID RATE MINUTES".into());
    };
    let user = User {
        clients: OperationsClient::new(channel(clients).await?),
        workers: OperationWorkerClient::new(channel(workers).await?),
        found: Arc::default(),
    };
    // Of an operation's some 19 calls, 12 are polls, one a turn.
    let pause = Duration::from_secs_f64(USERS as f64 * 19.0 / 12.0 / rate.parse::<f64>()?);
    for number in 0..USERS {
        tokio::spawn(user.clone().live(number, pause));
    }
    println!("| minute | calls/s | CPU | RSS, MB | Get p50 / p99 / p99.9, µs | failures |");
    println!("| --: | --: | --: | --: | --: | --: |");
    let mut minute = interval(Duration::from_secs(60));
    minute.tick().await;
    for number in 1..=minutes.parse::<u32>()? {
        let (begun, before) = (Instant::now(), cpu(pid)?);
        minute.tick().await;
        let (took, spent) = (begun.elapsed().as_secs_f64(), cpu(pid)? - before);
        let mut found = std::mem::take(&mut *user.found.lock().await);
        found.gets.sort_unstable();
        let at = |part: f64| {
            let place = (found.gets.len() as f64 * part) as usize;
            found.gets.get(place).map_or(0, Duration::as_micros)
        };
        println!(
            "| {number} | {:.0} | {:.0} % | {:.1} | {} / {} / {} | {} |",
            found.calls as f64 / took,
            spent / took / 1e7,
            rss(pid)?,
            at(0.5),
            at(0.99),
            at(0.999),
            found.failures.len()
        );
        if let Some(failure) = found.failures.first() {
            println!("first failure of the minute: {failure}");
        }
    }
    Ok(())
}

async fn channel(address: &str) -> Result<Channel, Failed> {
    let endpoint = Channel::from_shared(format!("http://{address}"))?;
    Ok(endpoint.tcp_nodelay(true).connect().await?)
}

/// Nanoseconds that the process has had on a processor.
fn cpu(pid: &str) -> Result<f64, Failed> {
    let mut nanos = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let spent = text.split_whitespace().next().ok_or("an empty schedstat")?;
        nanos += spent.parse::<f64>()?;
    }
    Ok(nanos)
}

fn rss(pid: &str) -> Result<f64, Failed> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.ok_or("no VmRSS")?.parse::<f64>()? / 1000.0 * 1.024)
}

// === impl User ===

impl User {
    async fn live(mut self, number: u64, pause: Duration) {
        let mut turns = interval(pause);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Users do not all begin at once.
        let late = pause.mul_f64(number as f64 / USERS as f64);
        tokio::time::sleep(late).await;
        for round in number.. {
            if let Err(failure) = self.follow(round, &mut turns).await {
                self.found.lock().await.failures.push(failure);
            }
        }
    }

    /// From the creation of an operation to its end, and for one of three to
    /// its deletion.
    async fn follow(
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
                    timeout: prost_types::Duration::try_from(WAIT).ok(),
                };
                clients.wait_operation(request).await
            })
        });
        for poll in 1..=POLLS {
            turns.tick().await;
            let asked = Instant::now();
            let request = GetOperationRequest { name: name.clone() };
            self.clients.get_operation(request).await?;
            let took = asked.elapsed();
            let mut found = self.found.lock().await;
            found.gets.push(took);
            found.calls += 1;
            drop(found);
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
                self.found.lock().await.calls += 1;
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
        self.found.lock().await.calls += 3;
        Ok(())
    }
}
