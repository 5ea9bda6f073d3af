//! Runs the complete server with its listeners in this process, and speaks HTTP/1.1
//! to it byte by byte.

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

/// One client connection.
pub(crate) struct HttpConnection(BufReader<TcpStream>);

/// A parsed response.
#[derive(Debug)]
pub(crate) struct HttpResponse {
    pub(crate) code: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

// === impl HttpTestServer ===

impl HttpTestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts a server whose default config was changed by `configure`.
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
        let address_text = |address: Option<ListenAddress>| {
            address.expect("expected a bound listener").to_string()
        };
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

    /// Opens a connection to the client listener.
    pub(crate) async fn connect(&self) -> HttpConnection {
        HttpConnection::connect(&self.client_address).await
    }

    /// Sends bytes on a new connection and returns the response.
    pub(crate) async fn send(&self, request: impl AsRef<[u8]>) -> HttpResponse {
        let mut connection = self.connect().await;
        connection.send(request).await;
        connection.read_response().await
    }

    /// Sends a request without a body and returns the response.
    pub(crate) async fn request(&self, method: &str, target: &str) -> HttpResponse {
        self.send(http_request(method, target, "", "")).await
    }

    pub(crate) async fn get(&self, target: &str) -> HttpResponse {
        self.request("GET", target).await
    }

    /// Sends a POST with a JSON body and returns the response.
    pub(crate) async fn post(&self, target: &str, body: &str) -> HttpResponse {
        let content_type = "content-type: application/json\r\n";
        self.send(http_request("POST", target, content_type, body))
            .await
    }

    /// Returns the value of a metric series, or 0 if there is no such series.
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

    /// Shuts the server down and waits until it has drained.
    pub(crate) async fn shutdown(mut self) {
        self.shutdown.cancel();
        (&mut self.task).await.unwrap();
    }

    /// Starts the shutdown without waiting.
    pub(crate) fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }
}

impl Drop for HttpTestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Creates a self-executed operation with a given name.
pub(crate) async fn create_named(operations: &Operations, name: &str) -> OperationName {
    let (parent, id) = match name.rsplit_once("/operations/") {
        Some((parent, id)) => (parent, id),
        None => ("", name.strip_prefix("operations/").unwrap()),
    };
    let new = NewOperation::self_executed("test").parent(parent).id(id);
    create_leased(operations, new).await.0
}

/// Formats a request with additional header lines and a body.
pub(crate) fn http_request(method: &str, target: &str, headers: &str, body: &str) -> String {
    let length = match (body, method) {
        ("", "GET" | "HEAD" | "DELETE" | "OPTIONS") => String::new(),
        (body, _) => format!("content-length: {}\r\n", body.len()),
    };
    format!("{method} {target} HTTP/1.1\r\nhost: test\r\n{length}{headers}\r\n{body}")
}

// === impl HttpConnection ===

impl HttpConnection {
    pub(crate) async fn connect(address: &str) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends bytes; fails if the server has closed the connection.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.0.write_all(bytes.as_ref()).await
    }

    /// Reads the next response, with its body if it has a content length.
    pub(crate) async fn read_response(&mut self) -> HttpResponse {
        self.read_response_to("GET").await
    }

    /// Reads the next response to a request with `method`; one to HEAD has no body.
    pub(crate) async fn read_response_to(&mut self, method: &str) -> HttpResponse {
        let mut response = self.read_head().await;
        let length = response.header("content-length").map(str::parse);
        if let (Some(length), true) = (length, method != "HEAD") {
            response.body = vec![0; length.unwrap()];
            self.0.read_exact(&mut response.body).await.unwrap();
        }
        response
    }

    /// Reads the next response up to its body.
    pub(crate) async fn read_head(&mut self) -> HttpResponse {
        let status_line = self.read_line().await.expect("expected a response");
        let code = status_line
            .split(' ')
            .nth(1)
            .expect("expected a status line");
        let code = code.parse().unwrap_or_else(|_| panic!("{status_line}"));
        let mut headers = Vec::new();
        loop {
            let line = self
                .read_line()
                .await
                .expect("expected the end of the headers");
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

    /// Reads the next line without its terminator, or returns `None` at the end.
    pub(crate) async fn read_line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await.unwrap_or(0);
        (read != 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Skips to the next line with a prefix and returns it, or `None` at the end.
    pub(crate) async fn read_line_starting_with(&mut self, prefix: &str) -> Option<String> {
        loop {
            let line = self.read_line().await?;
            if line.starts_with(prefix) {
                return Some(line);
            }
        }
    }

    /// Reads a line, and returns `true` if the server has closed the connection.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.read_line().await.is_none()
    }
}

// === impl HttpResponse ===

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

    /// Parses the body as JSON; panics unless the content type is JSON.
    pub(crate) fn json(&self) -> Value {
        let content_type = self.header("content-type");
        assert_eq!(
            content_type,
            Some("application/json; charset=UTF-8"),
            "{self:?}"
        );
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Parses the body as JSON; panics unless the status is 200.
    pub(crate) fn expect_ok_json(&self) -> Value {
        assert_eq!(self.code, 200, "{}", self.text());
        self.json()
    }

    /// Returns HTTP code, status and reason of an error; panics unless it has the form
    /// required by ERR-1 to ERR-4 and HTTP-12.
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

    /// Returns the message of an error.
    pub(crate) fn error_message(&self) -> String {
        self.error_parts();
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// Builds an expected value for [`HttpResponse::error_parts`].
pub(crate) fn error_parts(code: u16, status: &str, reason: &str) -> (u16, String, String) {
    (code, status.to_owned(), reason.to_owned())
}
