//! Copies of a file onto a disk that fails at each call: one that is reported is
//! whole, alone, and there after a loss of power, and where there is an error
//! there is no copy.

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

/// How many calls of a kind fail, one in each try.
const MAX_FAULTS_PER_KIND: u64 = 3;

const FAULT_CASES: [(SyscallClass, DiskFault, FaultRecovery); 14] = [
    (SyscallClass::Open, DiskFault::IoError, FaultRecovery::Once),
    (SyscallClass::Write, DiskFault::IoError, FaultRecovery::Once),
    (
        SyscallClass::Write,
        DiskFault::IoError,
        FaultRecovery::OnRejectedWrite,
    ),
    (
        SyscallClass::Write,
        DiskFault::NoSpace,
        FaultRecovery::OnRejectedWrite,
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
        DiskFault::PowerLoss,
        FaultRecovery::Once,
    ),
    (
        SyscallClass::Truncate,
        DiskFault::IoError,
        FaultRecovery::Once,
    ),
    (
        SyscallClass::Unlink,
        DiskFault::IoError,
        FaultRecovery::OnRejectedWrite,
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
    (
        SyscallClass::Rename,
        DiskFault::IoError,
        FaultRecovery::Once,
    ),
    (
        SyscallClass::Rename,
        DiskFault::PowerLoss,
        FaultRecovery::Once,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reported_backup_is_complete_despite_disk_faults() {
    run_all_faults(&[]).await;
}

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
    assert!(run_backup(&source, &disk, flags).await, "nothing fails");
    let calls = SyscallClass::ALL.map(|class| disk.call_count(class));
    eprintln!("{flags:?}: {calls:?}");
    let is_exhaustive = std::env::var("EVERY_FAULT").is_ok_and(|every| every == "1");
    for (class, fault, course) in FAULT_CASES {
        let calls = calls[class as usize];
        let fault_count = if is_exhaustive {
            calls
        } else {
            MAX_FAULTS_PER_KIND.min(calls)
        };
        for nth in 1..=fault_count {
            let disk = FaultyDisk::new().expect("there was one");
            let point = FaultPoint {
                class,
                // The last one among them: what is finished late fails late.
                call_number: (calls * nth).div_ceil(fault_count),
                fault,
                recovery: course,
            };
            disk.inject(point);
            let is_reported = run_backup(&source, &disk, flags).await;
            eprintln!(
                "{point:?}: {} failed, {is_reported}",
                disk.failed_call_count()
            );
        }
    }
}

/// A file with operations, some of them in its log only.
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

/// Makes a copy; whether it is reported. What must be true then is.
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
            assert_eq!(entries.len(), 1, "nothing else is left: {entries:?}");
            for copy in &copies {
                check_copy(&copy.as_ref().expect("it is there").1).await;
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
                "there is none that may be wrong: {error_text}"
            );
            false
        }
    }
}

/// The file has everything in it, without others beside it.
async fn check_copy(file: &Path) {
    let output = run_command(&["inspect", file.to_str().unwrap(), "--output", "json"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let inspection: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(
        inspection["states"]["PENDING"], OPERATION_COUNT,
        "{inspection:#}"
    );
}
