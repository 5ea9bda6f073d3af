//! Clients that look at what others made, cancel it or delete it.

use std::collections::BTreeSet;

use longrunning::proto::google::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, ListOperationsRequest, Operation,
    WaitOperationRequest,
};
use tonic::Code;

use super::clients::{Hand, WORK};
use crate::support::{
    get,
    ledger::{Effect, Known},
    stored::Fail,
};

// === impl Hand ===

impl Hand {
    /// Cancels or deletes.
    pub(super) async fn disturb(&mut self) -> Result<(), Fail> {
        let Some(name) = self.world.any(&mut self.dice) else {
            return self.create(WORK).await;
        };
        let mut client = self.client.clone();
        let known = self.world.known(&name);
        let request = name.clone();
        let is_done = known.seen.is_some_and(|seen| seen.done);
        if !is_done && self.dice.once_in(3) {
            let cancel = CancelOperationRequest { name: request };
            let answer = client.cancel_operation(cancel);
            self.world.call(&name, Effect::Cancel, answer).await?;
        } else if is_done || self.dice.once_in(8) {
            let delete = DeleteOperationRequest { name: request };
            let answer = client.delete_operation(delete);
            self.world.call(&name, Effect::Delete, answer).await?;
        }
        Ok(())
    }

    /// Looks at operations, each way that there is.
    pub(super) async fn read(&mut self) -> Result<(), Fail> {
        // All of them at once are a lot.
        if self.dice.once_in(150) {
            return self.read_list().await;
        }
        let Some(name) = self.world.any(&mut self.dice) else {
            return self.read_list().await;
        };
        let before = self.world.known(&name);
        let answer = if self.dice.once_in(2) {
            let request = WaitOperationRequest {
                name: name.clone(),
                timeout: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 20_000_000,
                }),
            };
            self.client.wait_operation(request).await
        } else {
            self.client.get_operation(get(&name)).await
        };
        match answer.map_err(Fail::from) {
            Ok(answer) => self.world.saw(&before, answer.get_ref()),
            Err(Fail::Refused(Code::NotFound, _)) => {
                self.world.ledger.lock().saw(&name, &before, None);
            }
            Err(fail) => return Err(fail),
        }
        Ok(())
    }

    async fn read_list(&mut self) -> Result<(), Fail> {
        let before = self.world.ledger.lock().all();
        let all = self.list().await?;
        let mut ledger = self.world.ledger.lock();
        for operation in &all {
            let none = Known::default();
            let before = before.get(&operation.name).unwrap_or(&none);
            ledger.saw(&operation.name, before, Some(operation));
        }
        let listed: BTreeSet<_> = all.iter().map(|one| &one.name).collect();
        for (name, before) in &before {
            if !listed.contains(name) {
                ledger.saw(name, before, None);
            }
        }
        Ok(())
    }

    /// All operations, the newest first.
    pub(super) async fn list(&mut self) -> Result<Vec<Operation>, Fail> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let request = ListOperationsRequest {
                page_size: 1000,
                page_token: token,
                ..ListOperationsRequest::default()
            };
            let page = self.client.list_operations(request).await?.into_inner();
            all.extend(page.operations);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }
}
