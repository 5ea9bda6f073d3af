//! One run of a server on a faulty disk: a fixed sequence of calls with at most one
//! fault point.

use std::{collections::BTreeMap, time::Duration};

use longrunning::proto::{
    google::longrunning::{ListOperationsRequest, Operation},
    longrunning::v1::Lease,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::{calls::StepResponse, steps::RunStep};
use crate::support::{
    expected_state::ExpectedState,
    faulty_disk::{
        DiskFault, FaultPoint, FaultRecovery, FaultyDisk, POWER_LOSS_EXIT_CODE, SyscallClass,
    },
    get_request,
    persistent_server::{PersistentServer, RpcError, ServerExit, StartOutcome, start},
};

/// Longer than a server takes to retry, or to exit at a power loss, even on a busy
/// machine.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// Number of system calls that must fail after a rejected change, one per retry of the server.
const MIN_FAILED_RETRIES: u64 = 3;

/// A server, its disk, and the expected state of its operations.
pub(super) struct FaultRun {
    pub(super) disk: FaultyDisk,
    pub(super) expected: ExpectedState,
    pub(super) fault_point: Option<FaultPoint>,
    pub(super) leases: BTreeMap<&'static str, Lease>,
    /// Number of rejected calls.
    pub(super) rejected_calls: usize,
    /// Number of failed starts.
    pub(super) failed_starts: usize,
    /// Whether the server ended while it rejected changes, which may be durable.
    pub(super) is_restarted_during_fault: bool,
    /// Whether the server reported recovery before the fault was cleared.
    has_recovered_early: bool,
}

/// The server seems to have lost its power. Holds the last error.
#[derive(Debug)]
pub(super) struct PowerLoss(pub(super) String);

/// The result of a step.
enum StepOutcome {
    Done,
    Rejected,
    /// A rejected lease took effect when the server ended, so its token is unknown.
    AppliedWithoutLease,
}

// === impl FaultRun ===

impl FaultRun {
    pub(super) fn new(disk: FaultyDisk, fault_point: Option<FaultPoint>) -> Self {
        if let Some(fault_point) = fault_point {
            disk.inject(fault_point);
        }
        Self {
            disk,
            expected: ExpectedState::default(),
            fault_point,
            leases: BTreeMap::new(),
            rejected_calls: 0,
            failed_starts: 0,
            is_restarted_during_fault: false,
            has_recovered_early: false,
        }
    }

    /// Runs all steps, unless a power loss ends the run.
    pub(super) async fn run(&mut self, steps: &[RunStep]) -> Result<(), PowerLoss> {
        let mut server = self.start_server().await?;
        for step in steps {
            if let RunStep::Stop | RunStep::Kill = step {
                server = self.restart(server, *step).await?;
                continue;
            }
            loop {
                match self.run_step(*step, &server).await {
                    Ok(StepOutcome::Done) => {
                        self.has_recovered_early = false;
                        break;
                    }
                    Ok(StepOutcome::Rejected) => server = self.wait_for_recovery(server).await?,
                    // Later steps need the unknown token.
                    Ok(StepOutcome::AppliedWithoutLease) => {
                        server.kill().await;
                        return Ok(());
                    }
                    Err(power_loss) => {
                        let exit = timeout(RECOVERY_TIMEOUT, server.wait_for_exit()).await;
                        let exit = exit.unwrap_or_else(|_| panic!("{step:?}: {power_loss:?}"));
                        assert_eq!(exit.status.code(), Some(POWER_LOSS_EXIT_CODE), "{exit:?}");
                        return Err(power_loss);
                    }
                }
            }
        }
        server.kill().await;
        Ok(())
    }

    async fn restart(
        &mut self,
        server: PersistentServer,
        step: RunStep,
    ) -> Result<PersistentServer, PowerLoss> {
        let exit = match step {
            RunStep::Stop => server.stop().await,
            _ => server.kill().await,
        };
        match (exit.status.code(), step) {
            (Some(POWER_LOSS_EXIT_CODE), _) => {
                return Err(PowerLoss("during the shutdown".to_owned()));
            }
            (code, RunStep::Stop) => assert_eq!(code, Some(0), "{exit:?}"),
            _ => {}
        }
        let server = self.start_server().await?;
        let operations = list_operations(&server).await?;
        self.expected.reconcile(&operations);
        Ok(server)
    }

    /// Starts the server. A start that fails because of the fault must report an error; it is
    /// repeated without the fault.
    async fn start_server(&mut self) -> Result<PersistentServer, PowerLoss> {
        let (file, environment) = (self.disk.database_path(), self.disk.env_vars());
        match start(&file, &environment).await {
            StartOutcome::Serving(server) => Ok(*server),
            StartOutcome::Exited(exit) => {
                if exit.status.code() == Some(POWER_LOSS_EXIT_CODE) {
                    return Err(PowerLoss("during the start".to_owned()));
                }
                check_start_error(&exit);
                self.failed_starts += 1;
                self.disk.clear_fault();
                match start(&file, &environment).await {
                    StartOutcome::Serving(server) => Ok(*server),
                    StartOutcome::Exited(exit) => panic!("{:?}: {exit:?}", self.fault_point),
                }
            }
        }
    }

    /// Makes a call and checks its effect. A rejected call must have none.
    async fn run_step(
        &mut self,
        step: RunStep,
        server: &PersistentServer,
    ) -> Result<StepOutcome, PowerLoss> {
        let name = format!("operations/{}", step.id());
        let before = self.expected.known(&name);
        let pending_call = step
            .effect()
            .map(|effect| self.expected.begin_call(&name, effect));
        match self.call(step, server).await {
            Ok(StepResponse::Succeeded(operation)) => {
                if let Some(call) = pending_call {
                    self.expected.acknowledge(&call);
                }
                if let Some(observed) = operation {
                    self.expected.observe(&name, &before, Some(&observed));
                }
                self.check_read(&name, server).await?;
                Ok(StepOutcome::Done)
            }
            Ok(StepResponse::NoLease) if self.is_restarted_during_fault => {
                Ok(StepOutcome::AppliedWithoutLease)
            }
            // The first call was rejected, and took effect when the server ended.
            Err(RpcError::Rejected(Code::NotFound, _))
                if self.is_restarted_during_fault && before.is_deleted =>
            {
                Ok(StepOutcome::Done)
            }
            Err(RpcError::Rejected(Code::AlreadyExists, _)) if self.is_restarted_during_fault => {
                Ok(StepOutcome::Done)
            }
            Err(RpcError::Rejected(Code::Unavailable, reason)) => {
                assert_eq!(reason, "STORE_UNAVAILABLE", "{step:?}");
                self.rejected_calls += 1;
                let current = self.check_read(&name, server).await?;
                let previous = before.last_seen.filter(|_| !before.is_deleted);
                let is_unchanged = current.as_ref() == previous.as_deref();
                assert!(
                    is_unchanged,
                    "expected rejected {step:?} to have no effect: {previous:?} {current:?}"
                );
                Ok(StepOutcome::Rejected)
            }
            Err(error @ RpcError::Unknown(_)) => Err(error.into()),
            other => panic!("{step:?}: {other:?}"),
        }
    }

    /// Checks that reads work and agree with each other.
    async fn check_read(
        &mut self,
        name: &str,
        server: &PersistentServer,
    ) -> Result<Option<Operation>, PowerLoss> {
        let before = self.expected.known(name);
        let result = server.client().get_operation(get_request(name)).await;
        let operation = match result.map_err(RpcError::from) {
            Ok(response) => Some(response.into_inner()),
            Err(RpcError::Rejected(Code::NotFound, _)) => None,
            Err(error @ RpcError::Unknown(_)) => return Err(error.into()),
            Err(error) => panic!("{name}: {error:?}"),
        };
        self.expected.observe(name, &before, operation.as_ref());
        let operations = list_operations(server).await?;
        assert_eq!(operations.get(name), operation.as_ref());
        Ok(operation)
    }

    /// Checks that readiness reports the failure, ends the fault as its recovery says, and
    /// waits until the server reports recovery.
    async fn wait_for_recovery(
        &mut self,
        server: PersistentServer,
    ) -> Result<PersistentServer, PowerLoss> {
        let fault_point = self
            .fault_point
            .expect("expected no rejection without a fault");
        assert!(
            !self.has_recovered_early,
            "{fault_point:?}: rejected the same change after it reported recovery"
        );
        let is_first = self.rejected_calls == 1 && fault_point.recovery != FaultRecovery::Once;
        // The server does not retry other calls.
        if is_first && matches!(fault_point.class, SyscallClass::Write | SyscallClass::Sync) {
            let readiness = readiness(&server).await?;
            assert!(
                readiness.starts_with("HTTP/1.1 503"),
                "{fault_point:?}: {readiness}"
            );
            assert!(readiness.contains("writes are failing"), "{readiness}");
            assert!(
                readiness.contains("operations.db"),
                "expected the database path: {readiness}"
            );
        }
        if is_first
            && matches!(
                fault_point.recovery,
                FaultRecovery::OnKill | FaultRecovery::OnShutdown
            )
        {
            self.is_restarted_during_fault = true;
            let exit = match fault_point.recovery {
                FaultRecovery::OnKill => server.kill().await,
                _ => server.stop().await,
            };
            let is_stopped = fault_point.recovery == FaultRecovery::OnShutdown;
            assert!(!is_stopped || exit.status.code() == Some(0), "{exit:?}");
            self.disk.clear_fault();
            let server = self.start_server().await?;
            let operations = list_operations(&server).await?;
            self.expected.reconcile(&operations);
            return Ok(server);
        }
        if is_first && matches!(fault_point.class, SyscallClass::Write | SyscallClass::Sync) {
            self.has_recovered_early = self.recovers_early(fault_point, &server).await?;
            if self.has_recovered_early {
                return Ok(server);
            }
        }
        self.disk.clear_fault();
        // No client retries: the server must detect recovery itself.
        let deadline = Instant::now() + RECOVERY_TIMEOUT;
        while !readiness(&server).await?.starts_with("HTTP/1.1 200") {
            assert!(
                Instant::now() < deadline,
                "{fault_point:?}: the server does not recover"
            );
            sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Checks that the server stays unready while the fault persists, over several retries.
    /// Returns `true` if it recovered early, which only a full disk permits.
    async fn recovers_early(
        &mut self,
        fault_point: FaultPoint,
        server: &PersistentServer,
    ) -> Result<bool, PowerLoss> {
        let target = self.disk.failed_call_count() + MIN_FAILED_RETRIES;
        let deadline = Instant::now() + RECOVERY_TIMEOUT;
        while self.disk.failed_call_count() < target {
            let readiness = readiness(server).await?;
            if readiness.starts_with("HTTP/1.1 200") {
                // A WAL checkpoint can free space on a full disk. The rejected change must
                // then succeed.
                assert_eq!(
                    fault_point.fault,
                    DiskFault::NoSpace,
                    "{fault_point:?}: reported recovery during the fault"
                );
                return Ok(true);
            }
            assert!(
                Instant::now() < deadline,
                "{fault_point:?}: the server does not retry"
            );
            sleep(Duration::from_millis(20)).await;
        }
        let readiness = readiness(server).await?;
        assert!(
            readiness.starts_with("HTTP/1.1 503"),
            "{fault_point:?}: {readiness}"
        );
        Ok(false)
    }
}

// === impl PowerLoss ===

impl From<RpcError> for PowerLoss {
    fn from(error: RpcError) -> Self {
        Self(match error {
            RpcError::Unknown(status) => status.to_string(),
            RpcError::Rejected(code, reason) => format!("{code:?}, {reason}"),
        })
    }
}

/// Returns the response of the readiness endpoint.
async fn readiness(server: &PersistentServer) -> Result<String, PowerLoss> {
    let readiness = server.readiness().await;
    readiness.ok_or_else(|| PowerLoss("the readiness endpoint does not respond".to_owned()))
}

/// Lists all operations by name.
pub(super) async fn list_operations(
    server: &PersistentServer,
) -> Result<BTreeMap<String, Operation>, RpcError> {
    let request = ListOperationsRequest {
        page_size: 1000,
        ..ListOperationsRequest::default()
    };
    let page = server.client().list_operations(request).await?.into_inner();
    assert_eq!(page.next_page_token, "");
    let by_name = |operation: Operation| (operation.name.clone(), operation);
    Ok(page.operations.into_iter().map(by_name).collect())
}

/// Checks that a failed start exits with 2 and logs one error.
fn check_start_error(exit: &ServerExit) {
    assert_eq!(exit.status.code(), Some(2), "{exit:?}");
    let errors = exit.log.iter().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "{exit:?}");
    let last_line = exit.log.last().unwrap();
    assert!(last_line.starts_with("error: "), "{exit:?}");
    assert!(
        last_line.contains("operations.db"),
        "expected the database path: {last_line}"
    );
}
