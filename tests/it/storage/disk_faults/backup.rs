//! Backups onto a disk with faults: a backup that is reported is complete and survives
//! a power loss, and a failed backup leaves no file.

use std::path::Path;

use crate::support::{
    faulty_disk::{
        DiskFault, FaultPoint, FaultRecovery, FaultyDisk, POWER_LOSS_EXIT_CODE, SyscallClass,
    },
    harness::queued_request_with_input,
    persistent_server::start,
    serve_process::{longrunning_command, run_command, stderr, stdout},
    string_value,
};

const OPERATION_COUNT: usize = 12;

/// Maximum number of fault points per case, one in each run.
const MAX_FAULTS_PER_KIND: u64 = 3;

const FAULT_CASES: [(SyscallClass, DiskFault, FaultRecovery); 14] = {
    use {DiskFault as Fault, FaultRecovery as Recovery, SyscallClass as Class};
    [
        (Class::Open, Fault::IoError, Recovery::Once),
        (Class::Write, Fault::IoError, Recovery::Once),
        (Class::Write, Fault::IoError, Recovery::OnRejectedWrite),
        (Class::Write, Fault::NoSpace, Recovery::OnRejectedWrite),
        (Class::Write, Fault::PowerLoss, Recovery::Once),
        (Class::Sync, Fault::IoError, Recovery::Once),
        (Class::Sync, Fault::IoError, Recovery::OnRejectedWrite),
        (Class::Sync, Fault::PowerLoss, Recovery::Once),
        (Class::Truncate, Fault::IoError, Recovery::Once),
        (Class::Unlink, Fault::IoError, Recovery::OnRejectedWrite),
        (
            Class::SyncDirectory,
            Fault::IoError,
            Recovery::OnRejectedWrite,
        ),
        (Class::SyncDirectory, Fault::PowerLoss, Recovery::Once),
        (Class::Rename, Fault::IoError, Recovery::Once),
        (Class::Rename, Fault::PowerLoss, Recovery::Once),
    ]
};

// Rules: SQLITE-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reported_backup_is_complete_despite_disk_faults() {
    run_all_faults(&[]).await;
}

// Rules: SQLITE-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reported_recovery_copy_is_complete_despite_disk_faults() {
    run_all_faults(&["--recover"]).await;
}

async fn run_all_faults(flags: &[&str]) {
    let Some(disk) = FaultyDisk::new() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source.db");
    create_source(&source).await;
    assert!(
        run_backup(&source, &disk, flags).await,
        "expected a backup without faults to succeed"
    );
    let calls = SyscallClass::ALL.map(|class| disk.call_count(class));
    eprintln!("{flags:?}: {calls:?}");
    let is_exhaustive = std::env::var("EVERY_FAULT").is_ok_and(|every| every == "1");
    for (class, fault, recovery) in FAULT_CASES {
        let calls = calls[class as usize];
        let fault_count = if is_exhaustive {
            calls
        } else {
            MAX_FAULTS_PER_KIND.min(calls)
        };
        for nth in 1..=fault_count {
            let disk = FaultyDisk::new().expect("expected a supported disk");
            let point = FaultPoint {
                class,
                // The last point is the last call, where the backup is completed.
                call_number: (calls * nth).div_ceil(fault_count),
                fault,
                recovery,
            };
            disk.inject(point);
            let is_reported = run_backup(&source, &disk, flags).await;
            eprintln!(
                "{point:?}: {} system calls failed, backup reported: {is_reported}",
                disk.failed_call_count()
            );
        }
    }
}

/// Creates a database with operations, some of them only in the WAL.
async fn create_source(source: &Path) {
    let server = start(source, &[]).await.expect_serving();
    for number in 0..OPERATION_COUNT {
        let input = string_value(&"0123456789".repeat(number * 300));
        let request = queued_request_with_input("q", Some(input));
        server
            .worker_client()
            .create_operation(request)
            .await
            .unwrap();
    }
    server.kill().await;
}

/// Runs a backup, checks its result, and returns `true` if it was reported as complete.
async fn run_backup(source: &Path, disk: &FaultyDisk, flags: &[&str]) -> bool {
    let (store, target) = (format!("sqlite:{}", source.display()), disk.database_path());
    let mut backup = longrunning_command(&["backup", "--store", &store]);
    backup.args(flags).arg(&target).envs(disk.env_vars());
    let output = backup.output().await.unwrap();
    let (code, error_text) = (output.status.code(), stderr(&output));
    let copies = [disk.copy_cached(), disk.copy_durable()].map(|copy| {
        let copied_file = copy.path().join("operations.db");
        copied_file.exists().then_some((copy, copied_file))
    });
    match code {
        Some(0) => {
            let entries: Vec<_> = std::fs::read_dir(target.parent().unwrap())
                .unwrap()
                .collect();
            assert_eq!(entries.len(), 1, "expected no other files: {entries:?}");
            for copy in &copies {
                check_copy(&copy.as_ref().expect("expected a backup").1).await;
            }
            true
        }
        Some(POWER_LOSS_EXIT_CODE) => {
            if let [_, Some((_copy, copied_file))] = &copies {
                check_copy(copied_file).await;
            }
            false
        }
        code => {
            assert_eq!(code, Some(2), "{error_text}");
            assert_eq!(error_text.lines().count(), 1, "{error_text}");
            assert!(
                !target.exists(),
                "expected no backup after an error: {error_text}"
            );
            false
        }
    }
}

/// Checks that the database file alone contains all operations.
async fn check_copy(file: &Path) {
    let output = run_command(&["inspect", file.to_str().unwrap(), "--output", "json"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let inspection: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(
        inspection["states"]["PENDING"], OPERATION_COUNT,
        "{inspection:#}"
    );
}
