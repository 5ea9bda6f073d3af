//! What a file takes of the disk, and what happens when there is no more.

use std::borrow::Cow;

use super::*;

#[tokio::test]
async fn the_log_stays_short_while_commits_go_on() {
    const ROUNDS: u64 = 100;
    const BYTES: u64 = 30_000;
    let place = Place::new();
    let journal = place.open().unwrap();
    let mut longest = 0;
    for round in 0..ROUNDS {
        let numbers = round * 30 + 1..round * 30 + 31;
        put_large(&journal, numbers, usize::try_from(BYTES).unwrap()).await;
        let log = fs::metadata(place.beside("-wal")).unwrap().len();
        longest = longest.max(log);
    }
    // All that was written would stand in it. How much comes while a part of it is
    // moved depends on the machine.
    let all = ROUNDS * 30 * BYTES;
    assert!(longest < all / 2, "{longest} of {all}");
    assert_eq!(replayed(&journal).await.unwrap().len() as u64, ROUNDS * 30);
}

#[tokio::test]
async fn the_space_of_what_is_forgotten_is_used_again() {
    let place = Place::new();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let journal = place.open().unwrap();
        for number in 1..100 {
            let operation = operation(number, 20_000);
            let put = keep(&journal, Entry::Put(operation.clone()));
            put.await.unwrap();
            let forget = keep(&journal, Entry::Forget(operation));
            forget.await.unwrap();
        }
        journal.close().await;
        sizes.push(fs::metadata(place.path()).unwrap().len());
    }
    // Not much more than the one that was there at a time.
    assert!(sizes[0] < 100_000, "{sizes:?}");
    assert_eq!((sizes[1], sizes[2]), (sizes[0], sizes[0]));
}

#[tokio::test(start_paused = true)]
async fn a_trouble_ends_when_as_much_can_be_written_as_could_not_be() {
    let place = Place::new();
    let mut writer = Writer::new(File::open(&place.path()).unwrap()).unwrap();
    let (large, small) = (
        Row::of(&Entry::Put(operation(1, 200_000))),
        Row::of(&Entry::Put(operation(2, 10))),
    );
    let commit = |writer: &mut Writer, rows: &[&Row]| {
        let rows = rows.iter().map(|row| Cow::Borrowed(*row));
        writer.commit(rows)
    };
    let room = writer.limit(20);
    let refusal = commit(&mut writer, &[&large]).unwrap_err().to_string();
    assert!(refusal.contains("full: make room"), "{refusal}");
    // There is room for less, and that is kept.
    for _ in 0..3 {
        commit(&mut writer, &[]).unwrap();
        assert!(writer.trouble().is_some(), "nothing was written");
        tokio::time::advance(PAUSE).await;
        commit(&mut writer, &[]).unwrap();
        assert!(writer.trouble().is_some(), "there is no room for the large");
        commit(&mut writer, &[&small]).unwrap();
        assert!(writer.trouble().is_some(), "the small one proves nothing");
    }
    writer.limit(room);
    commit(&mut writer, &[&small]).unwrap();
    assert!(writer.trouble().is_some(), "nobody has tried yet");
    tokio::time::advance(PAUSE).await;
    commit(&mut writer, &[&small]).unwrap();
    assert!(writer.trouble().is_none());
    drop(writer);
    let journal = place.open().unwrap();
    assert_eq!(replayed(&journal).await.unwrap(), [2]);
    let filler: i64 = rusqlite::Connection::open(place.path())
        .unwrap()
        .query_row("SELECT count(*) FROM inputs", [], |row| row.get(0))
        .unwrap();
    assert_eq!(filler, 0, "what was written to try it is gone");
}
