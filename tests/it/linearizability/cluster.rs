//! Three server processes over one database, each behind its own proxy, and the faults
//! injected into them.

use std::{ffi::OsString, sync::Arc, time::Duration};

use longrunning::{
    PostgresConfig, proto::longrunning::v1::operation_worker_client::OperationWorkerClient,
};
use parking_lot::Mutex;
use tokio::{
    task::{JoinSet, block_in_place},
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use super::{
    events::{Nanos, Outage},
    proxy::DatabaseProxy,
};
use crate::support::{
    GrpcClient,
    persistent_server::{PersistentServer, ServerExit, StartOutcome, spawn_with_store},
    postgres::{PostgresServer, new_schema},
    rng::TestRng,
};

pub(super) const REPLICA_COUNT: usize = 3;

/// Longer than it takes to close connections.
const DISCONNECT_DELAY: Duration = Duration::from_millis(100);

/// The servers, their proxies and the database.
pub(super) struct ServerCluster {
    started_at: Instant,
    config: PostgresConfig,
    arguments: Vec<String>,
    postgres: Arc<Mutex<PostgresServer>>,
    proxies: Vec<DatabaseProxy>,
    processes: Mutex<Vec<Option<PersistentServer>>>,
    /// The processes that clients may call, by server.
    open_processes: Mutex<Vec<Option<ReplicaProcess>>>,
    process_count: Mutex<usize>,
    /// Starts and faults, for the failure message.
    event_log: Mutex<Vec<String>>,
    /// From the start of the first fault to the end of the last.
    outage: Mutex<Option<Outage>>,
}

/// A server process as seen by clients.
#[derive(Clone)]
pub(super) struct ReplicaProcess {
    pub(super) number: usize,
    pub(super) started_at: Nanos,
    pub(super) client: GrpcClient,
    pub(super) worker_client: OperationWorkerClient<Channel>,
}

/// A fault, with the index of its server and its duration.
#[derive(Clone, Copy, Debug)]
pub(super) enum ClusterFault {
    Kill(usize),
    Pause(usize, Duration),
    Disconnect(usize, Duration),
    Freeze(usize, Duration),
    /// Data held back is lost.
    FreezeThenDisconnect(usize, Duration),
    CrashDatabase,
}

// === impl ClusterFault ===

impl ClusterFault {
    /// Returns a random fault of a server.
    pub(super) fn random(rng: &mut TestRng) -> Self {
        let index = usize::try_from(rng.next_u64() % 3).unwrap_or(0);
        let duration = Duration::from_millis(rng.random_range(100..1200));
        match rng.random_range(0..6) {
            0 | 1 => Self::Kill(index),
            // Some last longer than a lease.
            2 => Self::Pause(index, Duration::from_millis(rng.random_range(200..2000))),
            3 => Self::Disconnect(index, duration),
            4 => Self::Freeze(index, duration),
            _ => Self::FreezeThenDisconnect(index, duration),
        }
    }
}

// === impl ServerCluster ===

impl ServerCluster {
    /// Starts the servers in a new schema.
    pub(super) async fn start(
        started_at: Instant,
        postgres: &Arc<Mutex<PostgresServer>>,
        arguments: &[&str],
    ) -> Self {
        let (url, port) = {
            let postgres = postgres.lock();
            (postgres.url(), postgres.port())
        };
        let config = new_schema(url);
        let mut proxies = Vec::new();
        for _ in 0..REPLICA_COUNT {
            proxies.push(DatabaseProxy::start(port).await);
        }
        let cluster = Self {
            started_at,
            config,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            postgres: postgres.clone(),
            proxies,
            processes: Mutex::new((0..REPLICA_COUNT).map(|_| None).collect()),
            open_processes: Mutex::new(vec![None; REPLICA_COUNT]),
            process_count: Mutex::new(0),
            event_log: Mutex::default(),
            outage: Mutex::default(),
        };
        for index in 0..REPLICA_COUNT {
            cluster.start_server(index).await;
        }
        cluster
    }

    /// Returns the config of the database without a proxy.
    pub(super) fn config(&self) -> &PostgresConfig {
        &self.config
    }

    pub(super) fn now(&self) -> Nanos {
        Nanos::try_from(self.started_at.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    /// Returns the starts and faults so far.
    pub(super) fn event_log(&self) -> String {
        self.event_log.lock().join("\n")
    }

    /// Returns the time from the start of the first fault to the end of the last.
    pub(super) fn outage(&self) -> Option<Outage> {
        *self.outage.lock()
    }

    /// Returns the processes that clients may call.
    pub(super) fn open_processes(&self) -> Vec<ReplicaProcess> {
        self.open_processes
            .lock()
            .iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Runs a query in which `longrunning.` stands for the schema.
    pub(super) fn query(&self, sql: &str) -> String {
        let sql = sql.replace("longrunning.", &format!("{}.", self.config.schema));
        block_in_place(|| self.postgres.lock().query(&sql))
    }

    /// Starts a server, and repeats that until it serves: a server that cannot reach the
    /// database exits.
    async fn start_server(&self, index: usize) {
        let mut store = OsString::from("postgres://test@127.0.0.1:");
        store.push(self.proxies[index].port().to_string());
        store.push("/postgres");
        let mut arguments = vec!["--store-schema", &self.config.schema];
        arguments.extend(self.arguments.iter().map(String::as_str));
        loop {
            let started_at = self.now();
            let outcome = spawn_with_store(&store, &arguments, &[])
                .wait_until_started()
                .await;
            let server = match outcome {
                StartOutcome::Serving(serving) => serving,
                StartOutcome::Exited(exit) => {
                    assert_no_panic(&exit);
                    continue;
                }
            };
            let number = {
                let mut count = self.process_count.lock();
                *count += 1;
                *count
            };
            self.log_event(&format!("server {index} is serving as process {number}"));
            self.open_processes.lock()[index] = Some(ReplicaProcess {
                number,
                started_at,
                client: server.client(),
                worker_client: server.worker_client(),
            });
            self.processes.lock()[index] = Some(*server);
            return;
        }
    }

    pub(super) fn log_event(&self, event: &str) {
        let millis = self.now() / 1_000_000;
        self.event_log
            .lock()
            .push(format!("{millis:>6} ms  {event}"));
    }

    /// Injects a fault and waits until it is over.
    pub(super) async fn inject(&self, fault: ClusterFault) {
        self.log_event(&format!("{fault:?}"));
        let started_at = self.now();
        match fault {
            ClusterFault::Kill(index) => {
                let process = self.processes.lock()[index].take();
                if let Some(process) = process {
                    // Only now, so that clients call a killed process for a while.
                    assert_no_panic(&process.kill().await);
                    self.open_processes.lock()[index] = None;
                    self.start_server(index).await;
                }
            }
            ClusterFault::Pause(index, duration) => {
                self.signal(index, "STOP");
                sleep(duration).await;
                self.signal(index, "CONT");
            }
            ClusterFault::Disconnect(index, duration) => {
                self.proxies[index].disconnect();
                sleep(duration).await;
                self.proxies[index].restore();
            }
            ClusterFault::Freeze(index, duration) => {
                self.proxies[index].freeze();
                sleep(duration).await;
                self.proxies[index].restore();
            }
            ClusterFault::FreezeThenDisconnect(index, duration) => {
                self.proxies[index].freeze();
                sleep(duration).await;
                self.proxies[index].disconnect();
                sleep(DISCONNECT_DELAY).await;
                self.proxies[index].restore();
            }
            ClusterFault::CrashDatabase => block_in_place(|| {
                let mut postgres = self.postgres.lock();
                postgres.crash();
                postgres.start_process();
            }),
        }
        self.log_event(&format!("{fault:?} has ended"));
        let mut outage = self.outage.lock();
        *outage = Some(Outage {
            start: outage.map_or(started_at, |outage| outage.start.min(started_at)),
            end: self.now(),
        });
    }

    fn signal(&self, index: usize, name: &str) {
        if let Some(process) = &self.processes.lock()[index] {
            process.signal(name);
        }
    }

    /// Kills all servers.
    pub(super) async fn kill_all(&self) {
        let servers: Vec<PersistentServer> = self
            .processes
            .lock()
            .iter_mut()
            .filter_map(Option::take)
            .collect();
        let mut exits: JoinSet<_> = servers.into_iter().map(PersistentServer::kill).collect();
        while let Some(exit) = exits.join_next().await {
            assert_no_panic(&exit.unwrap());
        }
    }
}

/// Panics if the log of a process contains a panic.
fn assert_no_panic(exit: &ServerExit) {
    let mut lines = exit.log.iter();
    assert!(!lines.any(|line| line.contains("panicked")), "{exit:?}");
}
