//! The peers: one thread that takes all changes that wait, commits them
//! together and acknowledges them. Each commits as durably as ours does.

use std::{fs::File, io::Write, path::Path, sync::Arc, thread};

use tokio::sync::{mpsc, oneshot};

use crate::{Durable, RECORD};

/// Commits many records together, durably.
pub trait Commit: Send + 'static {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]);
}

type Waiting = ((u64, Vec<u8>), oneshot::Sender<()>);

pub struct Peer(mpsc::Sender<Waiting>);

impl Peer {
    pub fn new(mut store: impl Commit) -> Arc<Self> {
        let (sender, mut line) = mpsc::channel::<Waiting>(4096);
        thread::spawn(move || {
            let mut batch = Vec::new();
            while line.blocking_recv_many(&mut batch, 4096) != 0 {
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

impl Durable for Peer {
    async fn change(&self, client: u64, count: u64) {
        let mut record = vec![7; RECORD];
        record[..8].copy_from_slice(&count.to_le_bytes());
        let (kept, told) = oneshot::channel();
        self.0
            .send(((client, record), kept))
            .await
            .expect("the thread lives");
        told.await.expect("it was committed");
    }
}

pub struct Sqlite(rusqlite::Connection);

impl Sqlite {
    pub fn open(directory: &Path) -> Self {
        let connection = rusqlite::Connection::open(directory.join("peer.db")).expect("a file");
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE records (number INTEGER PRIMARY KEY, record BLOB NOT NULL)",
            )
            .expect("a table");
        Self(connection)
    }
}

impl Commit for Sqlite {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]) {
        let transaction = self.0.transaction().expect("no other writer");
        {
            let mut put = transaction
                .prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2)")
                .expect("proper SQL");
            for (number, record) in records {
                put.execute((*number as i64, record)).expect("room");
            }
        }
        transaction.commit().expect("room");
    }
}

const TABLE: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("records");

pub struct Redb(redb::Database);

impl Redb {
    pub fn open(directory: &Path) -> Self {
        Self(redb::Database::create(directory.join("peer.redb")).expect("a file"))
    }
}

impl Commit for Redb {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]) {
        let transaction = self.0.begin_write().expect("no other writer");
        {
            let mut table = transaction.open_table(TABLE).expect("a table");
            for (number, record) in records {
                table.insert(number, record.as_slice()).expect("room");
            }
        }
        transaction.commit().expect("room");
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
            .expect("a directory");
        let records = database
            .keyspace("records", fjall::KeyspaceCreateOptions::default)
            .expect("a keyspace");
        Self { database, records }
    }
}

impl Commit for Fjall {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]) {
        let mut batch = self.database.batch();
        for (number, record) in records {
            batch.insert(&self.records, number.to_be_bytes(), record.as_slice());
        }
        batch.commit().expect("room");
        self.database
            .persist(fjall::PersistMode::SyncData)
            .expect("room");
    }
}

pub struct Log(File, Vec<u8>);

impl Log {
    pub fn open(directory: &Path) -> Self {
        Self(
            File::create(directory.join("peer.log")).expect("a file"),
            Vec::new(),
        )
    }
}

impl Commit for Log {
    fn commit(&mut self, records: &[(u64, Vec<u8>)]) {
        self.1.clear();
        for (number, record) in records {
            self.1.extend_from_slice(&number.to_le_bytes());
            self.1.extend_from_slice(record);
        }
        self.0.write_all(&self.1).expect("room");
        self.0.sync_data().expect("room");
    }
}
