//! One connection to the database, made anew when it is lost.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::poll_fn;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::connect::Connector;
use crate::{
    storage::error::{StorageError, StorageErrorKind},
    tasks::Tasks,
};

/// How long an answer may take. A database that is cut off says nothing, and
/// whoever waits for it would wait for as long as TCP does.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(15);

/// How long nobody tries again after a connection could not be made.
const RECONNECT_DELAY: Duration = Duration::from_millis(250);

/// A connection.
pub(super) struct Connection {
    connector: Connector,
    slot: Mutex<ConnectionSlot>,
    /// Called with the payload of each notification.
    on_notification: Option<NotificationHandler>,
    tasks: Tasks,
}

type NotificationHandler = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct ConnectionSlot {
    live: Option<LiveConnection>,
    /// When the last one could not be made, and why.
    last_failure: Option<(Instant, StorageError)>,
}

/// A connection that was made.
#[derive(Clone)]
pub(super) struct LiveConnection {
    pub(super) client: Arc<Client>,
    /// Cancelled when the connection is lost.
    pub(super) closed: CancellationToken,
}

// === impl Link ===

impl Connection {
    pub(super) fn new(connector: &Connector) -> Self {
        Self {
            connector: connector.clone(),
            slot: Mutex::default(),
            on_notification: None,
            tasks: Tasks::default(),
        }
    }

    /// The same link, on which notifications are heard.
    pub(super) fn on_notification(self, handler: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            on_notification: Some(Arc::new(handler)),
            ..self
        }
    }

    /// The connection; a new one if the last is lost.
    pub(super) async fn acquire_client(&self) -> Result<Arc<Client>, StorageError> {
        Ok(self.acquire().await?.client)
    }

    pub(super) async fn acquire(&self) -> Result<LiveConnection, StorageError> {
        let mut slot = self.slot.lock().await;
        let last = slot.live.as_ref();
        if let Some(live) = last.filter(|last| !last.client.is_closed()) {
            return Ok(live.clone());
        }
        // Those who waited while it was tried need not each try it again.
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
        // It ends with its client.
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
                        return debug!(%error, "a connection to the database is lost");
                    }
                    None => return,
                }
            }
        });
        Ok(live)
    }

    /// What `ask` gets from the connection. One that does not answer in time is
    /// given up.
    pub(super) async fn with_client<T>(
        &self,
        query: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StorageError> {
        let client = self.acquire_client().await?;
        match timeout(QUERY_TIMEOUT, query(&client)).await {
            Ok(result) => result.map_err(database_error),
            Err(_) => {
                self.discard(&client).await;
                // The database may still be at it, and would be at the next one as well.
                let (connector, client) = (self.connector.clone(), client);
                let cancel = async move { connector.cancel(&client).await };
                self.tasks.spawn("postgres cancel", cancel);
                Err(timeout_error(QUERY_TIMEOUT))
            }
        }
    }

    /// Lets go of a connection, so that the next question makes a new one.
    async fn discard(&self, client: &Arc<Client>) {
        let mut slot = self.slot.lock().await;
        let live = &mut slot.live;
        live.take_if(|connected| Arc::ptr_eq(&connected.client, client));
    }

    /// Makes a new connection for the next question, whatever became of the last.
    pub(super) async fn reset(&self) {
        *self.slot.lock().await = ConnectionSlot::default();
    }
}

impl fmt::Debug for Connection {
    /// Without the configuration, which has a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

pub(super) fn timeout_error(limit: Duration) -> StorageError {
    StorageError::new(
        StorageErrorKind::Unavailable,
        format!("the database does not answer within {} s", limit.as_secs()),
    )
}

/// What the database said, as a sentence for people.
#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
pub(super) fn database_error(error: tokio_postgres::Error) -> StorageError {
    let cause = std::error::Error::source(&error);
    StorageError::new(
        StorageErrorKind::Unavailable,
        match (error.as_db_error(), cause) {
            (Some(db_error), _) => format!(
                "the database says: {} ({})",
                db_error.message(),
                db_error.code().code()
            ),
            (None, Some(cause)) => format!("the database cannot be used: {error}: {cause}"),
            (None, None) => format!("the database cannot be used: {error}"),
        },
    )
}
