//! How an error looks to a gRPC client: a status with one ErrorInfo, and what
//! else helps (AIP-193). Which errors there are is decided in `error`.

use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};

use crate::{
    error::Error,
    operation::{outcome::DOMAIN, payload::Payload},
    proto::google::rpc::{self, BadRequest, ErrorInfo, RetryInfo, bad_request::FieldViolation},
};

/// The most bytes of a message, and of a value in the details. Longer ones are
/// cut: they only repeat what the caller sent.
const MAX_MESSAGE: usize = 1024;
const MAX_VALUE: usize = 512;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        sealed(rpc::Status::from(error))
    }
}

impl From<Error> for rpc::Status {
    fn from(error: Error) -> Self {
        let mut details = Vec::new();
        if let Error::Invalid {
            field,
            reason,
            message,
        } = &error
        {
            details.push(violation(field, reason, message));
        }
        if let Some(delay) = error.retry_after() {
            let retry_delay = prost_types::Duration::try_from(delay).ok();
            details.push(Payload::pack(&RetryInfo { retry_delay }).any().clone());
        }
        let code = Code::from(i32::from(error.code()));
        let metadata = error
            .metadata()
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        build(code, error.reason(), metadata, &error.to_string(), details)
    }
}

/// The request is not the message that it should be: a name that is not UTF-8,
/// for one.
pub(crate) fn malformed(problem: &str) -> Status {
    let message = format!("the request cannot be read: {problem}");
    let metadata = [("description".to_owned(), message.clone())];
    let details = vec![violation("", "MALFORMED_REQUEST", &message)];
    sealed(build(
        Code::InvalidArgument,
        "MALFORMED_REQUEST",
        metadata.into(),
        &message,
        details,
    ))
}

/// A status with one ErrorInfo, for an error of the stack below.
pub(crate) fn plain(code: Code, reason: &str, message: &str) -> Status {
    let metadata = [("description".to_owned(), message.to_owned())];
    sealed(build(code, reason, metadata.into(), message, Vec::new()))
}

fn build(
    code: Code,
    reason: &str,
    metadata: std::collections::HashMap<String, String>,
    message: &str,
    mut details: Vec<Any>,
) -> rpc::Status {
    // A response whose headers are too large ends the connection of many clients.
    let message = shorten(message, MAX_MESSAGE);
    let metadata = metadata
        .into_iter()
        .map(|(key, value)| (key, shorten(&value, MAX_VALUE).to_owned()));
    let info = ErrorInfo {
        reason: reason.to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: metadata.collect(),
    };
    details.insert(0, Payload::pack(&info).any().clone());
    rpc::Status {
        code: code.into(),
        message: message.to_owned(),
        details,
    }
}

/// The status as it ends a call.
fn sealed(full: rpc::Status) -> Status {
    let details = full.encode_to_vec().into();
    Status::with_details(Code::from(full.code), full.message, details)
}

fn shorten(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn violation(field: &str, reason: &str, description: &str) -> Any {
    let violation = FieldViolation {
        field: field.to_owned(),
        reason: reason.to_owned(),
        description: shorten(description, MAX_VALUE).to_owned(),
        ..Default::default()
    };
    Payload::pack(&BadRequest {
        field_violations: vec![violation],
    })
    .any()
    .clone()
}
