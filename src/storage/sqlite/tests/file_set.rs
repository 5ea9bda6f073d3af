//! Files that do not belong together, or of which one is missing.

use super::*;

/// Returns the database of a killed server with this many writes, of which a backup was made after the first.
pub(super) async fn crash_after_backup(backed_up: u64, written: u64) -> (TempDatabase, PathBuf) {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..backed_up + 1).await;
    let backup = database.0.path().join("backup.db");
    backup::backup(&database.path(), &backup).unwrap();
    put(&storage, backed_up + 1..written + 1).await;
    let crashed = simulate_crash(&database, storage);
    let moved = crashed.0.path().join("backup.db");
    fs::copy(backup, &moved).unwrap();
    (crashed, moved)
}

fn remove_sidecars(database: &TempDatabase, suffixes: &[&str]) {
    for suffix in suffixes {
        let _ = fs::remove_file(database.with_suffix(suffix));
    }
}

/// Asserts that the open is rejected with this text, and that no file is modified.
#[track_caller]
fn assert_rejected(database: &TempDatabase, expected: &str) {
    let before = read_files(database);
    let error = database.open_error();
    assert!(error.contains(expected), "{error}");
    assert!(error.contains("operations.db"), "{error}");
    let after = read_files(database);
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );
    assert!(after == before, "nothing is modified: {error}");
}

// Rules: SQLITE-10
#[tokio::test]
async fn backup_beside_old_wal_is_rejected_and_intact() {
    for (backed_up, written) in [(1, 2), (1, 300), (300, 301), (700, 1000)] {
        for lock in ["with lock", "without lock"] {
            let (database, backup) = crash_after_backup(backed_up, written).await;
            fs::copy(&backup, database.path()).unwrap();
            if lock == "without lock" {
                remove_sidecars(&database, &["-lock"]);
            }
            assert_rejected(&database, "belong to different databases");
            // The remedy that the error names.
            remove_sidecars(&database, &["-wal", "-shm", "-lock"]);
            let storage = database.open().unwrap();
            let numbers = loaded_numbers(&storage).await.unwrap();
            assert!(numbers.into_iter().eq(1..=backed_up), "{lock}");
        }
    }
}

// Rules: SQLITE-10
#[tokio::test]
async fn same_backup_beside_wal_of_its_first_restore_is_rejected() {
    let (database, backup) = crash_after_backup(10, 20).await;
    remove_sidecars(&database, &["-wal", "-shm", "-lock"]);
    fs::copy(&backup, database.path()).unwrap();
    let storage = database.open().unwrap();
    put(&storage, 100..200).await;
    let database = simulate_crash(&database, storage);
    fs::copy(&backup, database.path()).unwrap();
    assert_rejected(&database, "belong to different databases");
}

// Rules: SQLITE-10
#[tokio::test]
async fn inspect_and_backup_of_mixed_files_are_rejected() {
    let (database, backup) = crash_after_backup(10, 20).await;
    fs::copy(&backup, database.path()).unwrap();
    let before = read_files(&database);
    let copy = database.0.path().join("copy.db");
    for result in [
        backup::inspect(&database.path(), |_| {}).map(drop),
        backup::backup(&database.path(), &copy),
        backup::recover(&database.path(), &copy).map(drop),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("different databases"), "{error}");
    }
    assert!(read_files(&database) == before, "nothing is modified");
}

// Rules: SQLITE-10
#[tokio::test]
async fn checkpointed_file_beside_older_wal_is_rejected() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..20).await;
    let crashed = simulate_crash(&database, storage);
    let wal = fs::read(crashed.with_suffix("-wal")).unwrap();
    let storage = crashed.open().unwrap();
    put(&storage, 20..30).await;
    storage.close().await;
    fs::write(crashed.with_suffix("-wal"), wal).unwrap();
    remove_sidecars(&crashed, &["-lock"]);
    assert_rejected(&crashed, "belong to different databases");
}

// Rules: SQLITE-11
#[tokio::test]
async fn missing_or_empty_file_with_acknowledged_writes_is_rejected() {
    for cut in [None, Some(0), Some(4096)] {
        for is_clean in [true, false] {
            for removed in [&[][..], &["-wal"], &["-lock"]] {
                let database = TempDatabase::new();
                let storage = database.open().unwrap();
                put(&storage, 1..20).await;
                let database = if is_clean {
                    storage.close().await;
                    database
                } else {
                    simulate_crash(&database, storage)
                };
                match cut {
                    None => fs::remove_file(database.path()).unwrap(),
                    Some(0) => fs::write(database.path(), "").unwrap(),
                    // A file to which `journal_mode` was all that was written.
                    Some(_) => {
                        fs::remove_file(database.path()).unwrap();
                        let empty = TempDatabase::new();
                        empty.execute("PRAGMA journal_mode = wal");
                        fs::copy(empty.path(), database.path()).unwrap();
                    }
                }
                remove_sidecars(&database, removed);
                let knows_writes = removed != ["-lock"];
                // A file whose creation is in its WAL is not lost.
                let is_wal_lost = !is_clean && removed != ["-wal"] && cut != Some(4096);
                if knows_writes {
                    assert_rejected(&database, "19 writes were acknowledged");
                } else if is_wal_lost {
                    assert_rejected(&database, "-wal has some");
                } else {
                    continue;
                }
                // The remedy that the error names.
                remove_sidecars(&database, &["-lock", "-wal"]);
                let storage = database.open().unwrap();
                assert!(loaded_numbers(&storage).await.unwrap().is_empty());
            }
        }
    }
}

// Rules: SQLITE-10
#[tokio::test]
async fn file_replaced_by_backup_after_clean_stop_is_opened() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    put(&storage, 1..10).await;
    let backup = database.0.path().join("backup.db");
    backup::backup(&database.path(), &backup).unwrap();
    put(&storage, 10..20).await;
    storage.close().await;
    fs::copy(&backup, database.path()).unwrap();
    let storage = database.open().unwrap();
    put(&storage, 30..32).await;
    let database = simulate_crash(&database, storage);
    // The lock file knows the new ID, and guards it.
    fs::remove_file(database.with_suffix("-wal")).unwrap();
    assert_rejected(&database, "11 were acknowledged");
}

// Rules: SQLITE-10
#[tokio::test]
async fn id_is_in_main_file_before_first_write_and_kept_by_restarts() {
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    let id_in_main = |database: &TempDatabase| {
        let uri = format!("file:{}?immutable=1", database.path().display());
        let connection = rusqlite::Connection::open(uri).unwrap();
        let id = connection.query_row("SELECT file_id FROM file_info", [], |row| row.get(0));
        id.unwrap()
    };
    let first: String = id_in_main(&database);
    let lock = fs::read_to_string(database.with_suffix("-lock")).unwrap();
    assert!(lock.contains(&first), "{lock}");
    put(&storage, 1..2).await;
    let crashed = simulate_crash(&database, storage);
    drop(crashed.open().unwrap());
    assert_eq!(id_in_main(&crashed), first);

    let backup = crashed.0.path().join("backup.db");
    backup::backup(&crashed.path(), &backup).unwrap();
    fs::rename(backup, crashed.path()).unwrap();
    let copied = id_in_main(&crashed);
    assert_ne!(copied, first, "a backup has another");
    drop(crashed.open().unwrap());
    assert_ne!(id_in_main(&crashed), copied, "and each copy that is used");
}
