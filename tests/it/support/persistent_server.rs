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

use super::{GrpcClient, error_details::ErrorDetails, serve_process::longrunning_command};

/// Longer than any start or end takes, even on a machine that is busy.
const START_OR_EXIT_TIMEOUT: Duration = Duration::from_secs(120);

/// `longrunning serve` over a file. Killed when dropped.
pub(crate) struct PersistentServer {
    child: Child,
    log: ServerLog,
    endpoints: ServerEndpoints,
}

/// What came of a start.
pub(crate) enum StartOutcome {
    Serving(Box<PersistentServer>),
    /// It ended before it served.
    Exited(ServerExit),
}

/// How a program ended, and what it had said.
#[derive(Debug)]
pub(crate) struct ServerExit {
    pub(crate) status: ExitStatus,
    pub(crate) log: Vec<String>,
}

/// Why a call had no success.
#[derive(Debug)]
pub(crate) enum RpcError {
    /// The server said no: the code and the reason.
    Rejected(Code, String),
    /// Nobody knows.
    Unknown(Box<Status>),
}

#[derive(Clone, Debug, Default)]
struct ServerEndpoints {
    client_address: String,
    worker_address: String,
    admin_address: String,
    is_serving: bool,
}

/// The log of a program; whoever does not read it stops the program some day.
struct ServerLog {
    lines: Arc<Mutex<Vec<String>>>,
    endpoints: watch::Receiver<ServerEndpoints>,
    task: JoinHandle<()>,
}

/// Starts the program over a file; it need not come to serve.
pub(crate) fn spawn(file: &Path, environment: &[(&str, OsString)]) -> StartingServer {
    let mut store = OsString::from("sqlite:");
    store.push(file);
    spawn_with_store(&store, &[], environment)
}

/// Starts the program over any store.
pub(crate) fn spawn_with_store(
    store: &OsStr,
    arguments: &[&str],
    environment: &[(&str, OsString)],
) -> StartingServer {
    let mut command =
        longrunning_command(&["serve", "--log-format", "text", "--shutdown-timeout", "60s"]);
    for listener in ["--listen", "--worker-listen", "--admin-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    command
        .arg("--store")
        .arg(store)
        .args(["--connection-threads", "1"]);
    command.args(arguments);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let log = ServerLog::capture(&mut child);
    StartingServer { child, log }
}

/// Starts the program and waits until it serves, or has ended.
pub(crate) async fn start(file: &Path, environment: &[(&str, OsString)]) -> StartOutcome {
    spawn(file, environment).wait_until_started().await
}

/// A program that may serve soon.
pub(crate) struct StartingServer {
    child: Child,
    log: ServerLog,
}

// === impl Starting ===

impl StartingServer {
    pub(crate) async fn wait_until_started(self) -> StartOutcome {
        let result = timeout(START_OR_EXIT_TIMEOUT, self.wait_until_serving()).await;
        let description = || format!("it neither serves nor ends: {:?}", self.log.lines.lock());
        match result.unwrap_or_else(|_| panic!("{}", description())) {
            Some(endpoints) => StartOutcome::Serving(Box::new(PersistentServer {
                child: self.child,
                log: self.log,
                endpoints,
            })),
            None => StartOutcome::Exited(wait_for_exit(self.child, self.log).await),
        }
    }

    /// Ends it where it is.
    pub(crate) async fn kill(mut self) {
        self.child.start_kill().unwrap();
        wait_for_exit(self.child, self.log).await;
    }

    async fn wait_until_serving(&self) -> Option<ServerEndpoints> {
        // It listens before the file is read, and says when it serves. The log
        // ends when it ends.
        let mut endpoints = self.log.endpoints.clone();
        let result = endpoints.wait_for(|endpoints| endpoints.is_serving).await;
        Some(result.ok()?.clone())
    }
}

// === impl Begun ===

impl StartOutcome {
    /// The server that must have come of it.
    pub(crate) fn expect_serving(self) -> PersistentServer {
        match self {
            Self::Serving(server) => *server,
            Self::Exited(exit) => panic!("it does not serve: {exit:?}"),
        }
    }
}

// === impl Serving ===

impl PersistentServer {
    pub(crate) fn channel(&self) -> Channel {
        lazy_channel(&self.endpoints.client_address)
    }

    /// A client with a connection of its own.
    pub(crate) fn client(&self) -> GrpcClient {
        OperationsClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    /// A client for workers with a connection of its own.
    pub(crate) fn worker_client(&self) -> OperationWorkerClient<Channel> {
        OperationWorkerClient::new(lazy_channel(&self.endpoints.worker_address))
            .max_decoding_message_size(64 << 20)
    }

    /// What `/readyz` says: the whole response; none if nobody answers.
    pub(crate) async fn readiness(&self) -> Option<String> {
        admin_get(&self.endpoints.admin_address, "/readyz").await
    }

    /// What it has said so far.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.log.lines.lock().clone()
    }

    /// Ends it with SIGKILL.
    pub(crate) async fn kill(mut self) -> ServerExit {
        // It may have ended by itself.
        let _ = self.child.start_kill();
        wait_for_exit(self.child, self.log).await
    }

    /// Sends it a signal; it may have ended by itself.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(pid) = self.child.id() {
            let mut kill = std::process::Command::new("kill");
            let _ = kill.args(["-s", name, &pid.to_string()]).status();
        }
    }

    /// Waits for its end.
    pub(crate) async fn wait_for_exit(self) -> ServerExit {
        wait_for_exit(self.child, self.log).await
    }

    /// Asks it to end, and waits for that.
    pub(crate) async fn stop(self) -> ServerExit {
        if let Some(pid) = self.child.id() {
            let mut kill = tokio::process::Command::new("kill");
            // It may have ended by itself.
            let _ = kill.args(["-s", "TERM", &pid.to_string()]).output().await;
        }
        wait_for_exit(self.child, self.log).await
    }
}

