//! How a file is opened, and what is refused: those of others, those in use, and
//! those that are not whole.

use rusqlite::params;

use super::*;

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
fn a_link_to_a_file_that_is_not_there_yet_leads_to_the_same_lock() {
    let place = Place::new();
    let link = place.0.path().join("link.db");
    std::os::unix::fs::symlink("operations.db", &link).unwrap();
    let journal = SqliteJournal::open(&link).unwrap();
    assert!(place.path().is_file(), "it is made where the link leads");
    assert!(place.refusal().contains("in use"), "{}", place.refusal());
    let again = SqliteJournal::open(&link).unwrap_err().to_string();
    assert!(again.contains("in use"), "{again}");
    drop(journal);
    place.open().unwrap();
}

#[test]
fn a_file_with_two_names_is_refused_by_both() {
    let place = Place::new();
    drop(place.open().unwrap());
    let other = place.0.path().join("other.db");
    fs::hard_link(place.path(), &other).unwrap();
    for path in [&place.path(), &other] {
        let refusal = SqliteJournal::open(path).unwrap_err().to_string();
        assert!(refusal.contains("2 names"), "{refusal}");
        assert!(refusal.contains("remove the others"), "{refusal}");
    }
    fs::remove_file(other).unwrap();
    place.open().unwrap();
}

#[tokio::test]
async fn who_is_told_to_stop_a_process_is_not_told_of_the_one_before() {
    let place = Place::new();
    let journal = place.open().unwrap();
    put(&journal, 1..10).await;
    let place = crash(&place, journal);
    // It has died, and what it noted stays.
    let note = fs::read_to_string(place.beside("-lock")).unwrap();
    let others = format!("{:<10} {}", 4711, note.split_at(11).1);
    fs::write(place.beside("-lock"), others).unwrap();
    let lock = lock::Lock::take(&place.path()).unwrap();
    assert!(
        place
            .refusal()
            .contains(&format!("(pid {})", std::process::id())),
        "{}",
        place.refusal()
    );
    drop(lock);
    fs::remove_file(place.beside("-wal")).unwrap();
    assert!(place.refusal().contains("9 were acknowledged"));
}

#[tokio::test]
async fn a_note_that_is_torn_refuses_no_file_that_is_whole() {
    let place = Place::new();
    let journal = place.open().unwrap();
    put(&journal, 1..10).await;
    let place = crash(&place, journal);
    let note = fs::read_to_string(place.beside("-lock")).unwrap();
    let count = "00000000000000000009";
    assert!(note.contains(count), "{note}");
    fs::write(
        place.beside("-lock"),
        note.replace(count, "00000000000000000019"),
    )
    .unwrap();
    let journal = place.open().unwrap();
    assert_eq!(replayed(&journal).await.unwrap().len(), 9);
}

#[tokio::test]
async fn a_log_that_somebody_reads_is_not_built_upon() {
    let place = Place::new();
    let journal = place.open().unwrap();
    put(&journal, 1..10).await;
    let place = crash(&place, journal);
    let reader = reading(&place.path());
    let opened = file::File::open_within(&place.path(), Duration::from_millis(10));
    let refusal = opened.unwrap_err().to_string();
    assert!(
        refusal.contains("another program reads") && refusal.contains("end it first"),
        "{refusal}"
    );
    drop(reader);
    let journal = place.open().unwrap();
    assert_eq!(replayed(&journal).await.unwrap().len(), 9);
}

#[tokio::test]
async fn the_newest_time_that_was_kept_is_known_after_a_restart() {
    let place = Place::new();
    let journal = place.open().unwrap();
    assert_eq!(journal.newest(), None);
    put(&journal, 1..10).await;
    put(&journal, 3..5).await;
    let gone = keep(&journal, Entry::Forget(operation(9, 10)));
    gone.await.unwrap();
    let newest = Some(Timestamp::from_nanos(9));
    assert_eq!(journal.newest(), newest);
    let place = crash(&place, journal);
    let journal = place.open().unwrap();
    assert_eq!(journal.newest(), newest);
    put(&journal, 4..5).await;
    journal.close().await;
    assert_eq!(place.open().unwrap().newest(), newest);
}

#[test]
fn an_error_of_the_disk_says_what_is_to_be_done() {
    use rusqlite::ffi;
    for (code, expected) in [
        (ffi::SQLITE_FULL, "is full: make room"),
        (ffi::SQLITE_IOERR_SHMSIZE, "is full: make room"),
        (ffi::SQLITE_IOERR_SHMMAP, "-shm cannot be mapped"),
        (ffi::SQLITE_IOERR_WRITE, "quota is used up"),
        (ffi::SQLITE_IOERR_WRITE, "code 778"),
        (ffi::SQLITE_IOERR_FSYNC, "fails: "),
        (ffi::SQLITE_IOERR_FSYNC, "code 1034"),
        (ffi::SQLITE_CANTOPEN, "the disk is not full"),
        (ffi::SQLITE_READONLY_DIRECTORY, "cannot be written"),
        (ffi::SQLITE_BUSY_RECOVERY, "locked by another program"),
        (ffi::SQLITE_NOMEM, "code 7"),
    ] {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let refusal = refusal::describe("a.db".as_ref(), &error).to_string();
        assert!(refusal.contains(expected), "{code}: {refusal}");
        assert!(refusal.contains("a.db"), "{code}: {refusal}");
    }
    let full = std::io::ErrorKind::StorageFull.into();
    let refusal = refusal::failed("a.db".as_ref(), &full).to_string();
    assert!(refusal.contains("is full: make room"), "{refusal}");
}

#[test]
fn files_of_others_and_of_newer_versions_are_refused_and_not_touched() {
    let place = Place::new();
    fs::write(place.path(), "a letter to my mother, which is long enough to be read as the head of a file, and is none at all").unwrap();
    assert!(place.refusal().contains("not a SQLite file"));
    assert!(!place.beside("-lock").exists());
    fs::remove_file(place.path()).unwrap();

    place.sql("CREATE TABLE letters (text TEXT)");
    let before = fs::read(place.path()).unwrap();
    assert!(
        place.refusal().contains("another program"),
        "{}",
        place.refusal()
    );
    assert_eq!(fs::read(place.path()).unwrap(), before);
    assert!(!place.beside("-lock").exists(), "nothing is left beside it");
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
        assert!(refusal.contains("have just put a backup here"), "{refusal}");
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
