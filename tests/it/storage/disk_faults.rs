//! The program over a SQLite file on a disk that fails at each call that it makes,
//! or whose machine loses its power there: what was acknowledged is kept, what
//! was refused is not shown, reads go on, and the trouble ends with its cause.
//!
//! A few points are tried; all of them with `EVERY_FAULT=1`, and those alone whose
//! text has `FAULT` in it, as `FAULT='Sync, at: 33'`.

mod backup;
mod fault_run;
mod steps;

use std::{path::Path, sync::Arc};

use tokio::{sync::Semaphore, task::JoinSet};

use fault_run::{FaultRun, PowerLoss, list_operations};
use steps::RunStep;

use crate::support::{
    expected_state::ExpectedState,
    faulty_disk::{DiskFault, FaultPoint, FaultRecovery, FaultyDisk, SyscallClass},
    persistent_server::start,
    rng::TestRng,
};

/// So many stories are told at once; they wait most of the time.
const MAX_CONCURRENT_RUNS: usize = 4;

/// Each kind of change, around a restart of each kind.
const CHANGE_STEPS: [RunStep; 24] = [
    RunStep::CreateSelfExecuted("a"),
    RunStep::CreateQueued("b", 5000),
    RunStep::CreateQueued("c", 100),
    RunStep::Report("a", 1),
    RunStep::Lease("b"),
    RunStep::Report("b", 5),
    RunStep::Cancel("c"),
    RunStep::Succeed("a", 6000),
    RunStep::Delete("a"),
    RunStep::Stop,
    RunStep::CreateSelfExecuted("d"),
    RunStep::Report("b", 6),
    RunStep::Fail("b"),
    RunStep::CreateQueued("e", 3000),
    RunStep::Lease("e"),
    RunStep::Cancel("e"),
    RunStep::Delete("c"),
    RunStep::Kill,
    RunStep::Report("d", 2),
    RunStep::Succeed("e", 100),
    RunStep::CreateSelfExecuted("f"),
    RunStep::Delete("f"),
    RunStep::Succeed("d", 10),
    RunStep::Delete("b"),
];

/// So much that the log is moved into the file, and begins anew.
const CHECKPOINT_STEPS: [RunStep; 12] = [
    RunStep::CreateSelfExecuted("a"),
    RunStep::CreateQueued("b", 2_500_000),
    RunStep::CreateQueued("c", 2_500_000),
    RunStep::CreateQueued("d", 2_500_000),
    RunStep::CreateQueued("e", 2_500_000),
    RunStep::Report("a", 1),
    RunStep::Cancel("b"),
    RunStep::Report("a", 2),
    RunStep::CreateQueued("f", 1_000_000),
    RunStep::Report("a", 3),
    RunStep::Delete("b"),
    RunStep::Succeed("a", 100),
];

/// Which calls fail how. A disk that is full has room for what is there.
const FAULT_CASES: [(SyscallClass, DiskFault, FaultRecovery); 25] = [
    (SyscallClass::Open, DiskFault::IoError, FaultRecovery::Once),
    (
        SyscallClass::Open,
        DiskFault::IoError,
        FaultRecovery::OnRejectedWrite,
    ),
    (
        SyscallClass::Open,
        DiskFault::PowerLoss,
        FaultRecovery::Once,
    ),
    (SyscallClass::Read, DiskFault::IoError, FaultRecovery::Once),
    (
        SyscallClass::Read,
        DiskFault::IoError,
        FaultRecovery::OnRejectedWrite,
    ),
    (SyscallClass::Write, DiskFault::IoError, FaultRecovery::Once),
    (
        SyscallClass::Write,
        DiskFault::IoError,
        FaultRecovery::OnRejectedWrite,
    ),
    (
        SyscallClass::Write,
        DiskFault::IoError,
        FaultRecovery::OnKill,
    ),
    (SyscallClass::Write, DiskFault::NoSpace, FaultRecovery::Once),
    (
        SyscallClass::Write,
        DiskFault::NoSpace,
        FaultRecovery::OnRejectedWrite,
    ),
    (
        SyscallClass::Write,
        DiskFault::NoSpace,
        FaultRecovery::OnKill,
    ),
    (
        SyscallClass::Write,
        DiskFault::NoSpace,
        FaultRecovery::OnShutdown,
    ),
    (
        SyscallClass::Write,
        DiskFault::ShortWrite,
        FaultRecovery::Once,
    ),
    (
        SyscallClass::Write,
        DiskFault::PowerLoss,
        FaultRecovery::Once,
    ),
    (SyscallClass::Sync, DiskFault::IoError, FaultRecovery::Once),
    (
        SyscallClass::Sync,
        DiskFault::IoError,
        FaultRecovery::OnRejectedWrite,
    ),
    (
        SyscallClass::Sync,
        DiskFault::IoError,
        FaultRecovery::OnKill,
    ),
    (
        SyscallClass::Sync,
        DiskFault::IoError,
        FaultRecovery::OnShutdown,
    ),
    (
        SyscallClass::Sync,
        DiskFault::PowerLoss,
        FaultRecovery::Once,
    ),
    (
        SyscallClass::Truncate,
        DiskFault::IoError,
        FaultRecovery::Once,
    ),
    (
        SyscallClass::Truncate,
        DiskFault::PowerLoss,
        FaultRecovery::Once,
    ),
    (
        SyscallClass::Unlink,
        DiskFault::IoError,
        FaultRecovery::Once,
    ),
    (
        SyscallClass::SyncDirectory,
        DiskFault::IoError,
        FaultRecovery::Once,
    ),
    (
        SyscallClass::SyncDirectory,
        DiskFault::IoError,
        FaultRecovery::OnRejectedWrite,
    ),
    (
        SyscallClass::SyncDirectory,
        DiskFault::PowerLoss,
        FaultRecovery::Once,
    ),
];

