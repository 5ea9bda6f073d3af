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

use super::create_leased;

/// The server with all its listeners on free ports. Stops when dropped.
pub(crate) struct HttpTestServer {
    pub(crate) operations: Operations,
    pub(crate) client_address: String,
    pub(crate) worker_address: String,
    pub(crate) admin_address: String,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

/// One connection.
pub(crate) struct HttpConnection(BufReader<TcpStream>);

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct HttpResponse {
    pub(crate) code: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

// === impl Site ===

impl HttpTestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A server with a config that the test has changed.
    pub(crate) async fn start_with(configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.connection_threads = 1;
        config.shutdown_timeout = Duration::from_secs(5);
        #[cfg(feature = "sqlite")]
        if let Some(path) = super::backend::next_sqlite_path() {
            config.store = StoreConfig::Sqlite(path);
        }
        configure(&mut config);
        let app: App = config.bind_and_start().await.unwrap();
        let operations = app.operations().clone();
        let address_text =
            |address: Option<ListenAddress>| address.expect("it is bound").to_string();
        let (client_address, worker_address, admin_address) = (
            app.client_addr().to_string(),
            address_text(app.worker_addr()),
            address_text(app.admin_addr()),
        );
        let shutdown = CancellationToken::new();
        let shutdown_signal = shutdown.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            app.run(shutdown_signal, std::future::pending()).await;
        });
        Self {
            operations,
            client_address,
            worker_address,
            admin_address,
            shutdown,
            task,
        }
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> HttpConnection {
        HttpConnection::connect(&self.client_address).await
    }

    /// The answer to these bytes, on a connection of their own.
    pub(crate) async fn send(&self, request: impl AsRef<[u8]>) -> HttpResponse {
        let mut connection = self.connect().await;
        connection.send(request).await;
        connection.read_response().await
    }

    /// The answer to a request without a body.
    pub(crate) async fn request(&self, method: &str, target: &str) -> HttpResponse {
        self.send(http_request(method, target, "", "")).await
    }

    pub(crate) async fn get(&self, target: &str) -> HttpResponse {
        self.request("GET", target).await
    }

    /// The answer to a POST with a JSON body.
    pub(crate) async fn post(&self, target: &str, body: &str) -> HttpResponse {
        let content_type = "content-type: application/json\r\n";
        self.send(http_request("POST", target, content_type, body))
            .await
    }

    /// What the metrics say of a series; 0 if they do not know it.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let mut connection = HttpConnection::connect(&self.admin_address).await;
        connection
            .send(http_request("GET", "/metrics", "", ""))
            .await;
        let text = String::from_utf8(connection.read_response().await.body).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Begins the drain and waits for its end.
    pub(crate) async fn shutdown(mut self) {
        self.shutdown.cancel();
        (&mut self.task).await.unwrap();
    }

    /// Begins the drain.
    pub(crate) fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }
}

impl Drop for HttpTestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An operation with this name, which its creator executes.
pub(crate) async fn create_named(operations: &Operations, name: &str) -> OperationName {
    let (parent, id) = match name.rsplit_once("/operations/") {
        Some((parent, id)) => (parent, id),
        None => ("", name.strip_prefix("operations/").unwrap()),
    };
    let new = NewOperation::self_executed("test").parent(parent).id(id);
    create_leased(operations, new).await.0
}

/// The bytes of a request, with more header lines and a body.
pub(crate) fn http_request(method: &str, target: &str, headers: &str, body: &str) -> String {
    let length = match (body, method) {
        ("", "GET" | "HEAD" | "DELETE" | "OPTIONS") => String::new(),
        (body, _) => format!("content-length: {}\r\n", body.len()),
    };
    format!("{method} {target} HTTP/1.1\r\nhost: test\r\n{length}{headers}\r\n{body}")
}

// === impl Wire ===

impl HttpConnection {
    pub(crate) async fn connect(address: &str) -> Self {
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
    pub(crate) async fn read_response(&mut self) -> HttpResponse {
        self.read_response_to("GET").await
    }

    /// The next answer; one to HEAD has no body.
    pub(crate) async fn read_response_to(&mut self, method: &str) -> HttpResponse {
        let mut response = self.read_head().await;
        let length = response.header("content-length").map(str::parse);
        if let (Some(length), true) = (length, method != "HEAD") {
            response.body = vec![0; length.unwrap()];
            self.0.read_exact(&mut response.body).await.unwrap();
        }
        response
    }

    /// The next answer up to its body.
    pub(crate) async fn read_head(&mut self) -> HttpResponse {
        let status_line = self.read_line().await.expect("an answer comes");
        let code = status_line
            .split(' ')
            .nth(1)
            .expect("there is a status line");
        let code = code.parse().unwrap_or_else(|_| panic!("{status_line}"));
        let mut headers = Vec::new();
        loop {
            let line = self.read_line().await.expect("the head has an end");
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").expect(&line);
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        HttpResponse {
            code,
            headers,
            body: Vec::new(),
        }
    }

    /// The next line without its end; none after the last one.
    pub(crate) async fn read_line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await.unwrap_or(0);
        (read != 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The next line of a stream that begins so, or its end.
    pub(crate) async fn read_line_starting_with(&mut self, prefix: &str) -> Option<String> {
        loop {
            let line = self.read_line().await?;
            if line.starts_with(prefix) {
                return Some(line);
            }
        }
    }

    /// Whether the server has closed the connection.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.read_line().await.is_none()
    }
}

// === impl Answer ===

impl HttpResponse {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let header = self
            .headers
            .iter()
            .find(|(header_name, _)| header_name == name);
        header.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The JSON of an answer, whose headers have to say that it is some.
    pub(crate) fn json(&self) -> Value {
        let content_type = self.header("content-type");
        assert_eq!(
            content_type,
            Some("application/json; charset=UTF-8"),
            "{self:?}"
        );
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The JSON of an answer that is no error.
    pub(crate) fn expect_ok_json(&self) -> Value {
        assert_eq!(self.code, 200, "{}", self.text());
        self.json()
    }

    /// Takes an error apart: `(HTTP code, status, reason)`. It must have the form
    /// that ERR-1 to ERR-4 and HTTP-12 ask of every error.
    pub(crate) fn error_parts(&self) -> (u16, String, String) {
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
        assert_eq!(info["domain"], "longrunning.dev", "{json}");
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
    pub(crate) fn error_message(&self) -> String {
        self.error_parts();
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// An error as [`Answer::problem`] tells it.
pub(crate) fn error_parts(code: u16, status: &str, reason: &str) -> (u16, String, String) {
    (code, status.to_owned(), reason.to_owned())
}
