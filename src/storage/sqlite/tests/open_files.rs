//! Files that are removed or replaced while they are open.

use super::*;

/// Asserts that the storage counts as unavailable and rejects writes.
async fn assert_unavailable(storage: &SqliteStorage, expected: &str) {
    let error = storage.write_error().expect("an idle storage notices it");
    assert!(error.contains(expected), "{error}");
    let rejected = write(storage, Write::Put(operation(50, 10))).await;
    let error = rejected.unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

// Rules: SQLITE-13
#[tokio::test]
async fn removed_file_is_noticed_and_storage_recovers_once_it_is_back() {
    for suffix in ["", "-wal", "-lock"] {
        let database = TempDatabase::new();
        let storage = database.open().unwrap();
        put(&storage, 1..10).await;
        assert_eq!(storage.write_error(), None);
        let (path, moved) = (database.with_suffix(suffix), database.with_suffix(".moved"));
        fs::rename(&path, &moved).unwrap();
        assert_unavailable(&storage, "was removed while the server has it open").await;
        fs::write(&path, "another file").unwrap();
        assert_unavailable(&storage, "was replaced while the server has it open").await;
        fs::rename(&moved, &path).unwrap();
        put(&storage, 10..20).await;
        assert_eq!(storage.write_error(), None);
        storage.close().await;
        assert_eq!(storage.write_error(), None, "closed, without a WAL");
        let storage = database.open().unwrap();
        assert_eq!(loaded_numbers(&storage).await.unwrap().len(), 19);
    }
}

// Rules: SQLITE-13
#[tokio::test]
async fn clean_stop_after_removal_of_wal_saves_acknowledged_writes() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..10).await;
    fs::remove_file(database.with_suffix("-wal")).unwrap();
    assert_unavailable(&storage, "stop the server with SIGTERM").await;
    storage.close().await;
    let storage = database.open().unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap().len(), 9);
}

// Rules: SQLITE-13
#[tokio::test]
async fn file_that_replaced_an_open_one_is_not_modified() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..10).await;
    let backup = database.0.path().join("backup.db");
    backup::backup(&database.path(), &backup).unwrap();
    put(&storage, 10..20).await;
    let contents = fs::read(&backup).unwrap();
    fs::rename(backup, database.path()).unwrap();
    assert_unavailable(&storage, "was replaced").await;
    storage.close().await;
    assert!(fs::read(database.path()).unwrap() == contents);
    // The WAL is left for the file to which it belongs.
    let error = database.open_error();
    assert!(error.contains("different databases"), "{error}");
    assert!(fs::read(database.path()).unwrap() == contents);
}
