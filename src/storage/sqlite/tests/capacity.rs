//! The disk space that a file takes, and full disks.

use std::borrow::Cow;

use super::*;

// Rules: SQLITE-6
#[tokio::test]
async fn wal_stays_short_during_continuous_commits() {
    const ROUNDS: u64 = 100;
    const INPUT_BYTES: u64 = 30_000;
    let database = TempDatabase::new();
    let storage = database.open().unwrap();
    let mut max_wal_bytes = 0;
    for round in 0..ROUNDS {
        let numbers = round * 30 + 1..round * 30 + 31;
        put_with_input(&storage, numbers, usize::try_from(INPUT_BYTES).unwrap()).await;
        let wal_bytes = fs::metadata(database.with_suffix("-wal")).unwrap().len();
        max_wal_bytes = max_wal_bytes.max(wal_bytes);
    }
    // Without checkpoints the WAL would hold all writes. How many come during a checkpoint depends on the machine.
    let written_bytes = ROUNDS * 30 * INPUT_BYTES;
    assert!(
        max_wal_bytes < written_bytes / 2,
        "{max_wal_bytes} of {written_bytes}"
    );
    assert_eq!(
        loaded_numbers(&storage).await.unwrap().len() as u64,
        ROUNDS * 30
    );
}

// Rules: SQLITE-6
#[tokio::test]
async fn space_of_deleted_operations_is_reused() {
    let database = TempDatabase::new();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let storage = database.open().unwrap();
        for number in 1..100 {
            let operation = operation(number, 20_000);
            let put = write(&storage, Write::Put(operation.clone()));
            put.await.unwrap();
            let delete = write(&storage, Write::Remove(operation));
            delete.await.unwrap();
        }
        storage.close().await;
        sizes.push(fs::metadata(database.path()).unwrap().len());
    }
    // Not much more than the largest number of operations at one time.
    assert!(sizes[0] < 100_000, "{sizes:?}");
    assert_eq!((sizes[1], sizes[2]), (sizes[0], sizes[0]));
}

// Rules: SQLITE-7
#[tokio::test(start_paused = true)]
async fn writer_recovers_once_a_write_of_failed_size_succeeds() {
    let database = TempDatabase::new();
    let mut writer = Writer::new(Database::open(&database.path()).unwrap()).unwrap();
    let (large, small) = (
        RowWrite::encode(&Write::Put(operation(1, 200_000))),
        RowWrite::encode(&Write::Put(operation(2, 10))),
    );
    let commit = |writer: &mut Writer, rows: &[&RowWrite]| {
        let rows = rows.iter().map(|row| Cow::Borrowed(*row));
        writer.commit(rows)
    };
    let previous_limit = writer.set_max_pages(20);
    let error = commit(&mut writer, &[&large]).unwrap_err().to_string();
    assert!(error.contains("full: free disk space"), "{error}");
    // A smaller write fits and is stored.
    for _ in 0..3 {
        commit(&mut writer, &[]).unwrap();
        assert!(writer.write_error().is_some(), "nothing was written");
        tokio::time::advance(RETRY_DELAY).await;
        commit(&mut writer, &[]).unwrap();
        assert!(
            writer.write_error().is_some(),
            "there is no room for the large"
        );
        commit(&mut writer, &[&small]).unwrap();
        assert!(
            writer.write_error().is_some(),
            "the small one proves nothing"
        );
    }
    writer.set_max_pages(previous_limit);
    commit(&mut writer, &[&small]).unwrap();
    assert!(writer.write_error().is_some(), "no probe has run yet");
    tokio::time::advance(RETRY_DELAY).await;
    commit(&mut writer, &[&small]).unwrap();
    assert!(writer.write_error().is_none());
    drop(writer);
    let storage = database.open().unwrap();
    assert_eq!(loaded_numbers(&storage).await.unwrap(), [2]);
    let probe_rows: i64 = rusqlite::Connection::open(database.path())
        .unwrap()
        .query_row("SELECT count(*) FROM inputs", [], |row| row.get(0))
        .unwrap();
    assert_eq!(probe_rows, 0, "what was written to try it is gone");
}
