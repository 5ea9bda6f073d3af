//! Opening a file, and the files that are rejected: those of other programs, of running processes, and damaged ones.

use rusqlite::params;

use super::*;

// Rules: SQLITE-1
#[tokio::test]
async fn second_process_is_rejected_with_pid_of_lock_holder() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    let error = database.open_error();
    let pid = std::process::id().to_string();
    assert!(error.contains("in use") && error.contains(&pid), "{error}");
    // Also by another path.
    let link = database.0.path().join("link.db");
    std::os::unix::fs::symlink(database.path(), &link).unwrap();
    assert!(SqliteStorage::open(&link).is_err());
    drop(storage);
    database.open().unwrap();
}

// Rules: SQLITE-1
#[test]
fn dangling_symlink_creates_target_and_shares_its_lock() {
    let database = TempDatabase::new();
    let link = database.0.path().join("link.db");
    std::os::unix::fs::symlink("operations.db", &link).unwrap();
    let storage = SqliteStorage::open(&link).unwrap();
    assert!(database.path().is_file(), "it is made where the link leads");
    assert!(
        database.open_error().contains("in use"),
        "{}",
        database.open_error()
    );
    let error = SqliteStorage::open(&link).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    drop(storage);
    database.open().unwrap();
}

// Rules: SQLITE-1
#[test]
fn file_with_two_hard_links_is_rejected_by_both_names() {
    let database = TempDatabase::new();
    drop(database.open().unwrap());
    let other = database.0.path().join("other.db");
    fs::hard_link(database.path(), &other).unwrap();
    for path in [&database.path(), &other] {
        let error = SqliteStorage::open(path).unwrap_err().to_string();
        assert!(error.contains("2 names"), "{error}");
        assert!(error.contains("remove the others"), "{error}");
    }
    fs::remove_file(other).unwrap();
    database.open().unwrap();
}

// Rules: SQLITE-1
#[tokio::test]
async fn in_use_error_names_current_pid_not_previous_one() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..10).await;
    let database = simulate_crash(&database, storage);
    // The process has died, and its acknowledged count is left.
    let lock_text = fs::read_to_string(database.with_suffix("-lock")).unwrap();
    let other_pid = format!("{:<10} {}", 4711, lock_text.split_at(11).1);
    fs::write(database.with_suffix("-lock"), other_pid).unwrap();
    let lock = lock_file::LockFile::acquire(&database.path()).unwrap();
    assert!(
        database
            .open_error()
            .contains(&format!("(pid {})", std::process::id())),
        "{}",
        database.open_error()
    );
    drop(lock);
    fs::remove_file(database.with_suffix("-wal")).unwrap();
    assert!(database.open_error().contains("9 were acknowledged"));
}

// Rules: SQLITE-2
#[tokio::test]
async fn torn_ack_record_does_not_reject_complete_database() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..10).await;
    let database = simulate_crash(&database, storage);
    let lock_text = fs::read_to_string(database.with_suffix("-lock")).unwrap();
    let count = "00000000000000000009";
    assert!(lock_text.contains(count), "{lock_text}");
    fs::write(
        database.with_suffix("-lock"),
        lock_text.replace(count, "00000000000000000019"),
    )
    .unwrap();
    let storage = database.open().unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap().len(), 9);
}

// Rules: SQLITE-1
#[tokio::test]
async fn open_fails_while_another_program_reads_leftover_wal() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..10).await;
    let database = simulate_crash(&database, storage);
    let reader = open_reader(&database.path());
    let result =
        database::Database::open_with_busy_timeout(&database.path(), Duration::from_millis(10));
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("another program reads") && error.contains("stop it first"),
        "{error}"
    );
    drop(reader);
    let storage = database.open().unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap().len(), 9);
}

// Rules: STATE-14
#[tokio::test]
async fn last_timestamp_survives_restart_and_deletes() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    assert_eq!(storage.last_timestamp(), None);
    put(&storage, 1..10).await;
    put(&storage, 3..5).await;
    let delete = write(&storage, Write::Remove(operation(9, 10)));
    delete.await.unwrap();
    let last_timestamp = Some(Timestamp::from_nanos(9));
    assert_eq!(storage.last_timestamp(), last_timestamp);
    let database = simulate_crash(&database, storage);
    let storage = database.open().unwrap();
    assert_eq!(storage.last_timestamp(), last_timestamp);
    put(&storage, 4..5).await;
    storage.close().await;
    assert_eq!(database.open().unwrap().last_timestamp(), last_timestamp);
}

