//! LISTEN/NOTIFY between servers: a notification says that the change log has rows to read. Notifications only reduce
//! latency; correctness does not depend on them. They are sent outside of the transactions that write, and not for each
//! of them, because a commit that notifies takes a lock of the whole cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    join, select,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_postgres::types::Type;
use tracing::{debug, info, warn};

use super::{connect::Connector, connection::Connection, statements::Statements};
use crate::storage::error::StorageError;

/// The minimum time between two notifications of this server.
const MIN_NOTIFY_INTERVAL: Duration = Duration::from_millis(5);
/// How long the notification may take that tests whether notifications are delivered.
const ECHO_TIMEOUT: Duration = Duration::from_secs(2);
/// The delay after an error.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Sends and receives notifications.
#[derive(Debug)]
pub(super) struct Notifier {
    /// The connection that listens.
    pub(super) listener: Arc<Connection>,
    /// The connection that notifies, which may go through a pooler.
    sender: Arc<Connection>,
    statements: Arc<Statements>,
    /// Notified when the change log should be read.
    pub(super) wakeup: Arc<Notify>,
    /// Notified when a notification of this server comes back.
    echo_received: Arc<Notify>,
    is_delivering: AtomicBool,
    /// Notified when this server has committed changes.
    local_change: Notify,
    /// The payload of this server's notifications.
    instance_id: String,
}

// === impl Notifier ===

impl Notifier {
    /// Returns a notifier that listens on a connection of its own.
    pub(super) fn new(
        listen_connector: &Connector,
        sender: Arc<Connection>,
        statements: Arc<Statements>,
    ) -> Self {
        let instance_id = uuid::Uuid::new_v4().to_string();
        let (wakeup, echo_received) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let on_notification = {
            let (instance_id, wakeup, echo_received) =
                (instance_id.clone(), wakeup.clone(), echo_received.clone());
            move |payload: &str| {
                if payload == instance_id {
                    echo_received.notify_one();
                } else {
                    wakeup.notify_one();
                }
            }
        };
        let listener = Connection::new(listen_connector).on_notification(on_notification);
        Self {
            listener: Arc::new(listener),
            sender,
            statements,
            wakeup,
            echo_received,
            is_delivering: AtomicBool::new(false),
            local_change: Notify::new(),
            instance_id,
        }
    }

    /// Requests a notification of the other servers.
    pub(super) fn mark_changed(&self) {
        self.local_change.notify_one();
    }

    /// Returns `true` if notifications arrive, as far as is known.
    pub(super) fn is_delivering(&self) -> bool {
        self.is_delivering.load(Ordering::Relaxed)
    }

    /// Sends and receives notifications. Never returns; may be dropped at any time.
    pub(super) async fn run(&self) {
        join!(self.run_sender(), self.run_listener());
    }

    /// Sends one notification for all changes within [`MIN_NOTIFY_INTERVAL`].
    async fn run_sender(&self) {
        loop {
            self.local_change.notified().await;
            match self.send_notify().await {
                Ok(()) => sleep(MIN_NOTIFY_INTERVAL).await,
                // Other servers poll.
                Err(error) => {
                    debug!(%error, "failed to send NOTIFY");
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    async fn run_listener(&self) {
        loop {
            if let Err(error) = self.listen_once().await {
                debug!(%error, "failed to LISTEN, retrying");
            }
            self.is_delivering.store(false, Ordering::Relaxed);
            sleep(RETRY_DELAY).await;
        }
    }

    /// Listens until the connection is lost, and tests whether it delivers notifications.
    async fn listen_once(&self) -> Result<(), StorageError> {
        // Acquired before LISTEN: if the connection is replaced in between, `closed` is that of the lost one.
        let closed = self.listener.acquire().await?.closed;
        self.listener.batch_execute(&self.statements.listen).await?;
        // Notifications from before are lost.
        self.wakeup.notify_one();
        self.send_notify().await?;
        let echo = timeout(ECHO_TIMEOUT, self.echo_received.notified()).await;
        self.is_delivering.store(echo.is_ok(), Ordering::Relaxed);
        if echo.is_ok() {
            info!("LISTEN/NOTIFY is working");
        } else {
            warn!(
                "NOTIFY messages are not delivered; falling back to polling every 100 ms. If a transaction pooler is \
                 used, set --store-notify-url"
            );
        }
        loop {
            select! {
                () = closed.cancelled() => return Ok(()),
                () = self.echo_received.notified() => {
                    if !self.is_delivering.swap(true, Ordering::Relaxed) {
                        info!("LISTEN/NOTIFY recovered");
                    }
                }
            }
        }
    }

    async fn send_notify(&self) -> Result<(), StorageError> {
        let parameters = [(&self.instance_id as _, Type::TEXT)];
        let statement = &self.statements.notify;
        self.sender.execute(statement, &parameters).await.map(drop)
    }
}
