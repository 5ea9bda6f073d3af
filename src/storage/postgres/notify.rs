//! Hints between servers: a notification says that there is something to read.
//! Nothing rests on them but how soon it is read. They are sent outside of the
//! transactions that change something, and not for each of those, because a
//! commit that notifies takes a lock that the whole database shares.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    select,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_postgres::types::ToSql;
use tracing::{debug, info, warn};

use super::{connect::Connector, connection::Connection, rows::TEXT, statements::Statements};
use crate::storage::error::StorageError;

/// The least time between two hints: they take turns at one lock of the database.
const MIN_NOTIFY_INTERVAL: Duration = Duration::from_millis(5);
/// How long the hint may take that shows whether hints arrive.
const ECHO_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause before it is tried again after an error.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Gives hints and hears those of others.
#[derive(Debug)]
pub(super) struct Notifier {
    pub(super) listener: Connection,
    /// Somebody has changed something.
    pub(super) wakeup: Arc<Notify>,
    /// What was said to ourselves was heard.
    echo_received: Arc<Notify>,
    /// Hints arrive, as far as we know.
    is_delivering: AtomicBool,
    /// We have changed something.
    local_change: Notify,
    /// What we sign with.
    instance_id: String,
}

// === impl Hints ===

impl Notifier {
    /// Hints that are heard on a connection of its own.
    pub(super) fn new(connector: &Connector) -> Self {
        let instance_id = uuid::Uuid::new_v4().to_string();
        let (wakeup, echo_received) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let on_notification = {
            let (instance_id, wakeup, echo_received) =
                (instance_id.clone(), wakeup.clone(), echo_received.clone());
            move |payload: &str| {
                if payload != instance_id {
                    wakeup.notify_one();
                } else {
                    echo_received.notify_one();
                }
            }
        };
        Self {
            listener: Connection::new(connector).on_notification(on_notification),
            wakeup,
            echo_received,
            is_delivering: AtomicBool::new(false),
            local_change: Notify::new(),
            instance_id,
        }
    }

    /// We have changed something.
    pub(super) fn mark_changed(&self) {
        self.local_change.notify_one();
    }

    /// Whether hints were seen to arrive.
    pub(super) fn is_delivering(&self) -> bool {
        self.is_delivering.load(Ordering::Relaxed)
    }

    /// Gives others hints, one for all changes of a short time.
    pub(super) async fn run_sender(&self, sender: &Connection, statements: &Statements) {
        loop {
            self.local_change.notified().await;
            match self.send_notify(sender, statements).await {
                Ok(()) => sleep(MIN_NOTIFY_INTERVAL).await,
                // Without a hint, it is read a little later.
                Err(error) => {
                    debug!(%error, "cannot tell other servers of changes");
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    /// Listens, and looks at each new connection whether hints arrive there.
    pub(super) async fn run_listener(&self, sender: &Connection, statements: &Statements) {
        loop {
            if let Err(error) = self.listen_once(sender, statements).await {
                debug!(%error, "cannot listen for the changes of other servers");
            }
            self.is_delivering.store(false, Ordering::Relaxed);
            sleep(RETRY_DELAY).await;
        }
    }

    async fn listen_once(
        &self,
        sender: &Connection,
        statements: &Statements,
    ) -> Result<(), StorageError> {
        // First, so that a connection that is made anew meanwhile does not pass for the
        // one that listens.
        let closed = self.listener.acquire().await?.closed;
        self.listener
            .with_client(async |client| client.batch_execute(&statements.listen).await)
            .await?;
        // There may have been hints that nobody heard.
        self.wakeup.notify_one();
        self.send_notify(sender, statements).await?;
        let is_delivered = timeout(ECHO_TIMEOUT, self.echo_received.notified())
            .await
            .is_ok();
        self.is_delivering.store(is_delivered, Ordering::Relaxed);
        if is_delivered {
            info!("hears at once what other servers change");
        } else {
            warn!(
                "notifications of PostgreSQL do not arrive: what other servers change is seen by \
                 polling only. Is there a pooler in between that gives each transaction another \
                 connection? Then name the database itself for listening"
            );
        }
        loop {
            select! {
                () = closed.cancelled() => return Ok(()),
                () = self.echo_received.notified() => {
                    if !self.is_delivering.swap(true, Ordering::Relaxed) {
                        info!("notifications of PostgreSQL arrive after all");
                    }
                }
            }
        }
    }

    async fn send_notify(
        &self,
        sender: &Connection,
        statements: &Statements,
    ) -> Result<(), StorageError> {
        let parameters = [(&self.instance_id as &(dyn ToSql + Sync), TEXT)];
        sender
            .with_client(async |client| client.execute_typed(&statements.notify, &parameters).await)
            .await?;
        Ok(())
    }
}
