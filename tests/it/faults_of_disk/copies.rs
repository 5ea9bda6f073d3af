//! Copies of a file onto a disk that fails at each call: one that is reported is
//! whole, alone, and there after a loss of power, and where there is an error
//! there is no copy.

use std::path::Path;

use crate::support::{
    disk::{Class, Course, Disk, Fault, POWER_CUT, Point},
    program::{command, complained, run, said},
    shop::with_input,
    stored::begin,
    text,
};

const OPERATIONS: usize = 12;

/// How many calls of a kind fail, one in each try.
const FEW: u64 = 3;

const FAULTS: [(Class, Fault, Course); 14] = [
    (Class::Open, Fault::Fail, Course::Once),
    (Class::Write, Fault::Fail, Course::Once),
    (Class::Write, Fault::Fail, Course::Heals),
    (Class::Write, Fault::Full, Course::Heals),
    (Class::Write, Fault::Cut, Course::Once),
    (Class::Sync, Fault::Fail, Course::Once),
    (Class::Sync, Fault::Fail, Course::Heals),
    (Class::Sync, Fault::Cut, Course::Once),
    (Class::Truncate, Fault::Fail, Course::Once),
    (Class::Unlink, Fault::Fail, Course::Heals),
    (Class::Names, Fault::Fail, Course::Heals),
    (Class::Names, Fault::Cut, Course::Once),
    (Class::Rename, Fault::Fail, Course::Once),
    (Class::Rename, Fault::Cut, Course::Once),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_reported_is_whole_whatever_call_fails() {
    try_all(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_be_saved_of_a_damaged_file_is_saved_whatever_call_fails() {
    try_all(&["--salvage"]).await;
}

async fn try_all(flags: &[&str]) {
    let Some(disk) = Disk::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source.db");
    fill(&source).await;
    assert!(copy(&source, &disk, flags).await, "nothing fails");
    let calls = Class::ALL.map(|class| disk.calls(class));
    eprintln!("{flags:?}: {calls:?}");
    let every = std::env::var("EVERY_FAULT").is_ok_and(|every| every == "1");
    for (class, fault, course) in FAULTS {
        let calls = calls[class as usize];
        let few = if every { calls } else { FEW.min(calls) };
        for n in 1..=few {
            let disk = Disk::new().expect("there was one");
            let point = Point {
                class,
                // The last one among them: what is finished late fails late.
                at: (calls * n).div_ceil(few),
                fault,
                course,
            };
            disk.set(point);
            let is_reported = copy(&source, &disk, flags).await;
            eprintln!("{point:?}: {} failed, {is_reported}", disk.failed());
        }
    }
}

/// A file with operations, some of them in its log only.
async fn fill(source: &Path) {
    let serving = begin(source, &[]).await.serving();
    for number in 0..OPERATIONS {
        let input = text(&"0123456789".repeat(number * 300));
        let request = with_input("q", Some(input));
        serving.worker().create_operation(request).await.unwrap();
    }
    serving.kill().await;
}

/// Makes a copy; whether it is reported. What must be true then is.
async fn copy(source: &Path, disk: &Disk, flags: &[&str]) -> bool {
    let (store, to) = (format!("sqlite:{}", source.display()), disk.file());
    let mut backup = command(&["backup", "--store", &store]);
    backup.args(flags).arg(&to).envs(disk.environment());
    let output = backup.output().await.unwrap();
    let (code, complaint) = (output.status.code(), complained(&output));
    let left = [disk.copy(), disk.copy_durable()].map(|copy| {
        let alone = copy.path().join("operations.db");
        alone.exists().then_some((copy, alone))
    });
    match code {
        Some(0) => {
            let there: Vec<_> = std::fs::read_dir(to.parent().unwrap()).unwrap().collect();
            assert_eq!(there.len(), 1, "nothing else is left: {there:?}");
            for left in &left {
                check(&left.as_ref().expect("it is there").1).await;
            }
            true
        }
        Some(POWER_CUT) => {
            if let [_, Some((_copy, alone))] = &left {
                check(alone).await;
            }
            false
        }
        code => {
            assert_eq!(code, Some(2), "{complaint}");
            assert_eq!(complaint.lines().count(), 1, "{complaint}");
            assert!(!to.exists(), "there is none that may be wrong: {complaint}");
            false
        }
    }
}

/// The file has everything in it, without others beside it.
async fn check(file: &Path) {
    let inspected = run(&["inspect", file.to_str().unwrap(), "--output", "json"]).await;
    assert!(inspected.status.success(), "{}", complained(&inspected));
    let found: serde_json::Value = serde_json::from_str(said(&inspected)).unwrap();
    assert_eq!(found["states"]["PENDING"], OPERATIONS, "{found:#}");
}
