//! The gRPC call of each step.

use longrunning::{
    Progress,
    proto::{
        google::longrunning::{CancelOperationRequest, DeleteOperationRequest, Operation},
        longrunning::v1::{CreateOperationRequest, LeaseHeartbeat, finish_operation_request},
    },
};
use tonic::Code;

use super::{
    fault_run::FaultRun,
    steps::{RunStep, payload},
};
use crate::support::{
    harness::{
        failure, finish_request, heartbeat_request, lease_request, proto_seconds,
        queued_request_with_input, self_executed_request,
    },
    persistent_server::{PersistentServer, RpcError},
};

/// The response of a call.
#[derive(Debug)]
pub(super) enum StepResponse {
    /// Success, with the operation if the method returns it.
    Succeeded(Option<Operation>),
    /// No operation is ready.
    NoLease,
}

// === impl FaultRun ===

impl FaultRun {
    /// Makes the call of a step. Panics for a restart.
    pub(super) async fn call(
        &mut self,
        step: RunStep,
        server: &PersistentServer,
    ) -> Result<StepResponse, RpcError> {
        let (mut client, mut worker_client) = (server.client(), server.worker_client());
        let name = format!("operations/{}", step.id());
        let lease = self.leases.get(step.id()).cloned().unwrap_or_default();
        match step {
            RunStep::CreateSelfExecuted(id) | RunStep::CreateQueued(id, _) => {
                let request = match step {
                    RunStep::CreateQueued(id, size) => {
                        queued_request_with_input(id, Some(payload(size)))
                    }
                    _ => self_executed_request("w"),
                };
                let request = CreateOperationRequest {
                    operation_id: id.into(),
                    request_id: match step {
                        // The digest of a large request is slow in a debug build.
                        RunStep::CreateQueued(_, 1_000_000..) => String::new(),
                        _ => format!("request of {id}"),
                    },
                    // Longer than any run takes.
                    lease_duration: proto_seconds(3600),
                    ..request
                };
                let created = worker_client.create_operation(request).await?.into_inner();
                assert!(
                    self.is_restarted_during_fault || !created.already_existed,
                    "{step:?}"
                );
                self.leases.extend(created.lease.map(|lease| (id, lease)));
                Ok(StepResponse::Succeeded(created.operation))
            }
            RunStep::Lease(id) => {
                // Each operation has its own queue.
                let response = worker_client
                    .lease_operations(lease_request(&[id], "w", 1))
                    .await?;
                let Some(lease) = response.into_inner().leases.pop() else {
                    return Ok(StepResponse::NoLease);
                };
                self.expected.record_lease(&lease.name, lease.attempt, None);
                self.leases.insert(id, lease);
                Ok(StepResponse::Succeeded(None))
            }
            RunStep::Report(_, units) => {
                let report = LeaseHeartbeat {
                    name,
                    lease_token: lease.lease_token,
                    progress: Some(Progress {
                        done_units: units,
                        ..Progress::default()
                    }),
                    checkpoint: Some(payload(usize::try_from(units).unwrap() * 1000)),
                    ..LeaseHeartbeat::default()
                };
                let response = worker_client
                    .heartbeat(heartbeat_request("w", [report]))
                    .await?;
                assert_eq!(response.into_inner().directives[0].error, None);
                Ok(StepResponse::Succeeded(None))
            }
            RunStep::Succeed(..) | RunStep::Fail(_) => {
                let outcome = match step {
                    RunStep::Succeed(_, size) => {
                        finish_operation_request::Outcome::Response(payload(size))
                    }
                    _ => failure(Code::Internal, "broken"),
                };
                let response = worker_client
                    .finish_operation(finish_request(&lease, outcome))
                    .await?;
                Ok(StepResponse::Succeeded(Some(response.into_inner())))
            }
            RunStep::Cancel(_) => {
                let request = CancelOperationRequest { name };
                client.cancel_operation(request).await?;
                Ok(StepResponse::Succeeded(None))
            }
            RunStep::Delete(_) => {
                let request = DeleteOperationRequest { name };
                client.delete_operation(request).await?;
                Ok(StepResponse::Succeeded(None))
            }
            RunStep::Stop | RunStep::Kill => unreachable!("stop and kill are not calls"),
        }
    }
}
