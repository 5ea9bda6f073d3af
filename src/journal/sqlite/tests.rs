//! What only the file shows: how it is opened, what is refused, what is noticed.
#![cfg(feature = "cli")]

use std::{fs, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use rusqlite::params;
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
    Arc::new(Operation::new(birth, Timestamp::from_nanos(7)))
}

/// What becomes of a change.
async fn keep(journal: &SqliteJournal, entry: Entry) -> Result<(), JournalError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    journal.append(entry, Then::new(|kept| drop(tell.send(kept))));
    told.await.unwrap()
}

async fn put(journal: &SqliteJournal, numbers: std::ops::Range<u64>) {
    let puts = numbers.map(|number| keep(journal, Entry::Put(operation(number, 10))));
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
async fn a_second_process_is_refused_and_told_who_has_the_file() {
    let place = Place::new();
    let journal = place.open().unwrap();
    let refusal = place.refusal();
    let pid = std::process::id().to_string();
    assert!(
        refusal.contains("in use") && refusal.contains(&pid),
        "{refusal}"
    );
    // By another path too.
    let link = place.0.path().join("link.db");
    std::os::unix::fs::symlink(place.path(), &link).unwrap();
    assert!(SqliteJournal::open(&link).is_err());
    drop(journal);
    place.open().unwrap();
}

#[test]
fn files_of_others_and_of_newer_versions_are_refused_and_not_touched() {
    let place = Place::new();
    fs::write(place.path(), "a letter to my mother, which is long enough to be read as the head of a file, and is none at all").unwrap();
    assert!(place.refusal().contains("not a SQLite file"));
    fs::remove_file(place.path()).unwrap();

    place.sql("CREATE TABLE letters (text TEXT)");
    let before = fs::read(place.path()).unwrap();
    assert!(
        place.refusal().contains("another program"),
        "{}",
        place.refusal()
    );
    assert_eq!(fs::read(place.path()).unwrap(), before);
    fs::remove_file(place.path()).unwrap();

    drop(place.open().unwrap());
    place.sql("PRAGMA user_version = 99");
    assert!(
        place.refusal().contains("newer longrunning"),
        "{}",
        place.refusal()
    );

    let nowhere = SqliteJournal::open(place.0.path().join("no/such.db")).unwrap_err();
    assert!(nowhere.to_string().contains("directory"), "{nowhere}");
    let directory = SqliteJournal::open(place.0.path()).unwrap_err();
    assert!(directory.to_string().contains("cannot be"), "{directory}");
}

#[tokio::test]
async fn a_log_that_was_lost_or_cut_is_noticed() {
    for cut in [None, Some(0), Some(5_000)] {
        let place = Place::new();
        let journal = place.open().unwrap();
        put(&journal, 1..100).await;
        let place = crash(&place, journal);
        match cut {
            None => fs::remove_file(place.beside("-wal")).unwrap(),
            Some(length) => {
                let log = fs::File::options().write(true).open(place.beside("-wal"));
                log.unwrap().set_len(length).unwrap();
            }
        }
        let refusal = place.refusal();
        assert!(refusal.contains("were acknowledged"), "{refusal}");
        // The way out that the text names.
        fs::remove_file(place.beside("-lock")).unwrap();
        place.open().unwrap();
    }
}

#[tokio::test]
async fn a_log_that_is_whole_is_taken_over_and_so_is_a_fresh_file() {
    let place = Place::new();
    let journal = place.open().unwrap();
    put(&journal, 1..100).await;
    let place = crash(&place, journal);
    let journal = place.open().unwrap();
    assert_eq!(replayed(&journal).await.unwrap().len(), 99);
    drop(journal);
    // Who removes the file and leaves the lock wants to begin anew.
    fs::remove_file(place.path()).unwrap();
    let _ = fs::remove_file(place.beside("-wal"));
    let journal = place.open().unwrap();
    assert!(replayed(&journal).await.unwrap().is_empty());
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

#[tokio::test]
async fn the_log_stays_short_while_commits_go_on() {
    let place = Place::new();
    let journal = place.open().unwrap();
    let mut longest = 0;
    for round in 0..300 {
        put(&journal, round * 100 + 1..round * 100 + 101).await;
        let log = fs::metadata(place.beside("-wal")).unwrap().len();
        longest = longest.max(log);
    }
    assert!(longest < 4 * 2048 * 4096, "{longest}");
    assert_eq!(replayed(&journal).await.unwrap().len(), 30_000);
}

#[tokio::test]
async fn a_file_of_an_older_schema_is_brought_up_once_or_not_at_all() {
    let mut connection = rusqlite::Connection::open_in_memory().unwrap();
    let version = |connection: &rusqlite::Connection| -> i64 {
        connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap()
    };
    let base = "CREATE TABLE journal (id TEXT, changes INTEGER);";
    file::migrate(&mut connection, &[base]).unwrap();
    file::migrate(&mut connection, &[base]).unwrap();
    assert_eq!(version(&connection), 1);
    let more = "ALTER TABLE journal ADD COLUMN more TEXT";
    file::migrate(&mut connection, &[base, more]).unwrap();
    assert_eq!(version(&connection), 2);
    assert!(
        file::migrate(
            &mut connection,
            &[base, more, "CREATE TABLE x (y)", "nonsense"]
        )
        .is_err()
    );
    assert_eq!(version(&connection), 2);
    let tables = connection.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name = 'x'",
        params![],
        |row| row.get::<_, i64>(0),
    );
    assert_eq!(tables.unwrap(), 0);
}
