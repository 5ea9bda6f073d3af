//! Runs the built program as a child process over a durable store, for tests that
//! restart it: the process may fail to start, and its log is captured.

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
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{
    GrpcClient,
    error_details::ErrorDetails,
    serve_process::{admin_get, longrunning_command},
};

/// Longer than any start or exit takes, even on a busy machine.
const START_OR_EXIT_TIMEOUT: Duration = Duration::from_secs(120);

/// A `longrunning serve` process that serves. Killed when dropped.
pub(crate) struct PersistentServer {
    child: Child,
    log: ServerLog,
    endpoints: ServerEndpoints,
}

/// The result of starting a process.
pub(crate) enum StartOutcome {
    Serving(Box<PersistentServer>),
    /// The process exited before it served.
    Exited(ServerExit),
}

/// Exit status and log of a process.
#[derive(Debug)]
pub(crate) struct ServerExit {
    pub(crate) status: ExitStatus,
    pub(crate) log: Vec<String>,
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum RpcError {
    /// The server rejected the call with this code and reason.
    Rejected(Code, String),
    /// The connection failed, so the call may or may not have taken effect.
    Unknown(Box<Status>),
}

#[derive(Clone, Debug, Default)]
struct ServerEndpoints {
    client_address: String,
    worker_address: String,
    admin_address: String,
    is_serving: bool,
}

/// The captured log of a process. A full pipe would block the process.
struct ServerLog {
    lines: Arc<Mutex<Vec<String>>>,
    endpoints: watch::Receiver<ServerEndpoints>,
    task: JoinHandle<()>,
}

/// Spawns the program over a SQLite database without waiting until it serves.
pub(crate) fn spawn(database: &Path, environment: &[(&str, OsString)]) -> StartingServer {
    let mut store = OsString::from("sqlite:");
    store.push(database);
    spawn_with_store(&store, &[], environment)
}

/// Spawns the program over any store without waiting until it serves.
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

/// Starts the program over a SQLite database and waits until it serves or exits.
pub(crate) async fn start(database: &Path, environment: &[(&str, OsString)]) -> StartOutcome {
    spawn(database, environment).wait_until_started().await
}

/// Panics unless SQLite reports the database as intact.
pub(crate) fn check_integrity(database: &Path) {
    let connection = rusqlite::Connection::open(database).unwrap();
    let result: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(result, "ok");
}

/// A process that does not serve yet.
pub(crate) struct StartingServer {
    child: Child,
    log: ServerLog,
}

// === impl StartingServer ===

impl StartingServer {
    /// Waits until the process serves or exits.
    pub(crate) async fn wait_until_started(self) -> StartOutcome {
        let result = timeout(START_OR_EXIT_TIMEOUT, self.wait_until_serving()).await;
        let description = || {
            format!(
                "the server neither serves nor exits: {:?}",
                self.log.lines.lock()
            )
        };
        match result.unwrap_or_else(|_| panic!("{}", description())) {
            Some(endpoints) => StartOutcome::Serving(Box::new(PersistentServer {
                child: self.child,
                log: self.log,
                endpoints,
            })),
            None => StartOutcome::Exited(wait_for_exit(self.child, self.log).await),
        }
    }

    /// Kills the process during its start.
    pub(crate) async fn kill(mut self) {
        self.child.start_kill().unwrap();
        wait_for_exit(self.child, self.log).await;
    }

    async fn wait_until_serving(&self) -> Option<ServerEndpoints> {
        // The server listens before it has loaded the store, and logs when it serves.
        // The log ends when the process exits.
        let mut endpoints = self.log.endpoints.clone();
        let result = endpoints.wait_for(|endpoints| endpoints.is_serving).await;
        Some(result.ok()?.clone())
    }
}

// === impl StartOutcome ===

impl StartOutcome {
    /// Returns the server; panics if the process exited.
    pub(crate) fn expect_serving(self) -> PersistentServer {
        match self {
            Self::Serving(server) => *server,
            Self::Exited(exit) => panic!("expected the server to serve: {exit:?}"),
        }
    }
}

// === impl PersistentServer ===

impl PersistentServer {
    pub(crate) fn channel(&self) -> Channel {
        lazy_channel(&self.endpoints.client_address)
    }

    /// Connects a client of the operations service.
    pub(crate) fn client(&self) -> GrpcClient {
        OperationsClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    /// Connects a client of the worker service.
    pub(crate) fn worker_client(&self) -> OperationWorkerClient<Channel> {
        OperationWorkerClient::new(lazy_channel(&self.endpoints.worker_address))
            .max_decoding_message_size(64 << 20)
    }

    /// Returns the whole response of `/readyz`, or `None` if the server does not respond.
    pub(crate) async fn readiness(&self) -> Option<String> {
        let response = admin_get(&self.endpoints.admin_address, "/readyz").await;
        response.ok().filter(|response| !response.is_empty())
    }

    /// Returns the log so far.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.log.lines.lock().clone()
    }

    /// Kills the process with SIGKILL and waits for its exit.
    pub(crate) async fn kill(mut self) -> ServerExit {
        // Fails if the process has exited.
        let _ = self.child.start_kill();
        wait_for_exit(self.child, self.log).await
    }

    /// Sends a signal; does nothing if the process has exited.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(pid) = self.child.id() {
            let mut kill = std::process::Command::new("kill");
            let _ = kill.args(["-s", name, &pid.to_string()]).status();
        }
    }

    /// Waits until the process exits.
    pub(crate) async fn wait_for_exit(self) -> ServerExit {
        wait_for_exit(self.child, self.log).await
    }

    /// Shuts the server down with SIGTERM and waits until it exits.
    pub(crate) async fn stop(self) -> ServerExit {
        self.signal("TERM");
        wait_for_exit(self.child, self.log).await
    }
}

// === impl RpcError ===

impl From<Status> for RpcError {
    // Every rejection by the server has details; errors of the transport have none.
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
    let description = || format!("the server does not exit: {:?}", log.lines.lock());
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

// === impl ServerLog ===

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

// === impl ServerEndpoints ===

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
