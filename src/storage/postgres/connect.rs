//! Where the database is, and how a connection to it begins: with TLS or without.

use std::{fmt, time::Duration};

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
    connection::{database_error, timeout_error},
    hosts::single_host_configs,
    tls::{TlsConfig, is_tls_error},
    tls_params::split_tls_params,
};
use crate::storage::error::{StorageError, StorageErrorKind};

/// A connection, which must be polled, and who asks on it.
pub(super) type RawConnection = (
    Client,
    Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>,
);

/// How long it may take to connect to one address, unless the URL says it; and one host
/// has twice as long until it has let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Which database, and how it is reached.
#[derive(Clone)]
pub(super) struct Connector {
    config: Config,
    tls: TlsConfig,
}

// === impl Database ===

impl Connector {
    /// # Errors
    /// A URL that makes no sense, or names files that cannot be used.
    pub(super) fn new(url: &str) -> Result<Self, StorageError> {
        let (url, params) = split_tls_params(url);
        let tls = TlsConfig::new(params)?;
        let mut config: Config = url.parse().map_err(database_error)?;
        config.application_name("longrunning").ssl_mode(tls.mode);
        // For each address, of which the next one may answer.
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        // Without a name, the certificate must be for the address.
        if config.get_hosts().is_empty() {
            for address in config.get_hostaddrs().to_vec() {
                config.host(address.to_string());
            }
        }
        // Over a socket there is no TLS, whatever the mode: so it is with libpq.
        let is_tcp = |host: &Host| matches!(host, Host::Tcp(_));
        if !config.get_hosts().iter().any(is_tcp) {
            config.ssl_mode(SslMode::Disable);
        }
        let connector = Self { config, tls };
        // Files that cannot be used are noticed now, and not by the connection that
        // listens later.
        connector.tls_connector()?;
        Ok(connector)
    }

    /// A new connection, to the first host that lets us in.
    pub(super) async fn connect(&self) -> Result<RawConnection, StorageError> {
        let host_timeout = 2 * self
            .config
            .get_connect_timeout()
            .map_or(CONNECT_TIMEOUT, |one| *one);
        let mut last_error = StorageError::new(
            StorageErrorKind::InvalidConfig,
            "the URL names no host".to_owned(),
        );
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
        let first_error = match host.connect(tls_connector.clone()).await {
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
                info!(reason = %first_error, "a connection to the database goes without TLS");
                Ok(connection)
            }
            Err(second_error) => {
                let second_error = database_error(second_error);
                Err(StorageError::new(
                    StorageErrorKind::InvalidConfig,
                    format!("{first_error}; and without TLS: {second_error}"),
                ))
            }
        }
    }

    /// Asks the server to leave what a connection has asked for last.
    pub(super) async fn cancel(&self, client: &Client) {
        if let Ok(connector) = self.tls_connector() {
            let token = client.cancel_token();
            let request = token.cancel_query(connector);
            if let Ok(Err(error)) = timeout(CONNECT_TIMEOUT, request).await {
                debug!(%error, "a question to the database cannot be taken back");
            }
        }
    }

    /// `prefer` tries it once more without TLS, as libpq does: if there can be none, or
    /// the server lets nobody in who comes with it.
    fn should_retry_plaintext(&self, error: &tokio_postgres::Error) -> bool {
        let is_rejected = error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        self.config.get_ssl_mode() == SslMode::Prefer
            && !self.is_direct_tls()
            && (is_rejected || is_tls_error(error))
    }

    fn tls_connector(&self) -> Result<MakeRustlsConnect, StorageError> {
        self.tls.connector(self.is_direct_tls())
    }

    /// TLS begins at once, and by the name of a protocol.
    fn is_direct_tls(&self) -> bool {
        self.config.get_ssl_negotiation() == SslNegotiation::Direct
    }
}

impl fmt::Debug for Connector {
    /// Without the configuration, which has a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({:?})", self.tls)
    }
}
