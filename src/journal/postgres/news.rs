//! What became of operations, read from the database by transaction: see
//! `news.sql`. A notification is only a hint to read at once; without any, it is
//! read every so often.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    select,
    sync::Notify,
    time::{interval, sleep, timeout},
};
use tokio_postgres::{Client, types::ToSql};
use tracing::{debug, info, warn};

use super::{
    link::{Link, refused},
    row::{Reader, TEXT, decode},
};
use crate::journal::journal::{Apply, JournalError, News as Changes};

const NEWS: &str = include_str!("news.sql");

const ALL: &str = "SELECT pg_current_snapshot()::text, number, record
     FROM longrunning.meta LEFT JOIN longrunning.operations ON true";
/// Changes older than this are forgotten, as far as no transaction from before is
/// under way; a server that was away for longer reads everything anew.
const TRIM: &str = "WITH old AS (
       DELETE FROM longrunning.changes
       WHERE at < clock_timestamp() - interval '10 minutes'
         AND tx < pg_snapshot_xmin(pg_current_snapshot())
       RETURNING tx
     )
     UPDATE longrunning.meta
     SET trimmed = greatest(trimmed, (SELECT ((max(tx)::text)::bigint + 1)::text::xid8 FROM old))
     WHERE EXISTS (SELECT 1 FROM old)";

const LISTEN: &str = "LISTEN longrunning";
const NOTIFY: &str = "SELECT pg_notify('longrunning', '')";

/// How often it is read without a hint.
const POLL: Duration = Duration::from_millis(250);
/// The least time between two hints: they take turns at one lock of the database.
const HINTS: Duration = Duration::from_millis(10);
/// How often old changes are forgotten.
const TRIMS: Duration = Duration::from_secs(60);
/// The pause before it is tried again after an error.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads what became of operations.
#[derive(Debug)]
pub(super) struct News {
    link: Link,
    /// Up to where it was read, as PostgreSQL writes a snapshot.
    read: Mutex<String>,
    /// Somebody else has changed something.
    heard: Arc<Notify>,
    /// We have.
    changed: Notify,
}

// === impl News ===

impl News {
    pub(super) fn new(link: Link) -> Self {
        let heard = Arc::new(Notify::new());
        let hear = heard.clone();
        Self {
            link: link.greeting(LISTEN).hearing(move || hear.notify_one()),
            read: Mutex::default(),
            heard,
            changed: Notify::new(),
        }
    }

    /// Begins before everything that is read from now on.
    pub(super) async fn begin(&self, client: &Client) -> Result<(), JournalError> {
        let now = "SELECT pg_current_snapshot()::text";
        let row = client.query_typed_one(now, &[]).await.map_err(refused)?;
        *self.read.lock() = row.get(0);
        Ok(())
    }

    /// We have changed something.
    pub(super) fn tell(&self) {
        self.changed.notify_one();
    }

    /// Gives others the hint that there is something to read, and forgets what
    /// everybody has read long ago.
    pub(super) async fn hint(&self, link: &Link) {
        let mut trims = interval(TRIMS);
        loop {
            let what = select! {
                () = self.changed.notified() => NOTIFY,
                _ = trims.tick() => TRIM,
            };
            let said = match link.client().await {
                Ok(client) => client.execute_typed(what, &[]).await.map_err(refused),
                Err(error) => Err(error),
            };
            match said {
                Ok(_) => sleep(HINTS).await,
                // Without a hint, it is read a little later.
                Err(error) => {
                    debug!(%error, "cannot tell other servers of changes");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Reads on and on.
    pub(super) async fn follow(&self, apply: Apply) {
        loop {
            match self.read().await {
                Ok((news, snapshot)) => {
                    if !news.is_empty() {
                        apply(news).await;
                    }
                    // What was not taken in is read again.
                    *self.read.lock() = snapshot;
                    let _ = timeout(POLL, self.heard.notified()).await;
                }
                Err(error) => {
                    warn!(%error, "cannot read what other servers do; trying again");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn read(&self) -> Result<(Vec<Changes>, String), JournalError> {
        let client = self.link.client().await?;
        let since = self.read.lock().clone();
        let parameters = [(&since as &(dyn ToSql + Sync), TEXT)];
        let rows = client.query_typed(NEWS, &parameters).await.map_err(refused)?;
        let first = rows.first().ok_or_else(no_meta)?;
        let (snapshot, is_whole): (String, bool) = (first.get(0), first.get(1));
        if !is_whole {
            info!("so much was missed that all operations are read anew");
            return all(&client).await;
        }
        let mut reader = Reader::default();
        let mut news = Vec::with_capacity(rows.len());
        for row in &rows {
            let (number, record): (Option<i64>, Option<&[u8]>) = (row.get(2), row.get(3));
            let Some(number) = number else { continue };
            news.push(match record {
                Some(record) => Changes::Changed(Arc::new(decode(&mut reader, number, record)?)),
                None => Changes::Gone(u64::try_from(number).unwrap_or_default()),
            });
        }
        Ok((news, snapshot))
    }
}

/// Everything that is there, and nothing else.
async fn all(client: &Client) -> Result<(Vec<Changes>, String), JournalError> {
    let rows = client.query_typed(ALL, &[]).await.map_err(refused)?;
    let snapshot = rows.first().ok_or_else(no_meta)?.get(0);
    let (mut reader, mut news, mut numbers) = (Reader::default(), Vec::new(), BTreeSet::new());
    for row in &rows {
        let (number, record): (Option<i64>, Option<&[u8]>) = (row.get(1), row.get(2));
        if let (Some(number), Some(record)) = (number, record) {
            let operation = decode(&mut reader, number, record)?;
            numbers.insert(operation.number());
            news.push(Changes::Changed(Arc::new(operation)));
        }
    }
    news.push(Changes::Left(numbers));
    Ok((news, snapshot))
}

fn no_meta() -> JournalError {
    JournalError("longrunning.meta is empty; restore it from a backup".to_owned())
}
