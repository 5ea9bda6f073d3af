//! The stores for comparison: one thread commits all waiting changes as one batch and
//! acknowledges them, with the same durability as longrunning.

use std::{fs::File, io::Write, path::Path, sync::Arc, thread};

use tokio::sync::{mpsc, oneshot};

use crate::{DurableStore, RECORD_BYTES};

const OPENS: &str = "a new store can be opened";
const COMMITS: &str = "the disk accepts the batch";

/// Commits a batch of records durably.
pub trait BatchCommit: Send + 'static {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]);
}

/// A record under its key, with the sender for its acknowledgement.
type PendingChange = ((u64, Vec<u8>), oneshot::Sender<()>);

pub struct Peer(mpsc::Sender<PendingChange>);

impl Peer {
    pub fn new(mut store: impl BatchCommit) -> Arc<Self> {
        let (sender, mut receiver) = mpsc::channel::<PendingChange>(4096);
        thread::spawn(move || {
            let mut batch = Vec::new();
            while receiver.blocking_recv_many(&mut batch, 4096) != 0 {
                let (records, callers): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
                store.commit(&records);
                for caller in callers {
                    let _ = caller.send(());
                }
            }
        });
        Arc::new(Self(sender))
    }
}

impl DurableStore for Peer {
    async fn change(&self, client: u64, count: u64) {
        let mut record = vec![7; RECORD_BYTES];
        record[..8].copy_from_slice(&count.to_le_bytes());
        let (sender, acknowledged) = oneshot::channel();
        self.0
            .send(((client, record), sender))
            .await
            .expect("the thread does not panic");
        acknowledged.await.expect("the thread does not panic");
    }
}

pub struct Sqlite(rusqlite::Connection);

impl Sqlite {
    pub fn open(directory: &Path) -> Self {
        let connection = rusqlite::Connection::open(directory.join("peer.db")).expect(OPENS);
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE records (number INTEGER PRIMARY KEY, record BLOB NOT NULL)",
            )
            .expect(OPENS);
        Self(connection)
    }
}

impl BatchCommit for Sqlite {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]) {
        let transaction = self.0.transaction().expect(COMMITS);
        {
            let mut put = transaction
                .prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2)")
                .expect(COMMITS);
            for (number, record) in records {
                put.execute((*number as i64, record)).expect(COMMITS);
            }
        }
        transaction.commit().expect(COMMITS);
    }
}

const TABLE: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("records");

pub struct Redb(redb::Database);

impl Redb {
    pub fn open(directory: &Path) -> Self {
        Self(redb::Database::create(directory.join("peer.redb")).expect(OPENS))
    }
}

impl BatchCommit for Redb {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]) {
        let transaction = self.0.begin_write().expect(COMMITS);
        {
            let mut table = transaction.open_table(TABLE).expect(COMMITS);
            for (number, record) in records {
                table.insert(number, record.as_slice()).expect(COMMITS);
            }
        }
        transaction.commit().expect(COMMITS);
    }
}

pub struct Fjall {
    database: fjall::Database,
    records: fjall::Keyspace,
}

impl Fjall {
    pub fn open(directory: &Path) -> Self {
        let database = fjall::Database::builder(directory.join("peer.fjall"))
            .open()
            .expect(OPENS);
        let records = database
            .keyspace("records", fjall::KeyspaceCreateOptions::default)
            .expect(OPENS);
        Self { database, records }
    }
}

impl BatchCommit for Fjall {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]) {
        let mut batch = self.database.batch();
        for (number, record) in records {
            batch.insert(&self.records, number.to_be_bytes(), record.as_slice());
        }
        batch.commit().expect(COMMITS);
        self.database
            .persist(fjall::PersistMode::SyncData)
            .expect(COMMITS);
    }
}

pub struct Log {
    file: File,
    buffer: Vec<u8>,
}

impl Log {
    pub fn open(directory: &Path) -> Self {
        Self {
            file: File::create(directory.join("peer.log")).expect(OPENS),
            buffer: Vec::new(),
        }
    }
}

impl BatchCommit for Log {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]) {
        self.buffer.clear();
        for (number, record) in records {
            self.buffer.extend_from_slice(&number.to_le_bytes());
            self.buffer.extend_from_slice(record);
        }
        self.file.write_all(&self.buffer).expect(COMMITS);
        self.file.sync_data().expect(COMMITS);
    }
}
