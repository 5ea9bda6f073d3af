//! HTTP as bytes: the real listeners in this process, and requests and answers
//! that nobody has tidied up.

use std::time::Duration;

use longrunning::{
    NewOperation, OperationName, Operations,
    server::{App, Config, ListenAddress, StoreConfig},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::hold;

/// The server with all its listeners on free ports. Stops when dropped.
pub(crate) struct Site {
    pub(crate) operations: Operations,
    pub(crate) address: String,
    pub(crate) workers: String,
    pub(crate) admin: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// One connection.
pub(crate) struct Wire(BufReader<TcpStream>);

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

// === impl Site ===

impl Site {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A server with a config that the test has changed.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            lanes: 1,
            grace: Duration::from_secs(5),
            ..Config::default()
        };
        #[cfg(feature = "sqlite")]
        if let Some(path) = super::stores::sqlite_file() {
            config.store = StoreConfig::Sqlite(path);
        }
        change(&mut config);
        let app: App = config.build().await.unwrap();
        let operations = app.operations().clone();
        let text = |address: Option<ListenAddress>| address.expect("it is bound").to_string();
        let (address, workers, admin) = (
            app.clients().to_string(),
            text(app.workers()),
            text(app.admin()),
        );
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            app.run(stopped, std::future::pending()).await;
        });
        Self {
            operations,
            address,
            workers,
            admin,
            stop,
            task,
        }
    }

    /// A new connection.
    pub(crate) async fn wire(&self) -> Wire {
        Wire::open(&self.address).await
    }

    /// The answer to these bytes, on a connection of their own.
    pub(crate) async fn send(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut wire = self.wire().await;
        wire.send(request).await;
        wire.answer().await
    }

    /// The answer to a request without a body.
    pub(crate) async fn ask(&self, method: &str, target: &str) -> Answer {
        self.send(request(method, target, "", "")).await
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target).await
    }

    /// The answer to a POST with a JSON body.
    pub(crate) async fn post(&self, target: &str, body: &str) -> Answer {
        let kind = "content-type: application/json\r\n";
        self.send(request("POST", target, kind, body)).await
    }

    /// What the metrics say of a series; 0 if they do not know it.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let mut wire = Wire::open(&self.admin).await;
        wire.send(request("GET", "/metrics", "", "")).await;
        let text = String::from_utf8(wire.answer().await.body).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Begins the drain and waits for its end.
    pub(crate) async fn close(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap();
    }

    /// Begins the drain.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An operation with this name, which its creator executes.
pub(crate) async fn named(operations: &Operations, name: &str) -> OperationName {
    let (parent, id) = match name.rsplit_once("/operations/") {
        Some((parent, id)) => (parent, id),
        None => ("", name.strip_prefix("operations/").unwrap()),
    };
    let new = NewOperation::self_executed("test").parent(parent).id(id);
    hold(operations, new).await.0
}

/// The bytes of a request, with more header lines and a body.
pub(crate) fn request(method: &str, target: &str, headers: &str, body: &str) -> String {
    let length = match (body, method) {
        ("", "GET" | "HEAD" | "DELETE" | "OPTIONS") => String::new(),
        (body, _) => format!("content-length: {}\r\n", body.len()),
    };
    format!("{method} {target} HTTP/1.1\r\nhost: test\r\n{length}{headers}\r\n{body}")
}

// === impl Wire ===

impl Wire {
    pub(crate) async fn open(address: &str) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends what the other side may no longer want.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.0.write_all(bytes.as_ref()).await
    }

    /// The next answer, with its body if it says how long that is.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    /// The next answer; one to HEAD has no body.
    pub(crate) async fn answer_to(&mut self, method: &str) -> Answer {
        let mut answer = self.head().await;
        let length = answer.header("content-length").map(str::parse);
        if let (Some(length), true) = (length, method != "HEAD") {
            answer.body = vec![0; length.unwrap()];
            self.0.read_exact(&mut answer.body).await.unwrap();
        }
        answer
    }

    /// The next answer up to its body.
    pub(crate) async fn head(&mut self) -> Answer {
        let first = self.line().await.expect("an answer comes");
        let code = first.split(' ').nth(1).expect("there is a status line");
        let code = code.parse().unwrap_or_else(|_| panic!("{first}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line().await.expect("the head has an end");
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").expect(&line);
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Answer {
            code,
            headers,
            body: Vec::new(),
        }
    }

    /// The next line without its end; none after the last one.
    pub(crate) async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await.unwrap_or(0);
        (read != 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The next line of a stream that begins so, or its end.
    pub(crate) async fn line_with(&mut self, begin: &str) -> Option<String> {
        loop {
            let line = self.line().await?;
            if line.starts_with(begin) {
                return Some(line);
            }
        }
    }

    /// Whether the server has closed the connection.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.line().await.is_none()
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The JSON of an answer, whose headers have to say that it is some.
    pub(crate) fn json(&self) -> Value {
        let kind = self.header("content-type");
        assert_eq!(kind, Some("application/json; charset=UTF-8"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The JSON of an answer that is no error.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.code, 200, "{}", self.text());
        self.json()
    }

    /// Takes an error apart: `(HTTP code, status, reason)`. It must have the form
    /// that ERR-1 to ERR-4 and HTTP-12 ask of every error.
    pub(crate) fn problem(&self) -> (u16, String, String) {
        let json = self.json();
        let fields: Vec<_> = json.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["error"], "{json}");
        let error = &json["error"];
        assert_eq!(error["code"], self.code, "{json}");
        assert!(!error["message"].as_str().unwrap().is_empty(), "{json}");
        let details = error["details"].as_array().unwrap();
        let info = &details[0];
        let url = "type.googleapis.com/google.rpc.ErrorInfo";
        assert_eq!(info["@type"], url, "{json}");
        assert_eq!(info["domain"], "longrunning.v1", "{json}");
        let status = error["status"].as_str().unwrap().to_owned();
        let is_bad_request =
            |detail: &Value| detail["@type"] == "type.googleapis.com/google.rpc.BadRequest";
        assert_eq!(
            details.iter().any(is_bad_request),
            status == "INVALID_ARGUMENT",
            "{json}"
        );
        let reason = info["reason"].as_str().unwrap().to_owned();
        (self.code, status, reason)
    }

    /// The message of an error.
    pub(crate) fn message(&self) -> String {
        self.problem();
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// An error as [`Answer::problem`] tells it.
pub(crate) fn error(code: u16, status: &str, reason: &str) -> (u16, String, String) {
    (code, status.to_owned(), reason.to_owned())
}
