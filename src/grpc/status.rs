//! Converts errors to gRPC statuses, with the whole `google.rpc.Status` in the details.

use prost::Message;
use tonic::{Code, Status};

use crate::{
    error::Error,
    error_status,
    proto::google::rpc::{self, Code as RpcCode},
};

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        into_tonic_status(rpc::Status::from(error))
    }
}

/// Returns the status of a request that could not be decoded, for example because a
/// name is not valid UTF-8.
pub(crate) fn malformed_request(problem: &str) -> Status {
    into_tonic_status(error_status::malformed_request(problem))
}

/// Returns a status with an ErrorInfo, for an error of the gRPC stack.
pub(crate) fn with_reason(code: Code, reason: &str, message: &str) -> Status {
    let code = RpcCode::try_from(code as i32).unwrap_or(RpcCode::Unknown);
    into_tonic_status(error_status::with_reason(code, reason, message))
}

fn into_tonic_status(full: rpc::Status) -> Status {
    let details = full.encode_to_vec().into();
    Status::with_details(Code::from(full.code), full.message, details)
}
