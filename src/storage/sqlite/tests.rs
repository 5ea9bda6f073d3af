//! Storage in a SQLite file, as only the file shows it: what is stored, damaged files, backup and recovery.
#![cfg(feature = "cli")]

mod capacity;
mod file_set;
mod open_files;
mod opening;
mod restore;

use std::{fs, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::{
    clock::Timestamp,
    operation::{
        Operation, name::OperationName, options::ExecutionOptions, payload::Payload,
        spec::OperationSpec,
    },
};

struct TempDatabase(TempDir);

impl TempDatabase {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("operations.db")
    }

    fn with_suffix(&self, suffix: &str) -> PathBuf {
        let mut path = self.path().into_os_string();
        path.push(suffix);
        path.into()
    }

    fn open(&self) -> Result<SqliteStorage, StorageError> {
        SqliteStorage::open(self.path())
    }

    fn open_error(&self) -> String {
        self.open().unwrap_err().to_string()
    }

    fn execute(&self, sql: &str) {
        let connection = rusqlite::Connection::open(self.path()).unwrap();
        connection.execute_batch(sql).unwrap();
    }
}

fn operation(number: u64, input_bytes: usize) -> Arc<Operation> {
    let input = Payload::new(prost_types::Any {
        type_url: "acme.v1.Thing".into(),
        value: vec![5; input_bytes],
    });
    let spec = OperationSpec {
        name: OperationName::parse(format!("operations/x{number}")).unwrap(),
        number,
        options: Arc::new(ExecutionOptions::default()),
        attributes: None,
        input: input.ok(),
        metadata: None,
        not_before: None,
        initial_lease: None,
    };
    // The time identifies the operation.
    let now = Timestamp::from_nanos(i64::try_from(number).unwrap());
    Arc::new(Operation::new(spec, now))
}

/// Returns the result of one write.
async fn write(storage: &SqliteStorage, write: Write) -> Result<(), WriteError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    storage.write(write, Completion::new(|result| drop(sender.send(result))));
    receiver.await.unwrap()
}

async fn put(storage: &SqliteStorage, numbers: std::ops::Range<u64>) {
    put_with_input(storage, numbers, 10).await;
}

/// Writes operations with inputs of this size.
async fn put_with_input(
    storage: &SqliteStorage,
    numbers: std::ops::Range<u64>,
    input_bytes: usize,
) {
    let puts = numbers.map(|number| write(storage, Write::Put(operation(number, input_bytes))));
    for result in futures_util::future::join_all(puts).await {
        result.unwrap();
    }
}

async fn loaded_numbers(storage: &SqliteStorage) -> Result<Vec<u64>, StorageError> {
    let loaded: Arc<Mutex<Vec<u64>>> = Arc::default();
    let numbers = loaded.clone();
    let sink: LoadSink =
        Arc::new(move |operation: Operation| numbers.lock().push(operation.number()));
    storage.load(sink).await?;
    let mut loaded = std::mem::take(&mut *loaded.lock());
    loaded.sort_unstable();
    Ok(loaded)
}

/// Opens a connection that is in a read transaction.
fn open_reader(path: &std::path::Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch("BEGIN; SELECT count(*) FROM file_info")
        .unwrap();
    connection
}

/// All files of a database, with their contents.
type Files = std::collections::BTreeMap<PathBuf, Vec<u8>>;