// BEHAVIOUR §§5, 9: acknowledged means durable, refused means unchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_any_disk_fault() {
    run_all_faults("changes", &CHANGE_STEPS, 2, u64::MAX).await;
}

// The same while the write-ahead log is moved into the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_disk_faults_during_checkpoint() {
    run_all_faults("much", &CHECKPOINT_STEPS, 1, 40).await;
}

// What would be the use of these tests if they noticed no loss?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checker_notices_loss_on_disk_with_ineffective_fsync() {
    let Some(disk) = FaultyDisk::new() else {
        return;
    };
    let point = FaultPoint {
        class: SyscallClass::Sync,
        call_number: 20,
        fault: DiskFault::LostSync,
        recovery: FaultRecovery::OnRejectedWrite,
    };
    let mut run = FaultRun::new(disk, Some(point));
    run.run(&CHANGE_STEPS).await.expect("nothing is cut");
    let copy = run.disk.copy_durable();
    let file = copy.path().join("operations.db");
    let checked = tokio::spawn(async move { check_copy(&file, run.expected).await });
    assert!(checked.await.unwrap_err().is_panic());
}

/// Tells a story without a fault, and then with `few` of each kind, or with as
/// many as there are up to `most`.
async fn run_all_faults(title: &str, steps: &'static [RunStep], sample_count: u64, max_count: u64) {
    let Some(disk) = FaultyDisk::new() else {
        return;
    };
    let mut baseline = FaultRun::new(disk, None);
    baseline.run(steps).await.expect("nothing is cut");
    assert_eq!((baseline.rejected_calls, baseline.failed_starts), (0, 0));
    let calls = SyscallClass::ALL.map(|class| (class, baseline.disk.call_count(class)));
    eprintln!("{title}: {calls:?}");
    check_copies(&baseline, None).await;

    let is_exhaustive = std::env::var("EVERY_FAULT").is_ok_and(|every| every == "1");
    let mut points = Vec::new();
    for (class, fault, course) in FAULT_CASES {
        let (_, calls) = calls[class as usize];
        let point_count = calls.min(if is_exhaustive {
            max_count
        } else {
            sample_count
        });
        points.extend((1..=point_count).map(|nth| FaultPoint {
            class,
            // In the middle of as many even parts.
            call_number: (calls * (2 * nth - 1)).div_ceil(2 * point_count),
            fault,
            recovery: course,
        }));
    }
    if let Ok(pattern) = std::env::var("FAULT") {
        points.retain(|point| format!("{point:?}").contains(&pattern));
    }
    let count = points.len();
    let permits = Arc::new(Semaphore::new(MAX_CONCURRENT_RUNS));
    let mut runs = JoinSet::new();
    for point in points {
        let permit = permits.clone().acquire_owned().await.unwrap();
        while let Some(result) = runs.try_join_next() {
            result.unwrap();
        }
        runs.spawn(async move {
            run_with_fault(steps, point).await;
            drop(permit);
        });
    }
    while let Some(result) = runs.join_next().await {
        result.unwrap();
    }
    eprintln!("{title}: {count} faults");
}

async fn run_with_fault(steps: &[RunStep], point: FaultPoint) {
    let mut run = FaultRun::new(FaultyDisk::new().expect("there was one"), Some(point));
    let result = run.run(steps).await;
    if let Err(PowerLoss(message)) = result {
        assert_eq!(
            point.fault,
            DiskFault::PowerLoss,
            "{point:?}: it died: {message}"
        );
    }
    eprintln!(
        "{point:?}: {} calls failed, {} changes and {} starts were refused",
        run.disk.failed_call_count(),
        run.rejected_calls,
        run.failed_starts
    );
    check_copies(&run, Some(point)).await;
}

/// After its end: what a server finds that is started over the file, and over
/// what a loss of power would have left of it.
async fn check_copies(run: &FaultRun, point: Option<FaultPoint>) {
    let mut rng = TestRng::new(point.map_or(0, |point| point.call_number));
    let is_power_loss = point.is_some_and(|point| point.fault == DiskFault::PowerLoss);
    let copies = [
        ("killed", (!is_power_loss).then(|| run.disk.copy_cached())),
        ("without power", Some(run.disk.copy_durable())),
        ("without power, torn", Some(run.disk.copy_torn(&mut rng))),
    ];
    for (title, copy) in copies {
        let Some(copy) = copy else { continue };
        eprintln!("{point:?}, {title}");
        let file = copy.path().join("operations.db");
        check_copy(&file, run.expected.clone()).await;
    }
}

async fn check_copy(file: &Path, mut expected: ExpectedState) {
    let server = start(file, &[]).await.expect_serving();
    let operations = list_operations(&server).await.unwrap();
    expected.reconcile(&operations);
    server.kill().await;
    let connection = rusqlite::Connection::open(file).unwrap();
    let result: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(result, "ok");
}
