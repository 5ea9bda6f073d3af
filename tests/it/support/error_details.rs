//! Decodes errors as clients see them, and checks that each has the form
//! required by ERR-1 to ERR-4.

use std::fmt::Debug;

use longrunning::proto::google::rpc::{self, BadRequest, ErrorInfo, RetryInfo};
use prost::{Message, Name};
use tonic::{Code, Response, Status};

/// A decoded status error.
#[derive(Debug)]
pub(crate) struct ErrorDetails {
    pub(crate) code: Code,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) info: ErrorInfo,
    /// Field and reason of each violation.
    pub(crate) field_violations: Vec<(String, String)>,
    pub(crate) retry_info: Option<RetryInfo>,
}

/// Decodes the error of a call.
///
/// # Panics
///
/// If the call succeeded, or if its error is malformed.
pub(crate) fn expect_status_error<T: Debug>(result: Result<Response<T>, Status>) -> ErrorDetails {
    ErrorDetails::from_status(&result.expect_err("expected the call to fail"))
}

// === impl ErrorDetails ===

impl ErrorDetails {
    /// Decodes a status; panics if it is malformed.
    pub(crate) fn from_status(status: &Status) -> Self {
        let status_proto = rpc::Status::decode(status.details())
            .expect("expected details to encode a google.rpc.Status");
        assert_eq!(
            status_proto.code,
            status.code() as i32,
            "expected equal codes in header and details: {status:?}"
        );
        assert_eq!(
            status_proto.message,
            status.message(),
            "expected equal messages in header and details"
        );
        assert!(
            !status_proto.message.is_empty(),
            "expected a non-empty message: {status:?}"
        );
        let mut types: Vec<_> = status_proto
            .details
            .iter()
            .map(|detail| detail.type_url.clone())
            .collect();
        types.sort();
        types.dedup();
        assert_eq!(
            types.len(),
            status_proto.details.len(),
            "expected each detail type at most once: {status_proto:?}"
        );

        let error_info: ErrorInfo = detail(&status_proto).expect("expected an ErrorInfo");
        assert_eq!(error_info.domain, "longrunning.dev");
        assert!(is_valid_reason(&error_info.reason), "{}", error_info.reason);
        for key in error_info.metadata.keys() {
            assert!(is_valid_metadata_key(key), "{key}");
        }
        let bad_request: Option<BadRequest> = detail(&status_proto);
        assert_eq!(
            bad_request.is_some(),
            status.code() == Code::InvalidArgument,
            "{status_proto:?}"
        );
        let violations = bad_request
            .map(|bad| bad.field_violations)
            .unwrap_or_default();
        let field_violations = violations
            .into_iter()
            .map(|violation| {
                assert!(!violation.description.is_empty());
                (violation.field, violation.reason)
            })
            .collect();
        Self {
            code: status.code(),
            reason: error_info.reason.clone(),
            message: status_proto.message.clone(),
            info: error_info,
            field_violations,
            retry_info: detail(&status_proto),
        }
    }

    /// Returns code and reason, by which clients distinguish errors.
    pub(crate) fn code_and_reason(&self) -> (Code, &str) {
        (self.code, &self.reason)
    }
}

fn detail<M: Name + Default>(status: &rpc::Status) -> Option<M> {
    let url = M::type_url();
    let any = status
        .details
        .iter()
        .find(|detail| detail.type_url == url)?;
    Some(M::decode(any.value.as_slice()).unwrap())
}

/// Returns `true` for `[A-Z][A-Z0-9_]+[A-Z0-9]` of at most 63 characters.
fn is_valid_reason(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    (3..=63).contains(&text.len())
        && text.bytes().all(is_allowed)
        && text.starts_with(|letter: char| letter.is_ascii_uppercase())
        && !text.ends_with('_')
}

/// Returns `true` for `[a-z][a-zA-Z0-9-_]+` of at most 64 characters.
fn is_valid_metadata_key(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (2..=64).contains(&text.len())
        && text.bytes().all(is_allowed)
        && text.starts_with(|letter: char| letter.is_ascii_lowercase())
}