fn read_files(database: &TempDatabase) -> Files {
    let entries = fs::read_dir(database.0.path()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

/// Simulates `kill -9`: the WAL is left as it is, and the lock is free.
fn simulate_crash(database: &TempDatabase, storage: SqliteStorage) -> TempDatabase {
    let crashed = TempDatabase::new();
    for suffix in ["", "-wal", "-lock"] {
        fs::copy(database.with_suffix(suffix), crashed.with_suffix(suffix)).unwrap();
    }
    drop(storage);
    crashed
}

#[tokio::test]
async fn write_error_is_cleared_when_writer_ends_unexpectedly() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    let guard = WriterGuard {
        inner: storage.inner.clone(),
        is_finished: false,
    };
    *storage.inner.write_error.lock() = Some("disk full".to_owned());
    storage.inner.queue.lock().is_writer_running = true;
    let pending = write(&storage, Write::Put(operation(1, 10)));
    let (result, ()) = futures_util::join!(pending, async { drop(guard) });
    assert!(result.is_err(), "the queued write is failed");
    assert_eq!(storage.write_error(), None);
    // The next write starts another writer.
    put(&storage, 2..3).await;
    assert_eq!(loaded_numbers(&storage).await.unwrap(), [2]);
}

// Rules: DUR-5
#[tokio::test]
async fn puts_and_deletes_survive_restart() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..2000).await;
    for number in 1..1000 {
        let delete = write(&storage, Write::Remove(operation(number, 10)));
        delete.await.unwrap();
    }
    let large = operation(5000, 100_000);
    write(&storage, Write::Put(large.clone())).await.unwrap();
    storage.close().await;
    assert!(write(&storage, Write::Put(large)).await.is_err());
    assert!(
        !database.with_suffix("-wal").exists(),
        "a clean end leaves one file"
    );

    let storage = database.open().unwrap();
    let expected: Vec<u64> = (1000..2000).chain([5000]).collect();
    assert_eq!(loaded_numbers(&storage).await.unwrap(), expected);
}

// Rules: SQLITE-4
#[tokio::test]
async fn damaged_record_fails_load_and_recover_skips_it() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..1000).await;
    storage.close().await;
    database.execute("UPDATE operations SET record = CAST(substr(record, 1, 9) || x'aa' || substr(record, 11) AS BLOB) WHERE number = 7");
    let storage = database.open().unwrap();
    let error = loaded_numbers(&storage).await.unwrap_err().to_string();
    assert!(
        error.contains("number 7") && error.contains("--recover"),
        "{error}"
    );
    drop(storage);

    let recovered = database.0.path().join("saved.db");
    let (count, unreadable) = backup::recover(&database.path(), &recovered).unwrap();
    assert_eq!((count, unreadable.len()), (998, 1), "{unreadable:?}");
    let storage = SqliteStorage::open(&recovered).unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap().len(), 998);
    assert_eq!(storage.last_timestamp(), Some(Timestamp::from_nanos(999)));
}

#[tokio::test]
async fn load_of_damaged_record_ends_with_one_decode_thread() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..9000).await;
    storage.close().await;
    database.execute("UPDATE operations SET record = x'00' WHERE number = 7");
    let path = database.path();
    let load = tokio::task::spawn_blocking(move || load::load_all(&path, 1, &|_| {}));
    let error = load.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("number 7"), "{error}");
}

// Rules: SQLITE-4
#[tokio::test]
async fn recover_loses_only_operations_of_a_damaged_page() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..3000).await;
    storage.close().await;
    let mut bytes = fs::read(database.path()).unwrap();
    let page = bytes.len() / 4096 / 2 * 4096;
    bytes[page..page + 4096].fill(0xaa);
    fs::write(database.path(), bytes).unwrap();
    let storage = database.open().unwrap();
    let error = loaded_numbers(&storage).await.unwrap_err().to_string();
    assert!(
        error.contains("damaged") && error.contains("backup"),
        "{error}"
    );
    drop(storage);
    let recovered = database.0.path().join("saved.db");
    let (count, unreadable) = backup::recover(&database.path(), &recovered).unwrap();
    assert!(2900 < count && count < 2999, "{count}");
    assert_eq!(unreadable.len(), 1, "{unreadable:?}");
    let storage = SqliteStorage::open(&recovered).unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap().len() as u64, count);
}

