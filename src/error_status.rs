//! Converts errors to `google.rpc.Status` with an ErrorInfo and further details
//! (AIP-193), for every transport.

use std::collections::HashMap;

use prost_types::Any;

use crate::{
    error::Error,
    operation::{outcome::ERROR_DOMAIN, payload::Payload},
    proto::google::rpc::{
        BadRequest, Code, ErrorInfo, RetryInfo, Status, bad_request::FieldViolation,
    },
};

/// Limits of the message and of a value in the details. Longer texts repeat the
/// caller's input and are truncated.
const MAX_MESSAGE_BYTES: usize = 1024;
const MAX_VALUE_BYTES: usize = 512;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut details = Vec::new();
        if let Error::Invalid {
            field,
            reason,
            message,
        } = &error
        {
            details.push(field_violation(field, reason, message));
        }
        if let Some(delay) = error.retry_after() {
            let retry_delay = prost_types::Duration::try_from(delay).ok();
            details.push(Payload::pack(&RetryInfo { retry_delay }).any().clone());
        }
        let metadata = error
            .metadata()
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        build_status(
            error.code(),
            error.reason(),
            metadata,
            &error.to_string(),
            details,
        )
    }
}

/// Returns the status of a request that could not be decoded, for example because a
/// name is not valid UTF-8.
pub(crate) fn malformed_request(problem: &str) -> Status {
    let message = format!("malformed request: {problem}");
    bad_request("", "MALFORMED_REQUEST", &message, &message)
}

/// Returns the status of an invalid argument whose name is not known at compile time.
#[cfg_attr(
    not(feature = "gateway"),
    expect(
        dead_code,
        reason = "only URL parameters have names unknown at compile time"
    )
)]
pub(crate) fn invalid_argument(field: &str, reason: &str, description: &str) -> Status {
    bad_request(
        field,
        reason,
        &format!("{field}: {description}"),
        description,
    )
}

/// Returns a status with an ErrorInfo, for an error of the transport.
pub(crate) fn with_reason(code: Code, reason: &str, message: &str) -> Status {
    let metadata = [("description".to_owned(), message.to_owned())];
    build_status(code, reason, metadata.into(), message, Vec::new())
}

fn bad_request(field: &str, reason: &str, message: &str, description: &str) -> Status {
    let mut metadata = HashMap::from([("description".to_owned(), description.to_owned())]);
    if !field.is_empty() {
        metadata.insert("field".to_owned(), field.to_owned());
    }
    let details = vec![field_violation(field, reason, description)];
    build_status(Code::InvalidArgument, reason, metadata, message, details)
}

fn build_status(
    code: Code,
    reason: &str,
    metadata: HashMap<String, String>,
    message: &str,
    mut details: Vec<Any>,
) -> Status {
    // Many clients close the connection when the response headers are too large.
    let message = truncate(message, MAX_MESSAGE_BYTES);
    let metadata = metadata
        .into_iter()
        .map(|(key, value)| (key, truncate(&value, MAX_VALUE_BYTES).to_owned()));
    let info = ErrorInfo {
        reason: reason.to_owned(),
        domain: ERROR_DOMAIN.to_owned(),
        metadata: metadata.collect(),
    };
    details.insert(0, Payload::pack(&info).any().clone());
    Status {
        code: code.into(),
        message: message.to_owned(),
        details,
    }
}

fn truncate(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

fn field_violation(field: &str, reason: &str, description: &str) -> Any {
    let violation = FieldViolation {
        field: truncate(field, MAX_VALUE_BYTES).to_owned(),
        reason: reason.to_owned(),
        description: truncate(description, MAX_VALUE_BYTES).to_owned(),
        ..Default::default()
    };
    Payload::pack(&BadRequest {
        field_violations: vec![violation],
    })
    .any()
    .clone()
}
