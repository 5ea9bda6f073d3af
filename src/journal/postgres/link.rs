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

use super::database::Database;
use crate::{journal::journal::JournalError, tasks::Tasks};

/// How long an answer may take. A database that is cut off says nothing, and
/// whoever waits for it would wait for as long as TCP does.
pub(super) const ANSWER: Duration = Duration::from_secs(15);

/// How long nobody tries again after a connection could not be made.
const PAUSE: Duration = Duration::from_millis(250);

/// A connection.
pub(super) struct Link {
    database: Database,
    current: Mutex<Current>,
    /// Called with the payload of each notification.
    heard: Option<Heard>,
    tasks: Tasks,
}

type Heard = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct Current {
    connected: Option<Connected>,
    /// When the last one could not be made, and why.
    refused: Option<(Instant, JournalError)>,
}

/// A connection that was made.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) client: Arc<Client>,
    /// Cancelled when the connection is lost.
    pub(super) lost: CancellationToken,
}

// === impl Link ===

impl Link {
    pub(super) fn new(database: &Database) -> Self {
        Self {
            database: database.clone(),
            current: Mutex::default(),
            heard: None,
            tasks: Tasks::default(),
        }
    }

    /// The same link, on which notifications are heard.
    pub(super) fn hearing(self, heard: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            heard: Some(Arc::new(heard)),
            ..self
        }
    }

    /// The connection; a new one if the last is lost.
    pub(super) async fn client(&self) -> Result<Arc<Client>, JournalError> {
        Ok(self.connected().await?.client)
    }

    pub(super) async fn connected(&self) -> Result<Connected, JournalError> {
        let mut current = self.current.lock().await;
        let last = current.connected.as_ref();
        if let Some(connected) = last.filter(|last| !last.client.is_closed()) {
            return Ok(connected.clone());
        }
        // Those who waited while it was tried need not each try it again.
        if let Some((at, error)) = &current.refused
            && at.elapsed() < PAUSE
        {
            return Err(error.clone());
        }
        let connected = self.connect().await;
        match &connected {
            Ok(connected) => current.connected = Some(connected.clone()),
            Err(error) => current.refused = Some((Instant::now(), error.clone())),
        }
        connected
    }

    async fn connect(&self) -> Result<Connected, JournalError> {
        let (client, mut connection) = self.database.connect().await?;
        let heard = self.heard.clone();
        let connected = Connected {
            client: Arc::new(client),
            lost: CancellationToken::new(),
        };
        let is_over = connected.lost.clone().drop_guard();
        // It ends with its client.
        self.tasks.spawn("postgres connection", async move {
            let _is_over = is_over;
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(notification))) => {
                        if let Some(heard) = &heard {
                            heard(notification.payload());
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
        Ok(connected)
    }

    /// What `ask` gets from the connection. One that does not answer in time is
    /// given up.
    pub(super) async fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, JournalError> {
        let client = self.client().await?;
        match timeout(ANSWER, ask(&client)).await {
            Ok(answer) => answer.map_err(refused),
            Err(_) => {
                self.give_up(&client).await;
                // The database may still be at it, and would be at the next one as well.
                let (database, client) = (self.database.clone(), client);
                let cancel = async move { database.cancel(&client).await };
                self.tasks.spawn("postgres cancel", cancel);
                Err(silent(ANSWER))
            }
        }
    }

    /// Lets go of a connection, so that the next question makes a new one.
    async fn give_up(&self, client: &Arc<Client>) {
        let mut current = self.current.lock().await;
        let connected = &mut current.connected;
        connected.take_if(|connected| Arc::ptr_eq(&connected.client, client));
    }

    /// Makes a new connection for the next question, whatever became of the last.
    pub(super) async fn renew(&self) {
        *self.current.lock().await = Current::default();
    }
}

impl fmt::Debug for Link {
    /// Without the configuration, which has a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

pub(super) fn silent(limit: Duration) -> JournalError {
    JournalError(format!(
        "the database does not answer within {} s",
        limit.as_secs()
    ))
}

/// What the database said, as a sentence for people.
#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
pub(super) fn refused(error: tokio_postgres::Error) -> JournalError {
    let cause = std::error::Error::source(&error);
    JournalError(match (error.as_db_error(), cause) {
        (Some(said), _) => format!(
            "the database says: {} ({})",
            said.message(),
            said.code().code()
        ),
        (None, Some(cause)) => format!("the database cannot be used: {error}: {cause}"),
        (None, None) => format!("the database cannot be used: {error}"),
    })
}
