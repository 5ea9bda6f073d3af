//! A connection to the database that reconnects when it is lost.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::poll_fn;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tokio_postgres::{
    AsyncMessage, Client, Error, Row,
    types::{ToSql, Type},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    connect::Connector,
    error::{query_error, timeout_error},
};
use crate::{storage::error::StorageError, tasks::Tasks};

/// How long a query may take. A host that was cut off sends nothing, and TCP would wait for much longer.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(15);

/// How long calls fail with the last error after a failed attempt to connect.
const RECONNECT_DELAY: Duration = Duration::from_millis(250);

/// A connection that is opened on demand, and again when it is lost.
pub(super) struct Connection {
    connector: Connector,
    slot: Mutex<ConnectionSlot>,
    /// Called with the payload of each notification.
    on_notification: Option<NotificationHandler>,
    tasks: Tasks,
}

type NotificationHandler = Arc<dyn Fn(&str) + Send + Sync>;

/// The parameters of a statement, with their types.
type Parameters<'a> = [(&'a (dyn ToSql + Sync), Type)];

#[derive(Default)]
struct ConnectionSlot {
    live: Option<LiveConnection>,
    /// When the last attempt to connect failed, and why.
    last_failure: Option<(Instant, StorageError)>,
}

/// An open connection.
#[derive(Clone)]
pub(super) struct LiveConnection {
    pub(super) client: Arc<Client>,
    /// Cancelled when the connection is lost.
    pub(super) closed: CancellationToken,
}

// === impl Connection ===

impl Connection {
    /// Returns a connection that is not open yet.
    pub(super) fn new(connector: &Connector) -> Self {
        Self {
            connector: connector.clone(),
            slot: Mutex::default(),
            on_notification: None,
            tasks: Tasks::default(),
        }
    }

    /// Sets the handler that is called with the payload of each notification.
    pub(super) fn on_notification(self, handler: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            on_notification: Some(Arc::new(handler)),
            ..self
        }
    }

    /// Returns the open connection. Connects if there is none; concurrent calls share one attempt.
    pub(super) async fn acquire(&self) -> Result<LiveConnection, StorageError> {
        let mut slot = self.slot.lock().await;
        let live = slot.live.as_ref();
        if let Some(live) = live.filter(|live| !live.client.is_closed()) {
            return Ok(live.clone());
        }
        // The calls that waited for a failed attempt do not each repeat it.
        if let Some((failed_at, error)) = &slot.last_failure
            && failed_at.elapsed() < RECONNECT_DELAY
        {
            return Err(error.clone());
        }
        let result = self.connect().await;
        match &result {
            Ok(live) => slot.live = Some(live.clone()),
            Err(error) => slot.last_failure = Some((Instant::now(), error.clone())),
        }
        result
    }

    async fn connect(&self) -> Result<LiveConnection, StorageError> {
        let (client, mut connection) = self.connector.connect().await?;
        let handler = self.on_notification.clone();
        let live = LiveConnection {
            client: Arc::new(client),
            closed: CancellationToken::new(),
        };
        let closed_guard = live.closed.clone().drop_guard();
        // The task ends when the last client is dropped.
        self.tasks.spawn("postgres connection", async move {
            let _closed_guard = closed_guard;
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(notification))) => {
                        if let Some(handler) = &handler {
                            handler(notification.payload());
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        let error = query_error(error);
                        return debug!(%error, "database connection lost");
                    }
                    None => return,
                }
            }
        });
        Ok(live)
    }

    /// Runs `query` on the open connection. After [`QUERY_TIMEOUT`], closes the connection and cancels the query.
    ///
    /// # Errors
    /// [`StorageError`] if the connection cannot be opened, the query fails or times out.
    pub(super) async fn with_client<T>(
        &self,
        query: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, StorageError> {
        let client = self.acquire().await?.client;
        match timeout(QUERY_TIMEOUT, query(&client)).await {
            Ok(result) => result.map_err(query_error),
            Err(_) => {
                self.discard(&client).await;
                // Without this, the next query would run beside one that never ends.
                let connector = self.connector.clone();
                let cancel = async move { connector.cancel(&client).await };
                self.tasks.spawn("postgres cancel", cancel);
                Err(timeout_error(QUERY_TIMEOUT))
            }
        }
    }

    /// Returns the rows of a query. Errors are those of [`with_client`](Self::with_client), here and below.
    pub(super) async fn query(
        &self,
        statement: &str,
        parameters: &Parameters<'_>,
    ) -> Result<Vec<Row>, StorageError> {
        self.with_client(async |client| client.query_typed(statement, parameters).await)
            .await
    }

    /// Returns the row of a query, or `None` if there is none. Several rows are an error.
    pub(super) async fn query_opt(
        &self,
        statement: &str,
        parameters: &Parameters<'_>,
    ) -> Result<Option<Row>, StorageError> {
        self.with_client(async |client| client.query_typed_opt(statement, parameters).await)
            .await
    }

    /// Returns the row of a query. No row and several rows are errors.
    pub(super) async fn query_one(
        &self,
        statement: &str,
        parameters: &Parameters<'_>,
    ) -> Result<Row, StorageError> {
        self.with_client(async |client| client.query_typed_one(statement, parameters).await)
            .await
    }

    /// Executes a statement, and returns the number of rows that it wrote.
    pub(super) async fn execute(
        &self,
        statement: &str,
        parameters: &Parameters<'_>,
    ) -> Result<u64, StorageError> {
        self.with_client(async |client| client.execute_typed(statement, parameters).await)
            .await
    }

    /// Executes several statements in one transaction, unless they contain transaction control.
    pub(super) async fn batch_execute(&self, statements: &str) -> Result<(), StorageError> {
        self.with_client(async |client| client.batch_execute(statements).await)
            .await
    }

    /// Forgets `client` if it is the open connection, so that the next query opens another one.
    async fn discard(&self, client: &Arc<Client>) {
        let live = &mut self.slot.lock().await.live;
        live.take_if(|live| Arc::ptr_eq(&live.client, client));
    }

    /// Makes the next query open another connection at once.
    pub(super) async fn reset(&self) {
        *self.slot.lock().await = ConnectionSlot::default();
    }
}

impl fmt::Debug for Connection {
    /// Leaves out the configuration, which contains a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}
