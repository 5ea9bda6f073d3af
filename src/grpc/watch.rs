//! The `longrunning.v1.OperationWatch` service.

use futures_util::stream;
use tonic::{Request, Response, Status};

use super::codec::{EncodedMessage, ResponseStream};
use crate::{
    proto::longrunning::v1::WatchOperationRequest,
    service::{operations::Operations, request_params::parse_lookup_name},
};

#[expect(unreachable_pub, reason = "generated")]
mod generated {
    tonic::include_proto!("longrunning.v1.OperationWatch");
}

pub use generated::operation_watch_server::OperationWatchServer;

/// Implements `longrunning.v1.OperationWatch` on [`Operations`].
#[derive(Clone, Debug)]
pub struct WatchService {
    operations: Operations,
}

/// Returns the `longrunning.v1.OperationWatch` service for a tonic server.
pub fn watch_server(operations: &Operations) -> OperationWatchServer<WatchService> {
    OperationWatchServer::new(WatchService {
        operations: operations.clone(),
    })
}

#[tonic::async_trait]
impl generated::operation_watch_server::OperationWatch for WatchService {
    type WatchOperationStream = ResponseStream;

    async fn watch_operation(
        &self,
        request: Request<WatchOperationRequest>,
    ) -> Result<Response<ResponseStream>, Status> {
        let name = parse_lookup_name(request.into_inner().name)?;
        let watch = self.operations.watch(&name).await?;
        let updates = stream::unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            match watch.next().await? {
                Ok(operation) => Some((Ok(EncodedMessage::Operation(operation)), Some(watch))),
                Err(error) => Some((Err(error.into()), None)),
            }
        });
        Ok(Response::new(Box::pin(updates)))
    }
}