// Rules: SQLITE-8
#[test]
fn disk_errors_name_file_and_remedy() {
    use rusqlite::ffi;
    for (code, expected) in [
        (ffi::SQLITE_FULL, "is full: free disk space"),
        (ffi::SQLITE_IOERR_SHMSIZE, "is full: free disk space"),
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
        let error = errors::sqlite_error("a.db".as_ref(), &error).to_string();
        assert!(error.contains(expected), "{code}: {error}");
        assert!(error.contains("a.db"), "{code}: {error}");
    }
    let full = std::io::ErrorKind::StorageFull.into();
    let error = errors::io_error("a.db".as_ref(), &full).to_string();
    assert!(error.contains("is full: free disk space"), "{error}");
}

// Rules: SQLITE-3
#[test]
fn foreign_and_newer_files_are_rejected_and_not_modified() {
    let database = TempDatabase::new();
    fs::write(database.path(), "a letter to my mother, which is long enough to be read as the head of a file, and is none at all").unwrap();
    assert!(database.open_error().contains("not a SQLite file"));
    assert!(!database.with_suffix("-lock").exists());
    fs::remove_file(database.path()).unwrap();

    database.execute("CREATE TABLE letters (text TEXT)");
    let before = fs::read(database.path()).unwrap();
    assert!(
        database.open_error().contains("another program"),
        "{}",
        database.open_error()
    );
    assert_eq!(fs::read(database.path()).unwrap(), before);
    assert!(
        !database.with_suffix("-lock").exists(),
        "nothing is left beside it"
    );
    fs::remove_file(database.path()).unwrap();

    drop(database.open().unwrap());
    for (version, advice) in [(99, "newer longrunning"), (1, "before the first release")] {
        database.execute(&format!("PRAGMA user_version = {version}"));
        let error = database.open_error();
        assert!(error.contains(advice), "{error}");
    }

    let missing_directory = SqliteStorage::open(database.0.path().join("no/such.db")).unwrap_err();
    assert!(
        missing_directory.to_string().contains("directory"),
        "{missing_directory}"
    );
    let directory = SqliteStorage::open(database.0.path()).unwrap_err();
    assert!(directory.to_string().contains("cannot be"), "{directory}");
}

// Rules: SQLITE-2
#[tokio::test]
async fn missing_or_truncated_wal_is_detected() {
    for cut in [None, Some(0), Some(5_000)] {
        let database = TempDatabase::new();
        let storage = database.open().unwrap();
        put(&storage, 1..100).await;
        let database = simulate_crash(&database, storage);
        match cut {
            None => fs::remove_file(database.with_suffix("-wal")).unwrap(),
            Some(length) => {
                let wal = fs::File::options()
                    .write(true)
                    .open(database.with_suffix("-wal"));
                wal.unwrap().set_len(length).unwrap();
            }
        }
        let before = read_files(&database);
        let error = database.open_error();
        assert_eq!(read_files(&database), before, "nothing is modified");
        assert!(error.contains("were acknowledged"), "{error}");
        assert!(error.contains("have just restored a backup"), "{error}");
        // The remedy that the error names.
        fs::remove_file(database.with_suffix("-lock")).unwrap();
        database.open().unwrap();
    }
}

// Rules: SQLITE-2
#[tokio::test]
async fn complete_wal_is_recovered() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..100).await;
    let database = simulate_crash(&database, storage);
    let storage = database.open().unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap().len(), 99);
}

// Rules: SQLITE-3
#[tokio::test]
async fn schema_steps_are_applied_once_and_all_or_none() {
    let mut connection = rusqlite::Connection::open_in_memory().unwrap();
    let version = |connection: &rusqlite::Connection| -> i64 {
        connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap()
    };
    let first =
        "CREATE TABLE file_info (file_id TEXT, write_count INTEGER, operation_count INTEGER);";
    schema::apply_schema_steps(&mut connection, &[first]).unwrap();
    schema::apply_schema_steps(&mut connection, &[first]).unwrap();
    let first_version = version(&connection);
    assert_ne!(first_version, 0);
    let second = "ALTER TABLE file_info ADD COLUMN more TEXT";
    schema::apply_schema_steps(&mut connection, &[first, second]).unwrap();
    assert_eq!(version(&connection), first_version + 1);
    let failing = [first, second, "CREATE TABLE x (y)", "nonsense"];
    assert!(schema::apply_schema_steps(&mut connection, &failing).is_err());
    assert_eq!(version(&connection), first_version + 1);
    let tables = connection.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name = 'x'",
        params![],
        |row| row.get::<_, i64>(0),
    );
    assert_eq!(tables.unwrap(), 0);
}
