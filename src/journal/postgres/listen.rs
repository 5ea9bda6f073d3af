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

use super::{database::Database, link::Link, row::TEXT, sql::Sql};
use crate::journal::journal::JournalError;

/// The least time between two hints: they take turns at one lock of the database.
const BETWEEN: Duration = Duration::from_millis(5);
/// How long the hint may take that shows whether hints arrive.
const TRIAL: Duration = Duration::from_secs(2);
/// The pause before it is tried again after an error.
const PAUSE: Duration = Duration::from_secs(1);

/// Gives hints and hears those of others.
#[derive(Debug)]
pub(super) struct Hints {
    pub(super) ear: Link,
    /// Somebody has changed something.
    pub(super) heard: Arc<Notify>,
    /// What was said to ourselves was heard.
    returned: Arc<Notify>,
    /// Hints arrive, as far as we know.
    arrive: AtomicBool,
    /// We have changed something.
    changed: Notify,
    /// What we sign with.
    us: String,
}

// === impl Hints ===

impl Hints {
    /// Hints that are heard on a connection of its own.
    pub(super) fn new(database: &Database) -> Self {
        let us = uuid::Uuid::new_v4().to_string();
        let (heard, returned) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let hear = {
            let (us, heard, returned) = (us.clone(), heard.clone(), returned.clone());
            move |said: &str| {
                if said != us {
                    heard.notify_one();
                } else {
                    returned.notify_one();
                }
            }
        };
        Self {
            ear: Link::new(database).hearing(hear),
            heard,
            returned,
            arrive: AtomicBool::new(false),
            changed: Notify::new(),
            us,
        }
    }

    /// We have changed something.
    pub(super) fn tell(&self) {
        self.changed.notify_one();
    }

    /// Whether hints were seen to arrive.
    pub(super) fn arrive(&self) -> bool {
        self.arrive.load(Ordering::Relaxed)
    }

    /// Gives others hints, one for all changes of a short time.
    pub(super) async fn give(&self, mouth: &Link, sql: &Sql) {
        loop {
            self.changed.notified().await;
            match self.say(mouth, sql).await {
                Ok(()) => sleep(BETWEEN).await,
                // Without a hint, it is read a little later.
                Err(error) => {
                    debug!(%error, "cannot tell other servers of changes");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Listens, and looks at each new connection whether hints arrive there.
    pub(super) async fn listen(&self, mouth: &Link, sql: &Sql) {
        loop {
            if let Err(error) = self.listen_once(mouth, sql).await {
                debug!(%error, "cannot listen for the changes of other servers");
            }
            self.arrive.store(false, Ordering::Relaxed);
            sleep(PAUSE).await;
        }
    }

    async fn listen_once(&self, mouth: &Link, sql: &Sql) -> Result<(), JournalError> {
        // First, so that a connection that is made anew meanwhile does not pass for the
        // one that listens.
        let lost = self.ear.connected().await?.lost;
        self.ear
            .ask(async |client| client.batch_execute(&sql.listen).await)
            .await?;
        // There may have been hints that nobody heard.
        self.heard.notify_one();
        self.say(mouth, sql).await?;
        let is_heard = timeout(TRIAL, self.returned.notified()).await.is_ok();
        self.arrive.store(is_heard, Ordering::Relaxed);
        if is_heard {
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
                () = lost.cancelled() => return Ok(()),
                () = self.returned.notified() => {
                    if !self.arrive.swap(true, Ordering::Relaxed) {
                        info!("notifications of PostgreSQL arrive after all");
                    }
                }
            }
        }
    }

    async fn say(&self, mouth: &Link, sql: &Sql) -> Result<(), JournalError> {
        let parameters = [(&self.us as &(dyn ToSql + Sync), TEXT)];
        mouth
            .ask(async |client| client.execute_typed(&sql.notify, &parameters).await)
            .await?;
        Ok(())
    }
}
