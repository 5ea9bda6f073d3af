//! Three servers of one database, each with its own way there, and what befalls
//! them: they are killed and stopped, their ways are cut and frozen, and the
//! database loses its power.

use std::{ffi::OsString, sync::Arc, time::Duration};

use longrunning::{
    PostgresOptions, proto::longrunning::v1::operation_worker_client::OperationWorkerClient,
};
use parking_lot::Mutex;
use tokio::{
    task::{JoinSet, block_in_place},
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use super::{calls::Time, proxy::Proxy};
use crate::support::{
    Client,
    dice::Dice,
    postgres::Postgres,
    stored::{Begun, Ended, Serving, spawn_over},
};

pub(super) const REPLICAS: usize = 3;

/// Long enough for connections to be closed.
const SHORT: Duration = Duration::from_millis(100);

/// The servers, their ways and the database.
pub(super) struct Replicas {
    begun: Instant,
    options: PostgresOptions,
    arguments: Vec<String>,
    postgres: Arc<Mutex<Postgres>>,
    ways: Vec<Proxy>,
    processes: Mutex<Vec<Option<Serving>>>,
    /// Whom clients can ask.
    open: Mutex<Vec<Option<Process>>>,
    count: Mutex<usize>,
    /// What befell them, for people.
    faults: Mutex<Vec<String>>,
    /// From the begin of the first to the end of the last.
    outage: Mutex<Option<(Time, Time)>>,
}

/// One process of a server, for its clients.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) number: usize,
    pub(super) since: Time,
    pub(super) client: Client,
    pub(super) worker: OperationWorkerClient<Channel>,
}

/// What befalls servers and database.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Kill(usize),
    Stop(usize, Duration),
    Cut(usize, Duration),
    Freeze(usize, Duration),
    /// What is held back is lost in the end.
    FreezeAndCut(usize, Duration),
    Database,
}

// === impl Fault ===

impl Fault {
    /// Any of those that befall servers.
    pub(super) fn any(dice: &mut Dice) -> Self {
        let at = usize::try_from(dice.next() % 3).unwrap_or(0);
        let short = Duration::from_millis(dice.within(100..1200));
        match dice.within(0..6) {
            0 | 1 => Self::Kill(at),
            // Some longer than a lease.
            2 => Self::Stop(at, Duration::from_millis(dice.within(200..2000))),
            3 => Self::Cut(at, short),
            4 => Self::Freeze(at, short),
            _ => Self::FreezeAndCut(at, short),
        }
    }
}

// === impl Replicas ===

impl Replicas {
    /// Starts them over a schema of their own.
    pub(super) async fn start(
        begun: Instant,
        postgres: &Arc<Mutex<Postgres>>,
        arguments: &[&str],
    ) -> Self {
        let (url, port) = {
            let postgres = postgres.lock();
            (postgres.url(), postgres.port())
        };
        let mut options = PostgresOptions::new(url);
        options.schema = format!("test_{}", uuid::Uuid::new_v4().simple());
        let mut ways = Vec::new();
        for _ in 0..REPLICAS {
            ways.push(Proxy::to(port).await);
        }
        let replicas = Self {
            begun,
            options,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            postgres: postgres.clone(),
            ways,
            processes: Mutex::new((0..REPLICAS).map(|_| None).collect()),
            open: Mutex::new(vec![None; REPLICAS]),
            count: Mutex::new(0),
            faults: Mutex::default(),
            outage: Mutex::default(),
        };
        for at in 0..REPLICAS {
            replicas.begin(at).await;
        }
        replicas
    }

    /// The database itself, without a way in between.
    pub(super) fn options(&self) -> &PostgresOptions {
        &self.options
    }

    pub(super) fn now(&self) -> Time {
        Time::try_from(self.begun.elapsed().as_nanos()).unwrap_or(Time::MAX)
    }

    /// What befell them so far.
    pub(super) fn faults(&self) -> String {
        self.faults.lock().join("\n")
    }

