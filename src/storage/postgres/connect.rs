//! Opens connections to the database, with TLS or without.

use std::{error::Error, fmt, time::Duration};

use tokio::time::timeout;
use tokio_postgres::{
    Client, Config, Connection, Socket,
    config::{Host, SslMode, SslNegotiation},
    error::SqlState,
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::{debug, info};

use super::{
    error::{query_error, timeout_error},
    hosts::single_host_configs,
    tls::{TlsConfig, is_tls_error},
    tls_params::split_tls_params,
};
use crate::storage::error::StorageError;

/// A client, and its connection, which must be polled.
pub(super) type RawConnection = (
    Client,
    Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>,
);

/// How long it may take to connect to one address, unless the URL sets another timeout. TLS and authentication of one
/// host may take as long again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The hosts of a database, and how to connect to them.
#[derive(Clone)]
pub(super) struct Connector {
    config: Config,
    tls: TlsConfig,
}

// === impl Connector ===

impl Connector {
    /// Parses a URL or `key=value` pairs.
    ///
    /// # Errors
    /// `InvalidConfig` if they cannot be parsed, or name files that cannot be used.
    pub(super) fn new(url: &str) -> Result<Self, StorageError> {
        let (url, params) = split_tls_params(url);
        let tls = TlsConfig::new(params)?;
        let mut config: Config = url.parse().map_err(invalid_url_error)?;
        config.application_name("longrunning").ssl_mode(tls.mode);
        // The timeout of each address: the next one may answer.
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        // Without a host name, the certificate must be for the address.
        if config.get_hosts().is_empty() {
            for address in config.get_hostaddrs().to_vec() {
                config.host(address.to_string());
            }
        }
        // Unix sockets never use TLS, as in libpq.
        let is_tcp = |host: &Host| matches!(host, Host::Tcp(_));
        if !config.get_hosts().iter().any(is_tcp) {
            config.ssl_mode(SslMode::Disable);
        }
        let connector = Self { config, tls };
        // Reports unusable files at the start, also those of a connection that is opened later.
        connector.tls_connector()?;
        Ok(connector)
    }

    /// Connects to the first host that accepts the connection.
    ///
    /// # Errors
    /// The [`StorageError`] of the last host.
    pub(super) async fn connect(&self) -> Result<RawConnection, StorageError> {
        let connect_timeout = self.config.get_connect_timeout().copied();
        let host_timeout = 2 * connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let mut last_error = StorageError::invalid_config("the database URL names no host");
        for host in single_host_configs(&self.config) {
            match timeout(host_timeout, Box::pin(self.connect_to(&host))).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => last_error = error,
                Err(_) => last_error = timeout_error(host_timeout),
            }
        }
        Err(last_error)
    }

    async fn connect_to(&self, host: &Config) -> Result<RawConnection, StorageError> {
        let tls_connector = self.tls_connector()?;
        let tls_error = match host.connect(tls_connector.clone()).await {
            Ok(connection) => return Ok(connection),
            Err(error) if !self.should_retry_plaintext(&error) => {
                return Err(self.tls.connect_error(error));
            }
            Err(error) => self.tls.connect_error(error),
        };
        let mut plaintext = host.clone();
        plaintext.ssl_mode(SslMode::Disable);
        match plaintext.connect(tls_connector).await {
            Ok(connection) => {
                info!(error = %tls_error, "connected without TLS (sslmode=prefer)");
                Ok(connection)
            }
            Err(error) => {
                let error = query_error(error);
                let message = format!("{tls_error}; without TLS: {error}");
                Err(StorageError::new(error.kind(), message).with_source(error))
            }
        }
    }

    /// Requests that the server cancels the running query of a client. Best effort.
    pub(super) async fn cancel(&self, client: &Client) {
        if let Ok(connector) = self.tls_connector() {
            let token = client.cancel_token();
            let request = token.cancel_query(connector);
            if let Ok(Err(error)) = timeout(CONNECT_TIMEOUT, request).await {
                let error = query_error(error);
                debug!(%error, "failed to cancel query");
            }
        }
    }

    /// Returns `true` if `sslmode=prefer` tries again without TLS, as libpq does: TLS failed, or the server rejects
    /// this user with TLS.
    fn should_retry_plaintext(&self, error: &tokio_postgres::Error) -> bool {
        let is_rejected = error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        self.config.get_ssl_mode() == SslMode::Prefer
            && !self.is_direct_tls()
            && (is_rejected || is_tls_error(error))
    }

    fn tls_connector(&self) -> Result<MakeRustlsConnect, StorageError> {
        self.tls.connector(self.is_direct_tls())
    }

    /// Returns `true` if TLS begins without a request of the PostgreSQL protocol.
    fn is_direct_tls(&self) -> bool {
        self.config.get_ssl_negotiation() == SslNegotiation::Direct
    }
}

impl fmt::Debug for Connector {
    /// Leaves out the configuration, which contains a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connector({:?})", self.tls)
    }
}

fn invalid_url_error(error: tokio_postgres::Error) -> StorageError {
    let cause = error.source().map(|cause| format!(": {cause}"));
    let message = format!("invalid database URL: {error}{}", cause.unwrap_or_default());
    StorageError::invalid_config(message).with_source(error)
}
