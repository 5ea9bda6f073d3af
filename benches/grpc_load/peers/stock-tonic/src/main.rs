//! A straightforward google.longrunning.Operations: prost messages in
//! a map under a lock, served by tonic's own server with default settings, on a current-thread runtime.
//!
//! `stock-tonic STORED` prints `listening ADDRESS`. GetOperation of `waiters`
//! has the number of open waits as its name; DeleteOperation does nothing and so is the
//! empty unary.

#[allow(dead_code, clippy::all, rustdoc::all)]
mod pb {
    pub mod google {
        pub mod api {
            tonic::include_proto!("google.api");
        }
        pub mod rpc {
            tonic::include_proto!("google.rpc");
        }
        pub mod longrunning {
            tonic::include_proto!("google.longrunning");
        }
    }
}

use std::{
    collections::HashMap,
    env,
    error::Error,
    fs,
    pin::pin,
    sync::{
        Arc, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use pb::google::{
    longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, Operation, WaitOperationRequest, operation,
        operations_server::{Operations, OperationsServer},
    },
    rpc,
};
use prost::Message;
use tokio::sync::Notify;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

struct Entry {
    operation: Operation,
    finished: Arc<Notify>,
}

struct Store {
    entries: RwLock<HashMap<String, Entry>>,
    /// In the order of creation.
    names: Vec<String>,
    waiters: AtomicUsize,
}

impl Store {
    fn get(&self, name: &str) -> Result<Operation, Status> {
        let entries = self.entries.read().expect("no writer panics");
        let entry = entries.get(name).ok_or_else(|| Status::not_found(name))?;
        Ok(entry.operation.clone())
    }
}

#[tonic::async_trait]
impl Operations for Store {
    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let name = request.into_inner().name;
        if name == "waiters" {
            let name = self.waiters.load(Ordering::Relaxed).to_string();
            return Ok(Response::new(Operation {
                name,
                ..Default::default()
            }));
        }
        self.get(&name).map(Response::new)
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let name = request.into_inner().name;
        let finished = {
            let entries = self.entries.read().expect("no writer panics");
            let entry = entries
                .get(&name)
                .ok_or_else(|| Status::not_found(&*name))?;
            entry.finished.clone()
        };
        let mut finished = pin!(finished.notified());
        finished.as_mut().enable();
        if !self.get(&name)?.done {
            self.waiters.fetch_add(1, Ordering::Relaxed);
            finished.await;
            self.waiters.fetch_sub(1, Ordering::Relaxed);
        }
        self.get(&name).map(Response::new)
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        let mut entries = self.entries.write().expect("no writer panics");
        let entry = entries
            .get_mut(&name)
            .ok_or_else(|| Status::not_found(name))?;
        entry.operation.done = true;
        entry.operation.result = Some(operation::Result::Error(rpc::Status {
            code: 1,
            message: "cancelled".to_owned(),
            details: Vec::new(),
        }));
        entry.finished.notify_waiters();
        Ok(Response::new(()))
    }

    async fn delete_operation(
        &self,
        _: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let size = usize::try_from(request.into_inner().page_size).unwrap_or(0);
        let entries = self.entries.read().expect("no writer panics");
        let newest = self.names.iter().rev().take(size);
        Ok(Response::new(ListOperationsResponse {
            operations: newest.map(|name| entries[name].operation.clone()).collect(),
            ..Default::default()
        }))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("stock-tonic STORED")?;
    let stored = ListOperationsResponse::decode(&*fs::read(path)?)?;
    let entry = |operation: Operation| {
        let finished = Arc::default();
        (
            operation.name.clone(),
            Entry {
                operation,
                finished,
            },
        )
    };
    let names = stored.operations.iter().map(|each| each.name.clone());
    let store = Store {
        names: names.collect(),
        entries: RwLock::new(stored.operations.into_iter().map(entry).collect()),
        waiters: AtomicUsize::new(0),
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            // `Server::serve` does not report the port.
            let listener = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
            println!("listening {}", listener.local_addr()?);
            Server::builder()
                // The default of 200 streams per connection is too low for the waits.
                .max_concurrent_streams(100_000)
                .add_service(OperationsServer::new(store))
                .serve_with_incoming(listener)
                .await?;
            Ok(())
        })
}
