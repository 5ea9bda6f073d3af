//! The built program over a SQLite file, or over another store, as it is started
//! again and again: with an environment of its own, a log that is always read, and an end that may
//! come before it serves.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use longrunning::proto::{
    google::longrunning::operations_client::OperationsClient,
    longrunning::v1::operation_worker_client::OperationWorkerClient,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Child,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{Client, problem::Problem, program::command};

/// Longer than any start or end takes, even on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// `longrunning serve` over a file. Killed when dropped.
pub(crate) struct Serving {
    child: Child,
    log: Log,
    endpoints: Endpoints,
}

/// What came of a start.
pub(crate) enum Begun {
    Serving(Box<Serving>),
    /// It ended before it served.
    Ended(Ended),
}

/// How a program ended, and what it had said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) log: Vec<String>,
}

/// Why a call had no success.
#[derive(Debug)]
pub(crate) enum Fail {
    /// The server said no: the code and the reason.
    Refused(Code, String),
    /// Nobody knows.
    Lost(Box<Status>),
}

#[derive(Clone, Debug, Default)]
struct Endpoints {
    clients: String,
    workers: String,
    admin: String,
    are_served: bool,
}

/// The log of a program; whoever does not read it stops the program some day.
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    endpoints: watch::Receiver<Endpoints>,
    task: JoinHandle<()>,
}

/// Starts the program over a file; it need not come to serve.
pub(crate) fn spawn(file: &Path, environment: &[(&str, OsString)]) -> Starting {
    let mut store = OsString::from("sqlite:");
    store.push(file);
    spawn_over(&store, &[], environment)
}

/// Starts the program over any store.
pub(crate) fn spawn_over(
    store: &OsStr,
    arguments: &[&str],
    environment: &[(&str, OsString)],
) -> Starting {
    let mut command = command(&["serve", "--log-format", "text", "--grace", "60s"]);
    for listener in ["--listen", "--worker-listen", "--admin-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    command.arg("--store").arg(store).args(["--lanes", "1"]);
    command.args(arguments);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let log = Log::of(&mut child);
    Starting { child, log }
}

/// Starts the program and waits until it serves, or has ended.
pub(crate) async fn begin(file: &Path, environment: &[(&str, OsString)]) -> Begun {
    spawn(file, environment).begun().await
}

/// A program that may serve soon.
pub(crate) struct Starting {
    child: Child,
    log: Log,
}

// === impl Starting ===

impl Starting {
    pub(crate) async fn begun(self) -> Begun {
        let patience = timeout(PATIENCE, self.wait()).await;
        let said = || format!("it neither serves nor ends: {:?}", self.log.lines.lock());
        match patience.unwrap_or_else(|_| panic!("{}", said())) {
            Some(endpoints) => Begun::Serving(Box::new(Serving {
                child: self.child,
                log: self.log,
                endpoints,
            })),
            None => Begun::Ended(end(self.child, self.log).await),
        }
    }

    /// Ends it where it is.
    pub(crate) async fn kill(mut self) {
        self.child.start_kill().unwrap();
        end(self.child, self.log).await;
    }

    async fn wait(&self) -> Option<Endpoints> {
        // It listens before the file is read, and says when it serves. The log
        // ends when it ends.
        let mut news = self.log.endpoints.clone();
        let serving = news.wait_for(|endpoints| endpoints.are_served).await;
        Some(serving.ok()?.clone())
    }
}

// === impl Begun ===

impl Begun {
    /// The server that must have come of it.
    pub(crate) fn serving(self) -> Serving {
        match self {
            Self::Serving(serving) => *serving,
            Self::Ended(ended) => panic!("it does not serve: {ended:?}"),
        }
    }
}

// === impl Serving ===

impl Serving {
    pub(crate) fn channel(&self) -> Channel {
        channel(&self.endpoints.clients)
    }

    /// A client with a connection of its own.
    pub(crate) fn client(&self) -> Client {
        OperationsClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    /// A client for workers with a connection of its own.
    pub(crate) fn worker(&self) -> OperationWorkerClient<Channel> {
        OperationWorkerClient::new(channel(&self.endpoints.workers))
            .max_decoding_message_size(64 << 20)
    }

    /// What `/readyz` says: the whole response; none if nobody answers.
    pub(crate) async fn readiness(&self) -> Option<String> {
        admin(&self.endpoints.admin, "/readyz").await
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> Vec<String> {
        self.log.lines.lock().clone()
    }

    /// Ends it with SIGKILL.
    pub(crate) async fn kill(mut self) -> Ended {
        // It may have ended by itself.
        let _ = self.child.start_kill();
        end(self.child, self.log).await
    }

    /// Sends it a signal; it may have ended by itself.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(pid) = self.child.id() {
            let mut kill = std::process::Command::new("kill");
            let _ = kill.args(["-s", name, &pid.to_string()]).status();
        }
    }

    /// Waits for its end.
    pub(crate) async fn end(self) -> Ended {
        end(self.child, self.log).await
    }

    /// Asks it to end, and waits for that.
    pub(crate) async fn stop(self) -> Ended {
        if let Some(pid) = self.child.id() {
            let mut kill = tokio::process::Command::new("kill");
            // It may have ended by itself.
            let _ = kill.args(["-s", "TERM", &pid.to_string()]).output().await;
        }
        end(self.child, self.log).await
    }
}

// === impl Fail ===

impl From<Status> for Fail {
    /// The server gives every refusal of its own a reason.
    fn from(status: Status) -> Self {
        if status.details().is_empty() {
            return Self::Lost(Box::new(status));
        }
        let problem = Problem::of(&status);
        Self::Refused(problem.code, problem.reason)
    }
}

async fn end(mut child: Child, log: Log) -> Ended {
    let patience = timeout(PATIENCE, child.wait()).await;
    let said = || format!("it does not end: {:?}", log.lines.lock());
    let status = patience.unwrap_or_else(|_| panic!("{}", said())).unwrap();
    log.task.await.unwrap();
    let log = log.lines.lock().clone();
    Ended { status, log }
}

fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_lazy()
}

async fn admin(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.ok()?;
    (!response.is_empty()).then_some(response)
}

// === impl Log ===

impl Log {
    fn of(child: &mut Child) -> Self {
        let mut read = BufReader::new(child.stderr.take().unwrap()).lines();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (found, endpoints) = watch::channel(Endpoints::default());
        let kept = lines.clone();
        let task = tokio::spawn(async move {
            while let Ok(Some(line)) = read.next_line().await {
                found.send_modify(|endpoints| endpoints.read(&line));
                kept.lock().push(line);
            }
        });
        Self {
            lines,
            endpoints,
            task,
        }
    }
}

// === impl Endpoints ===

impl Endpoints {
    fn read(&mut self, line: &str) {
        for (word, address) in [
            ("listening clients=", &mut self.clients),
            ("listening workers=", &mut self.workers),
            ("listening admin=", &mut self.admin),
        ] {
            if let Some((_, found)) = line.split_once(word) {
                found.trim().clone_into(address);
            }
        }
        self.are_served |= line.trim_end().ends_with(" serving");
    }
}
