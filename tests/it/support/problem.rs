//! Errors as a client sees them, taken apart. Whatever is taken apart here has
//! to have the form that ERR-1 to ERR-4 ask of every error.

use std::fmt::Debug;

use longrunning::proto::google::rpc::{self, BadRequest, ErrorInfo, RetryInfo};
use prost::{Message, Name};
use tonic::{Code, Response, Status};

/// What an error says.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) info: ErrorInfo,
    /// The fields at fault and the reasons.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) retry: Option<RetryInfo>,
}

/// Takes apart the error of a call that must have failed.
pub(crate) fn problem<T: Debug>(answer: Result<Response<T>, Status>) -> Problem {
    Problem::of(&answer.expect_err("the call had to fail"))
}

// === impl Problem ===

impl Problem {
    pub(crate) fn of(status: &Status) -> Self {
        let full = rpc::Status::decode(status.details()).expect("the details are a Status");
        assert_eq!(
            full.code,
            status.code() as i32,
            "the two codes agree: {status:?}"
        );
        assert_eq!(full.message, status.message(), "the two messages agree");
        assert!(
            !full.message.is_empty(),
            "there is something to read: {status:?}"
        );
        let mut types: Vec<_> = full
            .details
            .iter()
            .map(|detail| detail.type_url.clone())
            .collect();
        types.sort();
        types.dedup();
        assert_eq!(
            types.len(),
            full.details.len(),
            "each type comes once: {full:?}"
        );

        let info: ErrorInfo = detail(&full).expect("there is an ErrorInfo");
        assert_eq!(info.domain, "longrunning.v1");
        assert!(is_reason(&info.reason), "{}", info.reason);
        for key in info.metadata.keys() {
            assert!(is_key(key), "{key}");
        }
        let bad: Option<BadRequest> = detail(&full);
        assert_eq!(
            bad.is_some(),
            status.code() == Code::InvalidArgument,
            "{full:?}"
        );
        let violations = bad.map(|bad| bad.field_violations).unwrap_or_default();
        let fields = violations
            .into_iter()
            .map(|violation| {
                assert!(!violation.description.is_empty());
                (violation.field, violation.reason)
            })
            .collect();
        Self {
            code: status.code(),
            reason: info.reason.clone(),
            message: full.message.clone(),
            info,
            fields,
            retry: detail(&full),
        }
    }

    /// The code and the reason, which is what clients go by.
    pub(crate) fn key(&self) -> (Code, &str) {
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

/// `[A-Z][A-Z0-9_]+[A-Z0-9]`, at most 63 letters.
fn is_reason(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    (3..=63).contains(&text.len())
        && text.bytes().all(inner)
        && text.starts_with(|letter: char| letter.is_ascii_uppercase())
        && !text.ends_with('_')
}

/// `[a-z][a-zA-Z0-9-_]+`, at most 64 letters.
fn is_key(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (2..=64).contains(&text.len())
        && text.bytes().all(inner)
        && text.starts_with(|letter: char| letter.is_ascii_lowercase())
}
