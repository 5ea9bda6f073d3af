//! Calls about operations of other clients: cancel, delete, and all kinds of reads.

use std::collections::BTreeSet;

use longrunning::proto::google::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, ListOperationsRequest, Operation,
    WaitOperationRequest,
};
use tonic::Code;

use super::clients::{CrashTestClient, WORK_QUEUE};
use crate::support::{
    expected_state::{Effect, KnownState},
    get_request,
    persistent_server::RpcError,
};

// === impl CrashTestClient ===

impl CrashTestClient {
    /// Cancels or deletes a random operation.
    pub(super) async fn cancel_or_delete(&mut self) -> Result<(), RpcError> {
        let Some(name) = self.state.choose_existing(&mut self.rng) else {
            return self.create_queued(WORK_QUEUE).await;
        };
        let mut client = self.client.clone();
        let known_state = self.state.known_state(&name);
        let request = name.clone();
        let is_done = known_state.last_seen.is_some_and(|seen| seen.done);
        if !is_done && self.rng.one_in(3) {
            let cancel = CancelOperationRequest { name: request };
            let response = client.cancel_operation(cancel);
            self.state.call(&name, Effect::Cancel, response).await?;
        } else if is_done || self.rng.one_in(8) {
            let delete = DeleteOperationRequest { name: request };
            let response = client.delete_operation(delete);
            self.state.call(&name, Effect::Delete, response).await?;
        }
        Ok(())
    }

    /// Reads a random operation or the list.
    pub(super) async fn read_any(&mut self) -> Result<(), RpcError> {
        // A complete list is slow.
        if self.rng.one_in(150) {
            return self.read_list().await;
        }
        let Some(name) = self.state.choose_existing(&mut self.rng) else {
            return self.read_list().await;
        };
        let before = self.state.known_state(&name);
        let result = if self.rng.one_in(2) {
            let request = WaitOperationRequest {
                name: name.clone(),
                timeout: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 20_000_000,
                }),
            };
            self.client.wait_operation(request).await
        } else {
            self.client.get_operation(get_request(&name)).await
        };
        match result.map_err(RpcError::from) {
            Ok(response) => self.state.observe(&before, response.get_ref()),
            Err(RpcError::Rejected(Code::NotFound, _)) => {
                self.state.expected.lock().observe(&name, &before, None);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn read_list(&mut self) -> Result<(), RpcError> {
        let before = self.state.expected.lock().known_operations();
        let operations = self.list().await?;
        let mut expected = self.state.expected.lock();
        for operation in &operations {
            let none = KnownState::default();
            let before = before.get(&operation.name).unwrap_or(&none);
            expected.observe(&operation.name, before, Some(operation));
        }
        let listed: BTreeSet<_> = operations.iter().map(|operation| &operation.name).collect();
        for (name, before) in &before {
            if !listed.contains(name) {
                expected.observe(name, before, None);
            }
        }
        Ok(())
    }

    /// Lists all operations, the newest first.
    pub(super) async fn list(&mut self) -> Result<Vec<Operation>, RpcError> {
        let (mut operations, mut token) = (Vec::new(), String::new());
        loop {
            let request = ListOperationsRequest {
                page_size: 1000,
                page_token: token,
                ..ListOperationsRequest::default()
            };
            let page = self.client.list_operations(request).await?.into_inner();
            operations.extend(page.operations);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(operations);
            }
        }
    }
}
