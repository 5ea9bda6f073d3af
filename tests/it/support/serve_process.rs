//! Runs the built binary as a child process: `serve` in the background, and the
//! other commands to completion.

use std::{
    io,
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

/// A `longrunning serve` process on free ports. Killed when dropped.
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

/// Runs a command to completion.
pub(crate) async fn run_command(arguments: &[&str]) -> Output {
    longrunning_command(arguments).output().await.unwrap()
}

/// Sends a GET to an admin listener and returns the whole response.
pub(super) async fn admin_get(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}

/// Returns the standard output as text.
pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// Returns the standard error as text.
pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Creates a directory whose checksum takes far longer than any test.
pub(crate) fn endless_checksum_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("endless")).unwrap();
    file.set_len(1 << 42).unwrap();
    directory
}

// === impl ServeProcess ===

impl ServeProcess {
    /// Starts a server of the demo for a directory.
    pub(crate) async fn serve_demo(directory: &Path) -> Self {
        Self::serve(&[
            "--demo",
            directory.to_str().unwrap(),
            "--shutdown-timeout",
            "3s",
        ])
        .await
    }

    /// Starts a server and waits until it serves.
    pub(crate) async fn serve(arguments: &[&str]) -> Self {
        Self::serve_at("127.0.0.1:0", arguments).await
    }

    /// Starts a server whose listener for clients has this address.
    pub(crate) async fn serve_at(listen: &str, arguments: &[&str]) -> Self {
        let ports = [
            "serve",
            "--listen",
            listen,
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
        // The server logs its addresses before it has loaded the store.
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

    /// Reads the next line of the log.
    pub(crate) async fn read_log_line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(
            self.log.read_line(&mut line).await.unwrap(),
            0,
            "expected another line in the log"
        );
        line
    }

    /// Connects a client of the operations service.
    pub(crate) async fn client(&self) -> GrpcClient {
        let endpoint = Endpoint::from_shared(self.endpoint()).unwrap();
        OperationsClient::new(endpoint.connect().await.unwrap())
    }

    /// Starts a checksum of a directory and returns the operation name.
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

    /// Sends a GET to the admin listener and returns the whole response.
    pub(crate) async fn admin_get(&self, path: &str) -> String {
        admin_get(&self.admin_address, path).await.unwrap()
    }

    /// Sends a signal.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self
            .child
            .id()
            .expect("expected a running server")
            .to_string();
        let status = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .await
            .unwrap();
        assert!(status.success());
    }

    /// Waits until the process exits and returns its exit code.
    pub(crate) async fn wait_for_exit(mut self) -> Option<i32> {
        self.child.wait().await.unwrap().code()
    }
}
