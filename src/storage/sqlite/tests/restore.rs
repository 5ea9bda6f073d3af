//! Restoring a backup.

use super::{file_set::crash_after_backup, *};
use crate::storage::sqlite::restore::restore;

// Rules: SQLITE-12
#[tokio::test]
async fn restore_replaces_files_of_killed_server_and_keeps_them() {
    let (database, backup) = crash_after_backup(10, 30).await;
    let previous = restore(&backup, &database.path()).unwrap().unwrap();
    assert!(!database.with_suffix("-wal").exists());
    for (path, written) in [(database.path(), 10), (previous, 30)] {
        let storage = SqliteStorage::open(&path).unwrap();
        let numbers = loaded_numbers(&storage).await.unwrap();
        assert!(numbers.into_iter().eq(1..=written), "{}", path.display());
    }
}

// Rules: SQLITE-12
#[tokio::test]
async fn restore_of_missing_file_with_acknowledged_writes_succeeds() {
    let (database, backup) = crash_after_backup(10, 30).await;
    fs::remove_file(database.path()).unwrap();
    assert_eq!(restore(&backup, &database.path()).unwrap(), None);
    let storage = database.open().unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap().len(), 10);
}

// Rules: SQLITE-12
#[tokio::test]
async fn rejected_restore_modifies_no_file() {
    let (database, backup) = crash_after_backup(10, 30).await;
    let assert_rejected = |backup: &std::path::Path, expected: &str| {
        let before = read_files(&database);
        let error = restore(backup, &database.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(read_files(&database) == before, "{error}");
    };
    assert_rejected(&database.0.path().join("no.db"), "there is no file");
    let text = database.0.path().join("text");
    fs::write(&text, "not a database".repeat(100)).unwrap();
    assert_rejected(&text, "not a SQLite file");

    let damaged = database.0.path().join("damaged.db");
    fs::copy(&backup, &damaged).unwrap();
    let connection = rusqlite::Connection::open(&damaged).unwrap();
    let damage = "UPDATE operations SET record = x'00' WHERE number = 7";
    connection.execute_batch(damage).unwrap();
    drop(connection);
    assert_rejected(&damaged, "number 7 is damaged");

    let lock = lock_file::LockFile::acquire(&database.path()).unwrap();
    assert_rejected(&backup, "in use by another process");
    drop(lock);
    fs::write(database.with_suffix(".before-restore"), "older").unwrap();
    assert_rejected(&backup, ".before-restore already exists");
    let error = restore(&backup, &backup).unwrap_err().to_string();
    assert!(error.contains("is the backup itself"), "{error}");
}
