//! The program over a SQLite file on a disk that fails at each call that it makes,
//! or whose machine loses its power there: what was acknowledged is kept, what
//! was refused is not shown, reads go on, and the trouble ends with its cause.
//!
//! A few points are tried; all of them with `EVERY_FAULT=1`, and those alone whose
//! text has `FAULT` in it, as `FAULT='Sync, at: 33'`.

mod copies;
mod step;
mod story;

use std::{path::Path, sync::Arc};

use tokio::{sync::Semaphore, task::JoinSet};

use step::Step;
use story::{Cut, Story, list};

use crate::support::{
    dice::Dice,
    disk::{Class, Course, Disk, Fault, Point},
    ledger::Ledger,
    stored::begin,
};

/// So many stories are told at once; they wait most of the time.
const AT_ONCE: usize = 4;

/// Each kind of change, around a restart of each kind.
const CHANGES: [Step; 24] = [
    Step::Hold("a"),
    Step::Queue("b", 5000),
    Step::Queue("c", 100),
    Step::Report("a", 1),
    Step::Lease("b"),
    Step::Report("b", 5),
    Step::Cancel("c"),
    Step::Succeed("a", 6000),
    Step::Delete("a"),
    Step::Stop,
    Step::Hold("d"),
    Step::Report("b", 6),
    Step::Fail("b"),
    Step::Queue("e", 3000),
    Step::Lease("e"),
    Step::Cancel("e"),
    Step::Delete("c"),
    Step::Kill,
    Step::Report("d", 2),
    Step::Succeed("e", 100),
    Step::Hold("f"),
    Step::Delete("f"),
    Step::Succeed("d", 10),
    Step::Delete("b"),
];

/// So much that the log is moved into the file, and begins anew.
const MUCH: [Step; 12] = [
    Step::Hold("a"),
    Step::Queue("b", 2_500_000),
    Step::Queue("c", 2_500_000),
    Step::Queue("d", 2_500_000),
    Step::Queue("e", 2_500_000),
    Step::Report("a", 1),
    Step::Cancel("b"),
    Step::Report("a", 2),
    Step::Queue("f", 1_000_000),
    Step::Report("a", 3),
    Step::Delete("b"),
    Step::Succeed("a", 100),
];

/// Which calls fail how. A disk that is full has room for what is there.
const FAULTS: [(Class, Fault, Course); 25] = [
    (Class::Open, Fault::Fail, Course::Once),
    (Class::Open, Fault::Fail, Course::Heals),
    (Class::Open, Fault::Cut, Course::Once),
    (Class::Read, Fault::Fail, Course::Once),
    (Class::Read, Fault::Fail, Course::Heals),
    (Class::Write, Fault::Fail, Course::Once),
    (Class::Write, Fault::Fail, Course::Heals),
    (Class::Write, Fault::Fail, Course::Killed),
    (Class::Write, Fault::Full, Course::Once),
    (Class::Write, Fault::Full, Course::Heals),
    (Class::Write, Fault::Full, Course::Killed),
    (Class::Write, Fault::Full, Course::Stopped),
    (Class::Write, Fault::Short, Course::Once),
    (Class::Write, Fault::Cut, Course::Once),
    (Class::Sync, Fault::Fail, Course::Once),
    (Class::Sync, Fault::Fail, Course::Heals),
    (Class::Sync, Fault::Fail, Course::Killed),
    (Class::Sync, Fault::Fail, Course::Stopped),
    (Class::Sync, Fault::Cut, Course::Once),
    (Class::Truncate, Fault::Fail, Course::Once),
    (Class::Truncate, Fault::Cut, Course::Once),
    (Class::Unlink, Fault::Fail, Course::Once),
    (Class::Names, Fault::Fail, Course::Once),
    (Class::Names, Fault::Fail, Course::Heals),
    (Class::Names, Fault::Cut, Course::Once),
];

// BEHAVIOUR §§5, 9: acknowledged means durable, refused means unchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_call_to_the_disk_fails_what_was_acknowledged_is_kept() {
    try_all("changes", &CHANGES, 2, u64::MAX).await;
}

