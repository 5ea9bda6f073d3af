//! The built binary as a child process: `serve` once it serves, the other
//! commands to their end.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use longrunning::proto::{
    google::longrunning::operations_client::OperationsClient,
    longrunning::demo::v1::{CreateChecksumRequest, checksums_client::ChecksumsClient},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, ChildStderr, Command},
};
use tonic::transport::Endpoint;

use super::GrpcClient;

/// `longrunning serve` on ports of its own. Killed when dropped.
pub(crate) struct ServeProcess {
    pub(crate) child: Child,
    pub(crate) client_address: String,
    pub(crate) worker_address: String,
    pub(crate) admin_address: String,
    log: BufReader<ChildStderr>,
}

pub(crate) fn longrunning_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longrunning"));
    command.args(arguments).kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub(crate) async fn run_command(arguments: &[&str]) -> Output {
    longrunning_command(arguments).output().await.unwrap()
}

/// What a command says on standard output.
pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// What a command says on standard error.
pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A directory whose hash takes far longer than any test.
pub(crate) fn endless_checksum_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("endless")).unwrap();
    file.set_len(1 << 42).unwrap();
    directory
}

// === impl Program ===

impl ServeProcess {
    /// Serves the demo below a directory.
    pub(crate) async fn serve_demo(directory: &Path) -> Self {
        Self::serve(&[
            "--demo",
            directory.to_str().unwrap(),
            "--shutdown-timeout",
            "3s",
        ])
        .await
    }

    pub(crate) async fn serve(arguments: &[&str]) -> Self {
        let ports = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--worker-listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ];
        let mut command = longrunning_command(&ports);
        command
            .args(["--log-format", "text"])
            .args(arguments)
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut server = Self {
            child,
            client_address: String::new(),
            worker_address: String::new(),
            admin_address: String::new(),
            log,
        };
        // It listens before it has read what was kept, and serves after that.
        loop {
            let line = server.read_log_line().await;
            if line.contains(" serving") {
                return server;
            }
            if let Some((_, address)) = line.split_once("listening clients=") {
                server.client_address = address.trim().to_owned();
            }
            if let Some((_, address)) = line.split_once("listening workers=") {
                server.worker_address = address.trim().to_owned();
            }
            if let Some((_, address)) = line.split_once("listening admin=") {
                server.admin_address = address.trim().to_owned();
            }
        }
    }

    /// The next line of the log.
    pub(crate) async fn read_log_line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(
            self.log.read_line(&mut line).await.unwrap(),
            0,
            "the log ended"
        );
        line
    }

    /// A client with a connection of its own.
    pub(crate) async fn client(&self) -> GrpcClient {
        let endpoint = Endpoint::from_shared(self.endpoint()).unwrap();
        OperationsClient::new(endpoint.connect().await.unwrap())
    }

    /// Starts to hash a directory, given as the API takes it.
    pub(crate) async fn create_checksum(&self, directory: &str) -> String {
        let channel = Endpoint::from_shared(self.endpoint())
            .unwrap()
            .connect()
            .await
            .unwrap();
        let request = CreateChecksumRequest {
            directory: directory.to_owned(),
        };
        ChecksumsClient::new(channel)
            .create_checksum(request)
            .await
            .unwrap()
            .into_inner()
            .name
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.client_address)
    }

    /// Runs a command against this server.
    pub(crate) async fn run_command(&self, arguments: &[&str]) -> Output {
        longrunning_command(arguments)
            .env("LONGRUNNING_ENDPOINT", self.endpoint())
            .output()
            .await
            .unwrap()
    }

    /// What the operators' listener answers to a GET: the whole response.
    pub(crate) async fn admin_get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin_address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    /// Sends a signal.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let status = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .await
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the end and returns the exit code.
    pub(crate) async fn wait_for_exit(mut self) -> Option<i32> {
        self.child.wait().await.unwrap().code()
    }
}
