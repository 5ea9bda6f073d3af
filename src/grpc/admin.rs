//! The `longrunning.v1.OperationAdmin` service, for operators.

use tonic::{Request, Response};

use super::codec::{EncodedMessage, UnaryResult};
use crate::{
    operation::{Operation, encoded},
    proto::{
        google,
        longrunning::v1::{CancelOperationRequest, ListOperationsRequest},
    },
    service::{operations::Operations, request_params::parse_lookup_name},
};

#[expect(unreachable_pub, reason = "generated")]
mod generated {
    tonic::include_proto!("longrunning.v1.OperationAdmin");
}

pub use generated::operation_admin_server::OperationAdminServer;

/// Implements `longrunning.v1.OperationAdmin` on [`Operations`].
#[derive(Clone, Debug)]
pub struct AdminService {
    operations: Operations,
}

/// Returns the `longrunning.v1.OperationAdmin` service for a tonic server. Its callers
/// see deleted operations: use a listener that clients cannot reach.
pub fn admin_server(operations: &Operations) -> OperationAdminServer<AdminService> {
    OperationAdminServer::new(AdminService {
        operations: operations.clone(),
    })
}

#[tonic::async_trait]
impl generated::operation_admin_server::OperationAdmin for AdminService {
    async fn list_operations(&self, request: Request<ListOperationsRequest>) -> UnaryResult {
        let request = request.into_inner();
        let show_deleted = request.show_deleted;
        let request = google::longrunning::ListOperationsRequest {
            name: request.name,
            filter: request.filter,
            page_size: request.page_size,
            page_token: request.page_token,
            return_partial_success: false,
        };
        let page = self.operations.list_any(&request, show_deleted).await?;
        let deleted = page.operations.iter().filter(|it| it.is_deleted());
        let deleted_names: Vec<String> = deleted.map(|it| it.name().to_owned()).collect();
        let operations = page.operations.iter();
        let operations = operations.map(|operation| Operation::bytes(operation));
        let list = encoded::encode_list_response(operations, &page.next_page_token, &deleted_names);
        Ok(Response::new(EncodedMessage::Bytes(list.into())))
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> UnaryResult {
        let name = parse_lookup_name(request.into_inner().name)?;
        self.operations.cancel_any(&name).await?;
        Ok(Response::new(EncodedMessage::EMPTY))
    }
}