// The same while the write-ahead log is moved into the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_call_fails_while_the_log_is_shortened_what_was_acknowledged_is_kept() {
    try_all("much", &MUCH, 1, 40).await;
}

// What would be the use of these tests if they noticed no loss?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_loses_what_was_acknowledged_and_that_is_noticed() {
    let Some(disk) = Disk::new() else { return };
    let point = Point {
        class: Class::Sync,
        at: 20,
        fault: Fault::Lie,
        course: Course::Heals,
    };
    let mut story = Story::new(disk, Some(point));
    story.tell(&CHANGES).await.expect("nothing is cut");
    let copy = story.disk.copy_durable();
    let file = copy.path().join("operations.db");
    let checked = tokio::spawn(async move { check_copy(&file, story.ledger).await });
    assert!(checked.await.unwrap_err().is_panic());
}

/// Tells a story without a fault, and then with `few` of each kind, or with as
/// many as there are up to `most`.
async fn try_all(title: &str, steps: &'static [Step], few: u64, most: u64) {
    let Some(disk) = Disk::new() else { return };
    let mut first = Story::new(disk, None);
    first.tell(steps).await.expect("nothing is cut");
    assert_eq!((first.refused, first.not_started), (0, 0));
    let calls = Class::ALL.map(|class| (class, first.disk.calls(class)));
    eprintln!("{title}: {calls:?}");
    check_copies(&first, None).await;

    let every = std::env::var("EVERY_FAULT").is_ok_and(|every| every == "1");
    let mut points = Vec::new();
    for (class, fault, course) in FAULTS {
        let (_, calls) = calls[class as usize];
        let count = calls.min(if every { most } else { few });
        points.extend((1..=count).map(|n| Point {
            class,
            // In the middle of as many even parts.
            at: (calls * (2 * n - 1)).div_ceil(2 * count),
            fault,
            course,
        }));
    }
    if let Ok(wanted) = std::env::var("FAULT") {
        points.retain(|point| format!("{point:?}").contains(&wanted));
    }
    let count = points.len();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut stories = JoinSet::new();
    for point in points {
        let place = room.clone().acquire_owned().await.unwrap();
        while let Some(told) = stories.try_join_next() {
            told.unwrap();
        }
        stories.spawn(async move {
            try_point(steps, point).await;
            drop(place);
        });
    }
    while let Some(told) = stories.join_next().await {
        told.unwrap();
    }
    eprintln!("{title}: {count} faults");
}

async fn try_point(steps: &[Step], point: Point) {
    let mut story = Story::new(Disk::new().expect("there was one"), Some(point));
    let cut = story.tell(steps).await;
    if let Err(Cut(heard)) = cut {
        assert_eq!(point.fault, Fault::Cut, "{point:?}: it died: {heard}");
    }
    eprintln!(
        "{point:?}: {} calls failed, {} changes and {} starts were refused",
        story.disk.failed(),
        story.refused,
        story.not_started
    );
    check_copies(&story, Some(point)).await;
}

/// After its end: what a server finds that is started over the file, and over
/// what a loss of power would have left of it.
async fn check_copies(story: &Story, point: Option<Point>) {
    let mut dice = Dice::new(point.map_or(0, |point| point.at));
    let is_cut = point.is_some_and(|point| point.fault == Fault::Cut);
    let copies = [
        ("killed", (!is_cut).then(|| story.disk.copy())),
        ("without power", Some(story.disk.copy_durable())),
        ("without power, torn", Some(story.disk.copy_torn(&mut dice))),
    ];
    for (title, copy) in copies {
        let Some(copy) = copy else { continue };
        eprintln!("{point:?}, {title}");
        let file = copy.path().join("operations.db");
        check_copy(&file, story.ledger.clone()).await;
    }
}

async fn check_copy(file: &Path, mut ledger: Ledger) {
    let serving = begin(file, &[]).await.serving();
    let there = list(&serving).await.unwrap();
    ledger.settle(&there);
    serving.kill().await;
    let connection = rusqlite::Connection::open(file).unwrap();
    let found: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(found, "ok");
}