    /// From the begin of the first fault to the end of the last.
    pub(super) fn outage(&self) -> Option<(Time, Time)> {
        *self.outage.lock()
    }

    /// Those that can be asked.
    pub(super) fn open(&self) -> Vec<Process> {
        self.open.lock().iter().flatten().cloned().collect()
    }

    /// What the database answers to a question.
    pub(super) fn ask(&self, question: &str) -> String {
        let question = question.replace("longrunning.", &format!("{}.", self.options.schema));
        block_in_place(|| self.postgres.lock().ask(&question))
    }

    /// Starts a server, again and again until it serves: one that cannot reach the
    /// database gives up.
    async fn begin(&self, at: usize) {
        let mut store = OsString::from("postgres://test@127.0.0.1:");
        store.push(self.ways[at].port().to_string());
        store.push("/postgres");
        let mut arguments = vec!["--store-schema", &self.options.schema];
        arguments.extend(self.arguments.iter().map(String::as_str));
        loop {
            let since = self.now();
            let begun = spawn_over(&store, &arguments, &[]).begun().await;
            let serving = match begun {
                Begun::Serving(serving) => serving,
                Begun::Ended(ended) => {
                    sound(&ended);
                    continue;
                }
            };
            let number = {
                let mut count = self.count.lock();
                *count += 1;
                *count
            };
            self.note(&format!("server {at} serves as process {number}"));
            self.open.lock()[at] = Some(Process {
                number,
                since,
                client: serving.client(),
                worker: serving.worker(),
            });
            self.processes.lock()[at] = Some(*serving);
            return;
        }
    }

    pub(super) fn note(&self, what: &str) {
        let millis = self.now() / 1_000_000;
        self.faults.lock().push(format!("{millis:>6} ms  {what}"));
    }

    /// Lets something happen, until it is over.
    pub(super) async fn suffer(&self, fault: Fault) {
        self.note(&format!("{fault:?}"));
        let begun = self.now();
        match fault {
            Fault::Kill(at) => {
                let process = self.processes.lock()[at].take();
                if let Some(process) = process {
                    // Clients see it a little later.
                    sound(&process.kill().await);
                    self.open.lock()[at] = None;
                    self.begin(at).await;
                }
            }
            Fault::Stop(at, length) => {
                self.signal(at, "STOP");
                sleep(length).await;
                self.signal(at, "CONT");
            }
            Fault::Cut(at, length) => {
                self.ways[at].cut();
                sleep(length).await;
                self.ways[at].heal();
            }
            Fault::Freeze(at, length) => {
                self.ways[at].freeze();
                sleep(length).await;
                self.ways[at].heal();
            }
            Fault::FreezeAndCut(at, length) => {
                self.ways[at].freeze();
                sleep(length).await;
                self.ways[at].cut();
                sleep(SHORT).await;
                self.ways[at].heal();
            }
            Fault::Database => block_in_place(|| {
                let mut postgres = self.postgres.lock();
                postgres.end(true);
                postgres.begin();
            }),
        }
        self.note(&format!("{fault:?} is over"));
        let mut outage = self.outage.lock();
        let first = outage.map_or(begun, |(first, _)| first.min(begun));
        *outage = Some((first, self.now()));
    }

    fn signal(&self, at: usize, name: &str) {
        if let Some(process) = &self.processes.lock()[at] {
            process.signal(name);
        }
    }

    /// Ends all servers.
    pub(super) async fn end(&self) {
        let all: Vec<Serving> = self
            .processes
            .lock()
            .iter_mut()
            .filter_map(Option::take)
            .collect();
        let mut ends: JoinSet<_> = all.into_iter().map(Serving::kill).collect();
        while let Some(ended) = ends.join_next().await {
            sound(&ended.unwrap());
        }
    }
}

/// Whatever befell it, nothing in it panicked.
fn sound(ended: &Ended) {
    let mut lines = ended.log.iter();
    assert!(!lines.any(|line| line.contains("panicked")), "{ended:?}");
}
