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

use super::Client;

/// `longrunning serve` on ports of its own. Killed when dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) clients: String,
    pub(crate) workers: String,
    pub(crate) admin: String,
    log: BufReader<ChildStderr>,
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longrunning"));
    command.args(arguments).kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub(crate) async fn run(arguments: &[&str]) -> Output {
    command(arguments).output().await.unwrap()
}

/// What a command says on standard output.
pub(crate) fn said(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// What a command says on standard error.
pub(crate) fn complained(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A directory whose hash takes far longer than any test.
pub(crate) fn endless() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("endless")).unwrap();
    file.set_len(1 << 42).unwrap();
    directory
}

// === impl Program ===

impl Program {
    /// Serves the demo below a directory.
    pub(crate) async fn demo(directory: &Path) -> Self {
        Self::serve(&["--demo", directory.to_str().unwrap(), "--grace", "3s"]).await
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
        let mut command = command(&ports);
        command
            .args(["--log-format", "text"])
            .args(arguments)
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut program = Self {
            child,
            clients: String::new(),
            workers: String::new(),
            admin: String::new(),
            log,
        };
        // It listens before it has read what was kept, and serves after that.
        loop {
            let line = program.line().await;
            if line.contains(" serving") {
                return program;
            }
            if let Some((_, address)) = line.split_once("listening clients=") {
                program.clients = address.trim().to_owned();
            }
            if let Some((_, address)) = line.split_once("listening workers=") {
                program.workers = address.trim().to_owned();
            }
            if let Some((_, address)) = line.split_once("listening admin=") {
                program.admin = address.trim().to_owned();
            }
        }
    }

    /// The next line of the log.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(
            self.log.read_line(&mut line).await.unwrap(),
            0,
            "the log ended"
        );
        line
    }

    /// A client with a connection of its own.
    pub(crate) async fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(self.endpoint()).unwrap();
        OperationsClient::new(endpoint.connect().await.unwrap())
    }

    /// Starts to hash a directory, given as the API takes it.
    pub(crate) async fn checksum(&self, directory: &str) -> String {
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
        format!("http://{}", self.clients)
    }

    /// Runs a command against this server.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> Output {
        command(arguments)
            .env("LONGRUNNING_ENDPOINT", self.endpoint())
            .output()
            .await
            .unwrap()
    }

    /// What the operators' listener answers to a GET: the whole response.
    pub(crate) async fn admin(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    /// Sends a signal.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let killed = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .await
            .unwrap();
        assert!(killed.success());
    }

    /// Waits for the end and returns the exit code.
    pub(crate) async fn end(mut self) -> Option<i32> {
        self.child.wait().await.unwrap().code()
    }
}
