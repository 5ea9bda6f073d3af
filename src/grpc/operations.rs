//! The `google.longrunning.Operations` service.

use std::time::Duration;

use tonic::{Request, Response};

use super::codec::{EncodedMessage, UnaryResult};
use crate::{
    operation::{Operation, encoded},
    proto::google::longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        WaitOperationRequest,
    },
    service::{
        operations::Operations,
        request_params::{WaitLimits, parse_duration_field, parse_lookup_name},
    },
};

#[expect(unreachable_pub, reason = "generated")]
mod generated {
    tonic::include_proto!("google.longrunning.Operations");
}

pub use generated::operations_server::OperationsServer;

/// Implements `google.longrunning.Operations` on [`Operations`].
#[derive(Clone, Debug)]
pub struct OperationsService {
    operations: Operations,
    wait_limits: WaitLimits,
}

/// Returns the `google.longrunning.Operations` service for a tonic server, with the
/// default wait limits.
pub fn operations_server(operations: &Operations) -> OperationsServer<OperationsService> {
    operations_server_with(operations, WaitLimits::default())
}

/// Returns the `google.longrunning.Operations` service for a tonic server.
pub fn operations_server_with(
    operations: &Operations,
    wait_limits: WaitLimits,
) -> OperationsServer<OperationsService> {
    OperationsServer::new(OperationsService {
        operations: operations.clone(),
        wait_limits,
    })
}

#[tonic::async_trait]
impl generated::operations_server::Operations for OperationsService {
    async fn get_operation(&self, request: Request<GetOperationRequest>) -> UnaryResult {
        let name = parse_lookup_name(request.into_inner().name)?;
        let operation = self.operations.get(&name).await?;
        Ok(Response::new(EncodedMessage::Operation(operation)))
    }

    async fn list_operations(&self, request: Request<ListOperationsRequest>) -> UnaryResult {
        let page = self.operations.list(request.get_ref()).await?;
        let operations = page.operations.iter();
        let operations = operations.map(|operation| Operation::bytes(operation));
        let list =
            encoded::encode_list_response(operations, &page.next_page_token, &page.unreachable);
        Ok(Response::new(EncodedMessage::Bytes(list.into())))
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> UnaryResult {
        let name = parse_lookup_name(request.into_inner().name)?;
        self.operations.cancel(&name).await?;
        Ok(Response::new(EncodedMessage::EMPTY))
    }

    async fn delete_operation(&self, request: Request<DeleteOperationRequest>) -> UnaryResult {
        let name = parse_lookup_name(request.into_inner().name)?;
        self.operations.delete(&name).await?;
        Ok(Response::new(EncodedMessage::EMPTY))
    }

    async fn wait_operation(&self, request: Request<WaitOperationRequest>) -> UnaryResult {
        let client_timeout = grpc_timeout(request.metadata());
        let request = request.into_inner();
        let name = parse_lookup_name(request.name)?;
        let timeout = parse_duration_field("timeout", "INVALID_TIMEOUT", request.timeout)?;
        let timeout = self.wait_limits.effective_timeout(timeout, client_timeout);
        let operation = self.operations.wait(&name, timeout).await?;
        Ok(Response::new(EncodedMessage::Operation(operation)))
    }
}

/// Returns the timeout in the `grpc-timeout` header (at most 8 digits and a unit), or
/// `None` if it is missing or malformed.
pub(super) fn grpc_timeout(metadata: &tonic::metadata::MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: WAIT-5
    #[test]
    fn grpc_timeout_header_is_parsed_in_every_unit() {
        let parse = |text: &str| {
            let mut metadata = tonic::metadata::MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().ok()?);
            grpc_timeout(&metadata)
        };
        assert_eq!(parse("300m"), Some(Duration::from_millis(300)));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        assert_eq!(parse("7S"), Some(Duration::from_secs(7)));
        for invalid in ["", "S", "100000000S", "1x", "-1S", "1.5S", "é"] {
            assert_eq!(parse(invalid), None, "{invalid}");
        }
    }
}
