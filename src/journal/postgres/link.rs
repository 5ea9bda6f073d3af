//! One connection to the database, made anew when it is lost.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::poll_fn;
use tokio::{sync::Mutex, time::timeout};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};
use tracing::debug;

use crate::{journal::journal::JournalError, tasks::Tasks};

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection.
pub(super) struct Link {
    config: Config,
    client: Mutex<Option<Arc<Client>>>,
    /// What is said first on a new connection.
    greeting: &'static str,
    /// Called at each notification.
    heard: Option<Arc<dyn Fn() + Send + Sync>>,
    tasks: Tasks,
}

// === impl Link ===

impl Link {
    pub(super) fn new(url: &str) -> Result<Self, JournalError> {
        let mut config: Config = url.parse().map_err(refused)?;
        config.application_name("longrunning").connect_timeout(CONNECT);
        Ok(Self {
            config,
            client: Mutex::default(),
            greeting: "",
            heard: None,
            tasks: Tasks::default(),
        })
    }

    /// The same link, on which this is said first.
    pub(super) fn greeting(self, greeting: &'static str) -> Self {
        Self { greeting, ..self }
    }

    /// The same link, on which notifications are heard.
    pub(super) fn hearing(self, heard: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            heard: Some(Arc::new(heard)),
            ..self
        }
    }

    /// The connection; a new one if the last is lost.
    pub(super) async fn client(&self) -> Result<Arc<Client>, JournalError> {
        let mut current = self.client.lock().await;
        if let Some(client) = current.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let (client, mut connection) = timeout(CONNECT, self.config.connect(NoTls))
            .await
            .map_err(|_| {
                JournalError(format!(
                    "the database does not answer within {} s",
                    CONNECT.as_secs()
                ))
            })?
            .map_err(refused)?;
        let heard = self.heard.clone();
        // It ends with its client.
        self.tasks.spawn("postgres connection", async move {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => {
                        if let Some(heard) = &heard {
                            heard();
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return debug!(%error, "a connection to the database is lost"),
                    None => return,
                }
            }
        });
        if !self.greeting.is_empty() {
            client.batch_execute(self.greeting).await.map_err(refused)?;
        }
        let client = Arc::new(client);
        *current = Some(client.clone());
        Ok(client)
    }
}

impl fmt::Debug for Link {
    /// Without the configuration, which has a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

/// What the database said, as a sentence for people.
#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
pub(super) fn refused(error: tokio_postgres::Error) -> JournalError {
    let cause = std::error::Error::source(&error);
    JournalError(match (error.as_db_error(), cause) {
        (Some(said), _) => format!("the database says: {} ({})", said.message(), said.code().code()),
        (None, Some(cause)) => format!("the database cannot be used: {error}: {cause}"),
        (None, None) => format!("the database cannot be used: {error}"),
    })
}
