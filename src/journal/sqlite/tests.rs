//! What only the file shows: what is kept, what is damaged, what is copied. How it
//! is opened is in `opening`, what it takes of the disk in `room`.
#![cfg(feature = "cli")]

mod opening;
mod room;

use std::{fs, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::{
    clock::Timestamp,
    operation::{
        birth::Birth, name::OperationName, operation::Operation, payload::Payload, terms::Terms,
    },
};

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("operations.db")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path().into_os_string();
        path.push(suffix);
        path.into()
    }

    fn open(&self) -> Result<SqliteJournal, JournalError> {
        SqliteJournal::open(self.path())
    }

    fn refusal(&self) -> String {
        self.open().unwrap_err().to_string()
    }

    fn sql(&self, sql: &str) {
        let connection = rusqlite::Connection::open(self.path()).unwrap();
        connection.execute_batch(sql).unwrap();
    }
}

fn operation(number: u64, input: usize) -> Arc<Operation> {
    let input = Payload::new(prost_types::Any {
        type_url: "acme.v1.Thing".into(),
        value: vec![5; input],
    });
    let birth = Birth {
        name: OperationName::parse(format!("operations/x{number}")).unwrap(),
        number,
        terms: Arc::new(Terms::default()),
        tags: None,
        input: input.ok(),
        metadata: None,
        not_before: None,
        holder: None,
    };
    // The time says which one it is.
    let now = Timestamp::from_nanos(i64::try_from(number).unwrap());
    Arc::new(Operation::new(birth, now))
}

/// What becomes of a change.
async fn keep(journal: &SqliteJournal, entry: Entry) -> Result<(), Unkept> {
    let (tell, told) = tokio::sync::oneshot::channel();
    journal.append(entry, Then::new(|kept| drop(tell.send(kept))));
    told.await.unwrap()
}

async fn put(journal: &SqliteJournal, numbers: std::ops::Range<u64>) {
    put_large(journal, numbers, 10).await;
}

/// With inputs of so many bytes.
async fn put_large(journal: &SqliteJournal, numbers: std::ops::Range<u64>, input: usize) {
    let puts = numbers.map(|number| keep(journal, Entry::Put(operation(number, input))));
    for kept in futures_util::future::join_all(puts).await {
        kept.unwrap();
    }
}

async fn replayed(journal: &SqliteJournal) -> Result<Vec<u64>, JournalError> {
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let numbers = seen.clone();
    let show: Show = Arc::new(move |operation: Operation| numbers.lock().push(operation.number()));
    journal.replay(show).await?;
    let mut seen = std::mem::take(&mut *seen.lock());
    seen.sort_unstable();
    Ok(seen)
}

/// A connection in the middle of reading.
fn reading(path: &std::path::Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch("BEGIN; SELECT count(*) FROM journal")
        .unwrap();
    connection
}

/// What a `kill -9` leaves behind: the log as it is, and no lock.
fn crash(place: &Place, journal: SqliteJournal) -> Place {
    let after = Place::new();
    for suffix in ["", "-wal", "-lock"] {
        fs::copy(place.beside(suffix), after.beside(suffix)).unwrap();
    }
    drop(journal);
    after
}

#[tokio::test]
async fn what_was_kept_is_there_again_and_what_was_forgotten_is_not() {
    let place = Place::new();
    let journal = place.open().unwrap();
    put(&journal, 1..2000).await;
    for number in 1..1000 {
        let forget = keep(&journal, Entry::Forget(operation(number, 10)));
        forget.await.unwrap();
    }
    let large = operation(5000, 100_000);
    keep(&journal, Entry::Put(large.clone())).await.unwrap();
    journal.close().await;
    assert!(keep(&journal, Entry::Put(large)).await.is_err());
    assert!(
        !place.beside("-wal").exists(),
        "a clean end leaves one file"
    );

    let journal = place.open().unwrap();
    let expected: Vec<u64> = (1000..2000).chain([5000]).collect();
    assert_eq!(replayed(&journal).await.unwrap(), expected);
}

#[tokio::test]
async fn a_damaged_record_is_noticed_named_and_can_be_left_behind() {
    let place = Place::new();
    let journal = place.open().unwrap();
    put(&journal, 1..1000).await;
    journal.close().await;
    place.sql("UPDATE operations SET record = CAST(substr(record, 1, 9) || x'aa' || substr(record, 11) AS BLOB) WHERE number = 7");
    let journal = place.open().unwrap();
    let refusal = replayed(&journal).await.unwrap_err().to_string();
    assert!(
        refusal.contains("number 7") && refusal.contains("--salvage"),
        "{refusal}"
    );
    drop(journal);

    let saved = place.0.path().join("saved.db");
    let (count, lost) = copy::salvage(&place.path(), &saved).unwrap();
    assert_eq!((count, lost.len()), (998, 1), "{lost:?}");
    let journal = SqliteJournal::open(&saved).unwrap();
    assert_eq!(replayed(&journal).await.unwrap().len(), 998);
    assert_eq!(journal.newest(), Some(Timestamp::from_nanos(999)));
}

