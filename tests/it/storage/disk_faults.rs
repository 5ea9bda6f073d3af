//! Disk faults and power losses at any system call of a server over SQLite:
//! acknowledged changes are durable, rejected changes have no effect, reads keep
//! working, and the server recovers when the fault ends.
//!
//! By default a sample of all fault points is run. `EVERY_FAULT=1` runs all of them;
//! `FAULT` selects those whose debug text contains it, for example
//! `FAULT='Sync, call_number: 33'`.

mod backup;
mod calls;
mod fault_run;
mod steps;

use std::{path::Path, sync::Arc};

use tokio::{sync::Semaphore, task::JoinSet};

use fault_run::{FaultRun, PowerLoss, list_operations};
use steps::RunStep;

use crate::support::{
    expected_state::ExpectedState,
    faulty_disk::{DiskFault, FaultPoint, FaultRecovery, FaultyDisk, SyscallClass},
    persistent_server::{check_integrity, start},
    rng::TestRng,
};

/// Runs wait most of the time, so several share the processor.
const MAX_CONCURRENT_RUNS: usize = 4;

/// Every kind of change, with both kinds of restart in between.
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

/// Enough data to cause a WAL checkpoint and to restart the WAL.
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

/// Faults to inject. Overwriting succeeds on a full disk.
const FAULT_CASES: [(SyscallClass, DiskFault, FaultRecovery); 25] = {
    use {DiskFault as Fault, FaultRecovery as Recovery, SyscallClass as Class};
    [
        (Class::Open, Fault::IoError, Recovery::Once),
        (Class::Open, Fault::IoError, Recovery::OnRejectedWrite),
        (Class::Open, Fault::PowerLoss, Recovery::Once),
        (Class::Read, Fault::IoError, Recovery::Once),
        (Class::Read, Fault::IoError, Recovery::OnRejectedWrite),
        (Class::Write, Fault::IoError, Recovery::Once),
        (Class::Write, Fault::IoError, Recovery::OnRejectedWrite),
        (Class::Write, Fault::IoError, Recovery::OnKill),
        (Class::Write, Fault::NoSpace, Recovery::Once),
        (Class::Write, Fault::NoSpace, Recovery::OnRejectedWrite),
        (Class::Write, Fault::NoSpace, Recovery::OnKill),
        (Class::Write, Fault::NoSpace, Recovery::OnShutdown),
        (Class::Write, Fault::ShortWrite, Recovery::Once),
        (Class::Write, Fault::PowerLoss, Recovery::Once),
        (Class::Sync, Fault::IoError, Recovery::Once),
        (Class::Sync, Fault::IoError, Recovery::OnRejectedWrite),
        (Class::Sync, Fault::IoError, Recovery::OnKill),
        (Class::Sync, Fault::IoError, Recovery::OnShutdown),
        (Class::Sync, Fault::PowerLoss, Recovery::Once),
        (Class::Truncate, Fault::IoError, Recovery::Once),
        (Class::Truncate, Fault::PowerLoss, Recovery::Once),
        (Class::Unlink, Fault::IoError, Recovery::Once),
        (Class::SyncDirectory, Fault::IoError, Recovery::Once),
        (
            Class::SyncDirectory,
            Fault::IoError,
            Recovery::OnRejectedWrite,
        ),
        (Class::SyncDirectory, Fault::PowerLoss, Recovery::Once),
    ]
};

// Acknowledged means durable, rejected means unchanged.
// Rules: ADM-1, DUR-1, DUR-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_any_disk_fault() {
    run_all_faults("changes", &CHANGE_STEPS, 2, u64::MAX).await;
}

// Rules: DUR-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_disk_faults_during_checkpoint() {
    run_all_faults("checkpoint", &CHECKPOINT_STEPS, 1, 40).await;
}

// Guards the tests above: they must detect a loss.
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
    run.run(&CHANGE_STEPS)
        .await
        .expect("expected no power loss");
    let copy = run.disk.copy_durable();
    let file = copy.path().join("operations.db");
    let checked = tokio::spawn(async move { check_copy(&file, run.expected).await });
    assert!(checked.await.unwrap_err().is_panic());
}

/// Runs `steps` without a fault, then once per fault point: `sample_count` points of each
/// case, or up to `max_count` if all are requested.
async fn run_all_faults(title: &str, steps: &'static [RunStep], sample_count: u64, max_count: u64) {
    let Some(disk) = FaultyDisk::new() else {
        return;
    };
    let mut baseline = FaultRun::new(disk, None);
    baseline.run(steps).await.expect("expected no power loss");
    assert_eq!((baseline.rejected_calls, baseline.failed_starts), (0, 0));
    let calls = SyscallClass::ALL.map(|class| (class, baseline.disk.call_count(class)));
    eprintln!("{title}: {calls:?}");
    check_copies(&baseline, None).await;

    let is_exhaustive = std::env::var("EVERY_FAULT").is_ok_and(|every| every == "1");
    let mut points = Vec::new();
    for (class, fault, recovery) in FAULT_CASES {
        let (_, calls) = calls[class as usize];
        let point_count = calls.min(if is_exhaustive {
            max_count
        } else {
            sample_count
        });
        points.extend((1..=point_count).map(|nth| FaultPoint {
            class,
            // The middle of each of `point_count` equal parts.
            call_number: (calls * (2 * nth - 1)).div_ceil(2 * point_count),
            fault,
            recovery,
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
    let mut run = FaultRun::new(
        FaultyDisk::new().expect("expected a supported disk"),
        Some(point),
    );
    let result = run.run(steps).await;
    if let Err(PowerLoss(message)) = result {
        assert_eq!(
            point.fault,
            DiskFault::PowerLoss,
            "{point:?}: unexpected power loss: {message}"
        );
    }
    eprintln!(
        "{point:?}: {} system calls failed, {} changes were rejected, {} starts failed",
        run.disk.failed_call_count(),
        run.rejected_calls,
        run.failed_starts
    );
    check_copies(&run, Some(point)).await;
}

/// Checks the database after a run as the next server finds it: after a kill, and after
/// two kinds of power loss.
async fn check_copies(run: &FaultRun, point: Option<FaultPoint>) {
    let mut rng = TestRng::new(point.map_or(0, |point| point.call_number));
    let is_power_loss = point.is_some_and(|point| point.fault == DiskFault::PowerLoss);
    let copies = [
        ("killed", (!is_power_loss).then(|| run.disk.copy_cached())),
        ("power loss", Some(run.disk.copy_durable())),
        (
            "power loss with torn writes",
            Some(run.disk.copy_torn(&mut rng)),
        ),
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
    check_integrity(file);
}
