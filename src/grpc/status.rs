//! How an error looks to a gRPC client: the status of the call, with the whole
//! `google.rpc.Status` in its details. What that says is decided in
//! `crate::status`.

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

/// The request is not the message that it should be: a name that is not UTF-8,
/// for one.
pub(crate) fn malformed_request(problem: &str) -> Status {
    into_tonic_status(error_status::malformed_request(problem))
}

/// A status with one ErrorInfo, for an error of the stack below.
pub(crate) fn with_reason(code: Code, reason: &str, message: &str) -> Status {
    let code = RpcCode::try_from(code as i32).unwrap_or(RpcCode::Unknown);
    into_tonic_status(error_status::with_reason(code, reason, message))
}

/// The status as it ends a call.
fn into_tonic_status(full: rpc::Status) -> Status {
    let details = full.encode_to_vec().into();
    Status::with_details(Code::from(full.code), full.message, details)
}
