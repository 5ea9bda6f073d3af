//! The connection of the commands to a server, and how its errors read.

use std::{fmt, str::FromStr, time::Duration};

use prost::Message;
use tonic::{
    Code, Status,
    transport::{Channel, Uri},
};

use crate::proto::{
    google::{
        longrunning::operations_client::OperationsClient,
        rpc::{self, ErrorInfo},
    },
    longrunning::v1::operation_watch_client::OperationWatchClient,
};
use crate::{server::ListenAddress, types::Types};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Where a server is: `http://HOST:PORT`.
#[derive(Clone, Debug)]
pub(super) struct Endpoint(Uri);

/// Why a command could not be done.
#[derive(Debug)]
pub(super) enum CallError {
    /// There is no server.
    Connect(Endpoint, tonic::transport::Error),
    /// The server says no.
    Status(Status),
}

// === impl Endpoint ===

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text
            .parse()
            .map_err(|error| format!("{error}; use http://HOST:PORT"))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            return Err("use http://HOST:PORT".to_owned());
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "http://{}",
            self.0
                .authority()
                .map_or("", |authority| authority.as_str())
        )
    }
}

impl Endpoint {
    /// The server that listens there, seen from its own machine.
    pub(super) fn of_listener(listen: &ListenAddress) -> Self {
        let text = listen.to_string();
        let port = text.rsplit_once(':').map_or("8470", |(_, port)| port);
        let host = text
            .strip_suffix(port)
            .and_then(|host| host.strip_suffix(':'))
            .unwrap_or_default();
        let host = if matches!(host, "" | "0.0.0.0" | "[::]") {
            "127.0.0.1"
        } else {
            host
        };
        let url = format!("http://{host}:{port}");
        Self(
            url.parse()
                .unwrap_or_else(|_| Uri::from_static("http://127.0.0.1:8470")),
        )
    }

    pub(super) async fn channel(&self) -> Result<Channel, CallError> {
        let endpoint = Channel::builder(self.0.clone()).connect_timeout(CONNECT);
        endpoint
            .connect()
            .await
            .map_err(|error| CallError::Connect(self.clone(), error))
    }

    pub(super) async fn operations(&self) -> Result<OperationsClient<Channel>, CallError> {
        Ok(OperationsClient::new(self.channel().await?))
    }

    pub(super) async fn watch(&self) -> Result<OperationWatchClient<Channel>, CallError> {
        Ok(OperationWatchClient::new(self.channel().await?))
    }
}

/// The full name for what a person types: a bare ID belongs to the root.
pub(super) fn full_name(name: String) -> String {
    if name.contains('/') || name.is_empty() {
        name
    } else {
        format!("operations/{name}")
    }
}

// === impl CallError ===

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(endpoint, error) => {
                let cause =
                    std::iter::successors(std::error::Error::source(error), |error| error.source())
                        .last();
                let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
                write!(
                    f,
                    "no server answers at {endpoint} ({cause}); start one with `longrunning serve`, "
                )?;
                f.write_str("or name another with --endpoint")
            }
            Self::Status(status) => {
                let reason =
                    reason(status).map_or_else(String::new, |reason| format!(" ({reason})"));
                write!(
                    f,
                    "{}{reason}: {}",
                    code_name(status.code()),
                    status.message()
                )
            }
        }
    }
}

/// The reason in the ErrorInfo of a status.
fn reason(status: &Status) -> Option<String> {
    let full = rpc::Status::decode(status.details()).ok()?;
    let info = full
        .details
        .iter()
        .find_map(|detail| Types::unpack::<ErrorInfo>(Some(detail)))?;
    Some(info.reason)
}

pub(super) fn code_name(code: Code) -> &'static str {
    rpc::Code::try_from(code as i32).map_or("UNKNOWN", |code| code.as_str_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_finds_the_server_of_its_own_container() {
        for (listen, endpoint) in [
            ("127.0.0.1:8470", "http://127.0.0.1:8470"),
            ("0.0.0.0:9000", "http://127.0.0.1:9000"),
            ("[::]:9000", "http://127.0.0.1:9000"),
            ("10.0.0.7:1", "http://10.0.0.7:1"),
            ("[::1]:9", "http://[::1]:9"),
        ] {
            assert_eq!(
                Endpoint::of_listener(&listen.parse().unwrap()).to_string(),
                endpoint
            );
        }
    }
}
