//! Shortcuts for what most tests do with a server and its operations.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longrunning::{
    OperationName, Operations,
    proto::google::longrunning::{ListOperationsRequest, Operation, WaitOperationRequest},
};

use super::{GrpcTestServer, get_request, operations_builder};

/// Starts operations with default options and no handlers.
pub(crate) async fn start_operations() -> Operations {
    operations_builder().start().await.unwrap()
}

/// Returns the operation as GetOperation serves it.
pub(crate) async fn get_operation(server: &GrpcTestServer, name: &str) -> Operation {
    let mut client = server.client().await;
    let response = client.get_operation(get_request(name)).await;
    response.unwrap().into_inner()
}

/// Waits until exactly `count` waits and watches are open.
pub(crate) async fn wait_for_waiters(operations: &Operations, count: usize) {
    while operations.waiter_count() != count {
        tokio::task::yield_now().await;
    }
}

/// Returns the wall-clock time of the server.
pub(crate) fn server_time(operations: &Operations) -> SystemTime {
    let nanos = operations.clock().now().nanos();
    UNIX_EPOCH + Duration::from_nanos(nanos.try_into().unwrap())
}

/// Returns a request to wait as long as the server allows by default.
pub(crate) fn wait_request_without_timeout(name: &OperationName) -> WaitOperationRequest {
    WaitOperationRequest {
        name: name.to_string(),
        timeout: None,
    }
}

/// Returns a request for the first page of the operations of a parent.
pub(crate) fn list_request(name: &str) -> ListOperationsRequest {
    page_request(name, 0, "")
}

/// Returns a request for one page of the operations of a parent.
pub(crate) fn page_request(name: &str, page_size: i32, page_token: &str) -> ListOperationsRequest {
    ListOperationsRequest {
        name: name.into(),
        page_size,
        page_token: page_token.into(),
        ..Default::default()
    }
}
