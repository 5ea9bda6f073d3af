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
    hosts::each,
    link::{refused, silent},
    tls::{Tls, is_of_tls},
    url::take_tls,
};
use crate::journal::journal::JournalError;

/// A connection, which must be polled, and who asks on it.
pub(super) type Connecting = (
    Client,
    Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>,
);

/// How long it may take to connect to one address, unless the URL says it; and one host
/// has twice as long until it has let us in.
const CONNECT: Duration = Duration::from_secs(3);

/// Which database, and how it is reached.
#[derive(Clone)]
pub(super) struct Database {
    config: Config,
    tls: Tls,
}

// === impl Database ===

impl Database {
    /// # Errors
    /// A URL that makes no sense, or names files that cannot be used.
    pub(super) fn new(url: &str) -> Result<Self, JournalError> {
        let (url, parameters) = take_tls(url);
        let tls = Tls::new(parameters)?;
        let mut config: Config = url.parse().map_err(refused)?;
        config.application_name("longrunning").ssl_mode(tls.mode);
        // For each address, of which the next one may answer.
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
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
        let database = Self { config, tls };
        // Files that cannot be used are noticed now, and not by the connection that
        // listens later.
        database.connector()?;
        Ok(database)
    }

    /// A new connection, to the first host that lets us in.
    pub(super) async fn connect(&self) -> Result<Connecting, JournalError> {
        let limit = 2 * self
            .config
            .get_connect_timeout()
            .map_or(CONNECT, |one| *one);
        let mut last = JournalError("the URL names no host".to_owned());
        for host in each(&self.config) {
            match timeout(limit, Box::pin(self.connect_to(&host))).await {
                Ok(Ok(connecting)) => return Ok(connecting),
                Ok(Err(error)) => last = error,
                Err(_) => last = silent(limit),
            }
        }
        Err(last)
    }

    async fn connect_to(&self, host: &Config) -> Result<Connecting, JournalError> {
        let connector = self.connector()?;
        let first = match host.connect(connector.clone()).await {
            Ok(connecting) => return Ok(connecting),
            Err(error) if !self.may_go_without(&error) => return Err(self.tls.refused(error)),
            Err(error) => self.tls.refused(error),
        };
        let mut without = host.clone();
        without.ssl_mode(SslMode::Disable);
        match without.connect(connector).await {
            Ok(connecting) => {
                info!(reason = %first, "a connection to the database goes without TLS");
                Ok(connecting)
            }
            Err(second) => {
                let second = refused(second);
                Err(JournalError(format!("{first}; and without TLS: {second}")))
            }
        }
    }

    /// Asks the server to leave what a connection has asked for last.
    pub(super) async fn cancel(&self, client: &Client) {
        if let Ok(connector) = self.connector() {
            let token = client.cancel_token();
            let asked = token.cancel_query(connector);
            if let Ok(Err(error)) = timeout(CONNECT, asked).await {
                debug!(%error, "a question to the database cannot be taken back");
            }
        }
    }

    /// `prefer` tries it once more without TLS, as libpq does: if there can be none, or
    /// the server lets nobody in who comes with it.
    fn may_go_without(&self, error: &tokio_postgres::Error) -> bool {
        let is_refused = error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        self.config.get_ssl_mode() == SslMode::Prefer
            && !self.is_direct()
            && (is_refused || is_of_tls(error))
    }

    fn connector(&self) -> Result<MakeRustlsConnect, JournalError> {
        self.tls.connector(self.is_direct())
    }

    /// TLS begins at once, and by the name of a protocol.
    fn is_direct(&self) -> bool {
        self.config.get_ssl_negotiation() == SslNegotiation::Direct
    }
}

impl fmt::Debug for Database {
    /// Without the configuration, which has a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({:?})", self.tls)
    }
}