// Rules: SQLITE-16
#[tokio::test]
async fn file_that_lacks_operations_fails_load_backup_and_restore() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..1000).await;
    put(&storage, 500..600).await;
    let delete = write(&storage, Write::Remove(operation(7, 10)));
    delete.await.unwrap();
    storage.close().await;
    let storage = database.open().unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap().len(), 998);
    storage.close().await;
    // A misdirected write: the root of the table is one of its leaves.
    let connection = rusqlite::Connection::open(database.path()).unwrap();
    let root: u64 = connection
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'operations'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    drop(connection);
    let root = usize::try_from(root).unwrap();
    let mut bytes = fs::read(database.path()).unwrap();
    let leaf = bytes
        .chunks(4096)
        .rposition(|page| page[0] == 0x0d)
        .expect("the table has leaves");
    bytes.copy_within(leaf * 4096..(leaf + 1) * 4096, (root - 1) * 4096);
    fs::write(database.path(), bytes).unwrap();

    let storage = database.open().unwrap();
    let error = loaded_numbers(&storage).await.unwrap_err().to_string();
    assert!(error.contains("but 998 were stored"), "{error}");
    drop(storage);
    let copy = database.0.path().join("copy.db");
    let error = backup::backup(&database.path(), &copy).unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
    let target = database.0.path().join("target.db");
    let error = super::restore::restore(&database.path(), &target).unwrap_err();
    assert!(error.to_string().contains("998 were stored"), "{error}");
    let (count, unreadable) = backup::recover(&database.path(), &copy).unwrap();
    assert!(unreadable[0].contains("998 were stored"), "{unreadable:?}");
    let storage = SqliteStorage::open(&copy).unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap().len() as u64, count);
}

// Rules: SQLITE-5
#[tokio::test]
async fn backup_during_writes_is_a_consistent_snapshot() {
    let database = TempDatabase::new();
    let storage = Arc::new(database.open().unwrap());
    put(&storage, 1..500).await;
    let writes = put(&storage, 500..3000);
    let to = database.0.path().join("backup.db");
    let (from, into) = (database.path(), to.clone());
    let backup = tokio::task::spawn_blocking(move || backup::backup(&from, &into));
    let ((), backup) = tokio::join!(writes, backup);
    backup.unwrap().unwrap();
    assert!(
        backup::backup(&database.path(), &to).is_err(),
        "nothing is written over"
    );
    let copied = SqliteStorage::open(&to).unwrap();
    let numbers = loaded_numbers(&copied).await.unwrap();
    assert!(499 <= numbers.len());
    // The file holds a prefix of the writes: none without those before it.
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64));
    assert_eq!(loaded_numbers(&storage).await.unwrap().len(), 2999);
}

// Rules: SQLITE-5
#[test]
fn copy_with_open_reader_fails_and_leaves_no_files() {
    let database = TempDatabase::new();
    let partial = database.with_suffix(".partial");
    let reader = Mutex::new(None);
    // A reader of the unfinished copy keeps its WAL from being truncated.
    let result = backup::write_atomically(&database.path(), |partial| {
        let connection = database::create(partial)?;
        *reader.lock() = Some(open_reader(partial));
        connection
            .execute_batch("UPDATE file_info SET write_count = 1")
            .unwrap();
        connection.busy_timeout(Duration::from_millis(10)).unwrap();
        backup::close_as_single_file(connection, partial)
    });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");
    drop(reader);
    for suffix in ["", ".partial", ".partial-wal", ".partial-shm"] {
        assert!(!database.with_suffix(suffix).exists(), "{suffix}");
    }
    assert!(!partial.exists());
}

// Rules: SQLITE-5
#[test]
fn backup_beside_foreign_wal_is_rejected() {
    let (from, database) = (TempDatabase::new(), TempDatabase::new());
    drop(from.open().unwrap());
    fs::write(database.with_suffix("-wal"), "of a file that was removed").unwrap();
    let error = backup::backup(&from.path(), &database.path()).unwrap_err();
    assert!(error.to_string().contains("-wal already exists"), "{error}");
}

// Rules: SHUTDOWN-5
#[tokio::test]
async fn writes_after_runtime_shutdown_fail_without_blocking() {
    let database = TempDatabase::new();
    let storage = Arc::new(database.open().unwrap());
    let shared = storage.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { shared.load(Arc::new(|_| {})).await })
    });
    thread.join().unwrap().unwrap();
    for number in 1..=2 {
        let result = write(&storage, Write::Put(operation(number, 10))).await;
        assert!(result.is_err());
    }
}
