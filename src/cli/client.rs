//! Connects commands to a server and formats call errors.

use std::{fmt, str::FromStr, time::Duration};

use prost::Message;
use tonic::{
    Code, Status,
    transport::{self, Channel, Uri},
};

use crate::proto::{
    google::{
        longrunning::operations_client::OperationsClient,
        rpc::{self, ErrorInfo},
    },
    longrunning::v1::operation_watch_client::OperationWatchClient,
};
use crate::{client::backoff::root_cause, server::ListenAddress, types::TypeRegistry};

/// The timeout of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval of HTTP/2 PINGs on an idle connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// The timeout of a call that does not wait.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The endpoint of a server: `http://HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug)]
pub(super) struct Endpoint(String);

/// An error that ends a command.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The server is unreachable.
    #[error(
        "cannot connect to {endpoint}: {}; start a server with `longrunning serve`, \
         or set --endpoint or --worker-endpoint",
        root_cause(.source)
    )]
    Connect {
        endpoint: Endpoint,
        source: transport::Error,
    },
    /// An error found without a call, such as an invalid argument.
    #[error("{0}")]
    Local(String),
    /// The server returned an error.
    #[error("{}{}: {}", code_name(.0.code()), reason_suffix(.0), .0.message())]
    Status(#[from] Status),
}

// === impl Endpoint ===

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED_FORM: &str = "use http://HOST:PORT or unix:PATH";
        if text
            .strip_prefix("unix:")
            .is_some_and(|path| !path.is_empty())
        {
            return Ok(Self(text.to_owned()));
        }
        let uri = text.parse::<Uri>();
        // HOST:PORT, as most tools take it.
        if let Ok(uri) = &uri
            && uri.scheme().is_none()
            && let Some(authority) = uri.authority().filter(|it| it.port().is_some())
        {
            return Ok(Self(format!("http://{authority}")));
        }
        let uri = uri.map_err(|error| format!("{error}; {EXPECTED_FORM}"))?;
        match uri.authority() {
            Some(authority) if uri.scheme_str() == Some("http") => {
                Ok(Self(format!("http://{authority}")))
            }
            _ => Err(EXPECTED_FORM.to_owned()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Endpoint {
    /// Returns the endpoint of a server that listens on this address on the same
    /// host.
    pub(super) fn from_listen_address(listen: &ListenAddress) -> Self {
        let ListenAddress::Tcp(address) = listen else {
            return Self(listen.to_string());
        };
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "8470"));
        let host = match host {
            "0.0.0.0" => "127.0.0.1",
            "[::]" => "[::1]",
            host => host,
        };
        Self(format!("http://{host}:{port}"))
    }

    /// Creates a channel that connects on demand and reconnects.
    pub(super) fn connect_lazy(&self) -> Result<Channel, CliError> {
        let endpoint = self.tonic_endpoint()?.keep_alive_while_idle(true);
        Ok(endpoint
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .connect_lazy())
    }

    fn tonic_endpoint(&self) -> Result<transport::Endpoint, CliError> {
        // Unlike `Channel::from_shared`, this one accepts `unix:` URIs.
        let endpoint = transport::Endpoint::from_shared(self.0.clone());
        let endpoint = endpoint.map_err(|error| CliError::local(format!("{self}: {error}")))?;
        Ok(endpoint.connect_timeout(CONNECT_TIMEOUT))
    }

    /// Connects. Each call times out after `call_timeout`, or never if `None`.
    pub(super) async fn connect(
        &self,
        call_timeout: Option<Duration>,
    ) -> Result<Channel, CliError> {
        let mut endpoint = self.tonic_endpoint()?;
        if let Some(call_timeout) = call_timeout {
            endpoint = endpoint.timeout(call_timeout);
        }
        endpoint.connect().await.map_err(|source| {
            let endpoint = self.clone();
            CliError::Connect { endpoint, source }
        })
    }

    /// Connects for calls that do not wait; they time out after [`CALL_TIMEOUT`].
    pub(super) async fn operations_client(&self) -> Result<OperationsClient<Channel>, CliError> {
        let channel = self.connect(Some(CALL_TIMEOUT)).await?;
        Ok(OperationsClient::new(channel))
    }

    /// Connects for watches, which have no timeout.
    pub(super) async fn watch_client(&self) -> Result<OperationWatchClient<Channel>, CliError> {
        Ok(OperationWatchClient::new(self.connect(None).await?))
    }
}

/// Expands a bare operation ID to `operations/ID`.
pub(super) fn full_name(name: String) -> String {
    if name.contains('/') || name.is_empty() {
        name
    } else {
        format!("operations/{name}")
    }
}

// === impl CliError ===

impl CliError {
    pub(super) fn local(error: impl fmt::Display) -> Self {
        Self::Local(error.to_string())
    }
}

/// Returns the reason of the ErrorInfo in a status as ` (REASON)`, or nothing.
fn reason_suffix(status: &Status) -> String {
    let details = rpc::Status::decode(status.details()).map(|status| status.details);
    let mut details = details.iter().flatten();
    let info = details.find_map(|detail| TypeRegistry::unpack::<ErrorInfo>(Some(detail)));
    info.map(|info| format!(" ({})", info.reason))
        .unwrap_or_default()
}

/// Returns the proto name of a code, such as `NOT_FOUND`.
pub(super) fn code_name(code: Code) -> &'static str {
    rpc::Code::try_from(code as i32).map_or("UNKNOWN", |code| code.as_str_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_of_wildcard_listen_address_is_loopback() {
        for (listen, endpoint) in [
            ("127.0.0.1:8470", "http://127.0.0.1:8470"),
            ("0.0.0.0:9000", "http://127.0.0.1:9000"),
            ("[::]:9000", "http://[::1]:9000"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("10.0.0.7:1", "http://10.0.0.7:1"),
            ("[::1]:9", "http://[::1]:9"),
        ] {
            assert_eq!(
                Endpoint::from_listen_address(&listen.parse().unwrap()).to_string(),
                endpoint
            );
        }
    }
}
