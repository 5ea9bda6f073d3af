//! google.longrunning.Operations: five methods, each a few lines around the
//! handle. How long a wait may take is decided here, because only here the
//! deadline of the call is known.

use std::time::Duration;

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::codec::Encoded;
use crate::{
    clock::parse_duration,
    error::{Error, Result},
    operation::{
        name::{InvalidName, OperationName},
        operation::Operation,
        wire,
    },
    operations::operations::Operations,
    proto::google::longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        WaitOperationRequest,
    },
};

#[expect(unreachable_pub, reason = "generated")]
mod generated {
    include!(concat!(
        env!("OUT_DIR"),
        "/google.longrunning.Operations.rs"
    ));
}

pub use generated::operations_server::OperationsServer;

/// How much earlier than the client's deadline a wait answers: 2 % of it, and
/// this at the least and at the most. If the server's own timer won, tonic
/// would answer CANCELLED, which means "the operation was cancelled".
const LEAST_MARGIN: Duration = Duration::from_millis(20);
const MOST_MARGIN: Duration = Duration::from_millis(500);

/// How long waits last.
#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    /// Without a timeout and without a deadline. Default 30 s.
    pub default: Duration,
    /// At the most. Default 10 min.
    pub max: Duration,
}

/// Serves [`Operations`] as google.longrunning.Operations.
#[derive(Clone, Debug)]
pub struct OperationsService {
    operations: Operations,
    waits: WaitLimits,
}

impl Default for WaitLimits {
    fn default() -> Self {
        Self {
            default: Duration::from_secs(30),
            max: Duration::from_secs(600),
        }
    }
}

/// The google.longrunning.Operations service, to be added to a tonic server.
pub fn operations_server(operations: &Operations) -> OperationsServer<OperationsService> {
    operations_server_with(operations, WaitLimits::default())
}

/// As [`operations_server`], with other limits on waits.
pub fn operations_server_with(
    operations: &Operations,
    waits: WaitLimits,
) -> OperationsServer<OperationsService> {
    OperationsServer::new(OperationsService {
        operations: operations.clone(),
        waits,
    })
}

#[tonic::async_trait]
impl generated::operations_server::Operations for OperationsService {
    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let name = lookup(request.into_inner().name)?;
        Ok(Response::new(Encoded::Operation(
            self.operations.get(&name)?,
        )))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let page = self.operations.list(request.get_ref()).await?;
        let operations = page
            .operations
            .iter()
            .map(|operation| Operation::bytes(operation));
        let list = wire::encode_list(operations, &page.next_page_token);
        Ok(Response::new(Encoded::Bytes(Bytes::from(list))))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let name = lookup(request.into_inner().name)?;
        self.operations.cancel(&name).await?;
        Ok(Response::new(Encoded::EMPTY))
    }

    async fn delete_operation(
        &self,
        request: Request<DeleteOperationRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let name = lookup(request.into_inner().name)?;
        self.operations.delete(&name).await?;
        Ok(Response::new(Encoded::EMPTY))
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let deadline = grpc_timeout(request.metadata());
        let request = request.into_inner();
        let name = lookup(request.name)?;
        let timeout = request.timeout.map(parse_timeout).transpose()?;
        let operation = self
            .operations
            .wait(&name, self.waits.limit(timeout, deadline))
            .await?;
        Ok(Response::new(Encoded::Operation(operation)))
    }
}

// === impl WaitLimits ===

impl WaitLimits {
    /// How long a wait may take, so that it answers in time.
    pub(super) fn limit(self, timeout: Option<Duration>, deadline: Option<Duration>) -> Duration {
        let deadline = deadline.map(|deadline| {
            let margin = (deadline / 50).clamp(LEAST_MARGIN, MOST_MARGIN);
            deadline.saturating_sub(margin)
        });
        let asked = match (timeout, deadline) {
            (Some(timeout), Some(deadline)) => timeout.min(deadline),
            (Some(limit), None) | (None, Some(limit)) => limit,
            (None, None) => self.default,
        };
        asked.min(self.max)
    }
}

/// The name of an operation to look up. What cannot be a name belongs to no
/// operation, so that only the empty one is an invalid argument.
pub(crate) fn lookup(name: String) -> Result<OperationName> {
    match OperationName::parse(name) {
        Ok(name) => Ok(name),
        Err(InvalidName::Malformed(name)) => Err(Error::not_found(name)),
        Err(error) => Err(error.into()),
    }
}

/// The `timeout` of a wait.
fn parse_timeout(timeout: prost_types::Duration) -> Result<Duration> {
    parse_duration(timeout).map_err(|error| Error::invalid("timeout", "INVALID_TIMEOUT", error))
}

/// The time that the client gives the call: at most 8 digits and a unit.
pub(super) fn grpc_timeout(metadata: &tonic::metadata::MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if 8 < digits.len() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
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

    #[test]
    fn a_wait_ends_before_the_deadline_by_a_margin_of_at_least_20_ms() {
        let limits = WaitLimits::default();
        let ms = Duration::from_millis;
        assert_eq!(limits.limit(None, Some(ms(300))), ms(280));
        assert_eq!(limits.limit(None, Some(ms(10))), ms(0));
        assert_eq!(limits.limit(None, Some(ms(5_000))), ms(4_900));
        assert_eq!(limits.limit(None, Some(ms(100_000))), ms(99_500));
        assert_eq!(limits.limit(Some(ms(50)), Some(ms(300))), ms(50));
    }

    #[test]
    fn a_wait_without_timeout_and_deadline_takes_the_default_and_never_more_than_the_most() {
        let limits = WaitLimits::default();
        assert_eq!(limits.limit(None, None), Duration::from_secs(30));
        assert_eq!(
            limits.limit(Some(Duration::MAX), None),
            Duration::from_secs(600)
        );
        assert_eq!(
            limits.limit(None, Some(Duration::from_secs(86_400))),
            Duration::from_secs(600)
        );
        assert_eq!(limits.limit(Some(Duration::ZERO), None), Duration::ZERO);
    }

    #[test]
    fn a_negative_or_malformed_timeout_is_refused() {
        let parse = |seconds, nanos| parse_timeout(prost_types::Duration { seconds, nanos });
        assert_eq!(parse(1, 500_000_000).unwrap(), Duration::from_millis(1500));
        let longest = 315_576_000_000;
        assert_eq!(parse(longest, 0).unwrap().as_secs(), 315_576_000_000);
        for (seconds, nanos) in [
            (-1, 0),
            (0, -1),
            (1, -1),
            (-1, 1),
            (0, 1_000_000_000),
            (longest + 1, 0),
            (i64::MIN, i32::MIN),
        ] {
            assert_eq!(
                parse(seconds, nanos).unwrap_err().reason(),
                "INVALID_TIMEOUT"
            );
        }
    }

    #[test]
    fn the_deadline_of_a_call_is_read_in_every_unit() {
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
        for bad in ["", "S", "100000000S", "1x", "-1S", "1.5S", "é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