#[tokio::test]
async fn a_replay_that_meets_damage_ends_also_with_one_processor() {
    let place = Place::new();
    let journal = place.open().unwrap();
    put(&journal, 1..9000).await;
    journal.close().await;
    place.sql("UPDATE operations SET record = x'00' WHERE number = 7");
    let path = place.path();
    let replay = tokio::task::spawn_blocking(move || replay::all(&path, 1, &|_| {}));
    let refusal = replay.await.unwrap().unwrap_err().to_string();
    assert!(refusal.contains("number 7"), "{refusal}");
}

#[tokio::test]
async fn a_damaged_page_costs_no_more_than_what_stood_on_it() {
    let place = Place::new();
    let journal = place.open().unwrap();
    put(&journal, 1..3000).await;
    journal.close().await;
    let mut bytes = fs::read(place.path()).unwrap();
    let page = bytes.len() / 4096 / 2 * 4096;
    bytes[page..page + 4096].fill(0xaa);
    fs::write(place.path(), bytes).unwrap();
    let journal = place.open().unwrap();
    let refusal = replayed(&journal).await.unwrap_err().to_string();
    assert!(
        refusal.contains("damaged") && refusal.contains("backup"),
        "{refusal}"
    );
    drop(journal);
    let saved = place.0.path().join("saved.db");
    let (count, lost) = copy::salvage(&place.path(), &saved).unwrap();
    assert!(2900 < count && count < 2999, "{count}");
    assert_eq!(lost.len(), 1, "{lost:?}");
    let journal = SqliteJournal::open(&saved).unwrap();
    assert_eq!(replayed(&journal).await.unwrap().len() as u64, count);
}

#[tokio::test]
async fn a_backup_is_one_moment_of_a_file_that_is_written_meanwhile() {
    let place = Place::new();
    let journal = Arc::new(place.open().unwrap());
    put(&journal, 1..500).await;
    let writes = put(&journal, 500..3000);
    let to = place.0.path().join("backup.db");
    let (from, into) = (place.path(), to.clone());
    let backup = tokio::task::spawn_blocking(move || copy::backup(&from, &into));
    let ((), backup) = tokio::join!(writes, backup);
    backup.unwrap().unwrap();
    assert!(
        copy::backup(&place.path(), &to).is_err(),
        "nothing is written over"
    );
    let copied = SqliteJournal::open(&to).unwrap();
    let numbers = replayed(&copied).await.unwrap();
    assert!(499 <= numbers.len());
    // What is there is a beginning: no change without those before it.
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64));
    assert_eq!(replayed(&journal).await.unwrap().len(), 2999);
}

#[test]
fn a_copy_that_cannot_be_put_into_one_file_is_an_error_and_leaves_nothing() {
    let place = Place::new();
    let partial = place.beside(".partial");
    let reader = Mutex::new(None);
    // Somebody looks at the unfinished copy, so that its log cannot be emptied.
    let refused = copy::write_whole(&place.path(), |partial| {
        let connection = file::create(partial)?;
        *reader.lock() = Some(reading(partial));
        connection
            .execute_batch("UPDATE journal SET changes = 1")
            .unwrap();
        connection.busy_timeout(Duration::from_millis(10)).unwrap();
        copy::finish(connection, partial)
    });
    let refusal = refused.unwrap_err().to_string();
    assert!(refusal.contains("another program"), "{refusal}");
    drop(reader);
    for suffix in ["", ".partial", ".partial-wal", ".partial-shm"] {
        assert!(!place.beside(suffix).exists(), "{suffix}");
    }
    assert!(!partial.exists());
}

#[test]
fn a_copy_beside_the_log_of_another_file_is_refused() {
    let (from, place) = (Place::new(), Place::new());
    drop(from.open().unwrap());
    fs::write(place.beside("-wal"), "of a file that was removed").unwrap();
    let refusal = copy::backup(&from.path(), &place.path()).unwrap_err();
    assert!(refusal.to_string().contains("-wal exists"), "{refusal}");
}

#[tokio::test]
async fn a_journal_whose_runtime_has_ended_refuses_changes_and_holds_nobody_up() {
    let place = Place::new();
    let journal = Arc::new(place.open().unwrap());
    let used = journal.clone();
    let elsewhere = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { used.replay(Arc::new(|_| {})).await })
    });
    elsewhere.join().unwrap().unwrap();
    for number in 1..=2 {
        let kept = keep(&journal, Entry::Put(operation(number, 10))).await;
        assert!(kept.is_err());
    }
}