// === impl Fail ===

impl From<Status> for RpcError {
    /// The server gives every refusal of its own a reason.
    fn from(status: Status) -> Self {
        if status.details().is_empty() {
            return Self::Unknown(Box::new(status));
        }
        let details = ErrorDetails::from_status(&status);
        Self::Rejected(details.code, details.reason)
    }
}

async fn wait_for_exit(mut child: Child, log: ServerLog) -> ServerExit {
    let result = timeout(START_OR_EXIT_TIMEOUT, child.wait()).await;
    let description = || format!("it does not end: {:?}", log.lines.lock());
    let status = result
        .unwrap_or_else(|_| panic!("{}", description()))
        .unwrap();
    log.task.await.unwrap();
    let log = log.lines.lock().clone();
    ServerExit { status, log }
}

fn lazy_channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_lazy()
}

async fn admin_get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.ok()?;
    (!response.is_empty()).then_some(response)
}

// === impl Log ===

impl ServerLog {
    fn capture(child: &mut Child) -> Self {
        let mut stderr_lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (endpoints_sender, endpoints) = watch::channel(ServerEndpoints::default());
        let log_lines = lines.clone();
        let task = tokio::spawn(async move {
            while let Ok(Some(line)) = stderr_lines.next_line().await {
                endpoints_sender.send_modify(|endpoints| endpoints.parse_line(&line));
                log_lines.lock().push(line);
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

impl ServerEndpoints {
    fn parse_line(&mut self, line: &str) {
        for (prefix, address) in [
            ("listening clients=", &mut self.client_address),
            ("listening workers=", &mut self.worker_address),
            ("listening admin=", &mut self.admin_address),
        ] {
            if let Some((_, value)) = line.split_once(prefix) {
                value.trim().clone_into(address);
            }
        }
        self.is_serving |= line.trim_end().ends_with(" serving");
    }
}
