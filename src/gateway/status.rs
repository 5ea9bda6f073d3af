//! How an error looks to an HTTP client: the envelope of AIP-193, with the HTTP
//! code of `google/rpc/code.proto`. What the status in it says is decided in
//! `crate::status`.

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::{routes::NoRoute, url::BadUrl};
use crate::{
    error::Error,
    proto::google::rpc::{Code, Status},
    status,
    types::Types,
};

/// A call that is answered with an error.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(super) code: StatusCode,
    status: Status,
    /// What tells the client how to go on; boxed, because it is rare and large.
    pub(super) header: Option<Box<(HeaderName, HeaderValue)>>,
}

// === impl Refusal ===

impl Refusal {
    fn new(code: StatusCode, status: Status) -> Self {
        Self {
            code,
            status,
            header: None,
        }
    }

    /// No binding has such a path.
    pub(super) fn path(prefix: &str) -> Self {
        let message = format!(
            "no call has this path; there are GET {prefix}/operations, GET and DELETE {prefix}/operations/ID, \
             POST {prefix}/operations/ID:cancel and :wait, and GET {prefix}/operations/ID:watch, \
             each also below a parent such as {prefix}/projects/p1"
        );
        status::plain(Code::NotFound, "PATH_UNKNOWN", &message).into()
    }

    /// Bindings have the path, but with these methods.
    pub(super) fn method(allowed: &'static str) -> Self {
        let message = format!("this path cannot be asked so; it takes {allowed}");
        let status = status::plain(Code::Unimplemented, "METHOD_NOT_ALLOWED", &message);
        let mut refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, status);
        let value = HeaderValue::from_static(allowed);
        refusal.header = Some(Box::new((header::ALLOW, value)));
        refusal
    }

    /// The call comes from a page that may not call.
    pub(super) fn origin() -> Self {
        let message =
            "pages of this origin may not call; start the server with --cors-origin to let them";
        status::plain(Code::PermissionDenied, "ORIGIN_NOT_ALLOWED", message).into()
    }

    /// The body is larger than the server takes.
    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes; send a smaller one");
        let status = status::plain(Code::ResourceExhausted, "TOO_LARGE", &message);
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, status)
    }

    /// The body is not JSON by its content type.
    pub(super) fn content_type() -> Self {
        let rule = "the body must be JSON; send it with content-type: application/json";
        let status = status::invalid("content-type", "INVALID_CONTENT_TYPE", rule);
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, status)
    }

    /// A call that takes no body has one.
    pub(super) fn body() -> Self {
        status::malformed("this call takes no body").into()
    }

    /// The body did not come.
    pub(super) fn slow() -> Self {
        let message = "the body did not come in time; send it at once, or none";
        let status = status::plain(Code::DeadlineExceeded, "BODY_TOO_SLOW", message);
        Self::new(StatusCode::REQUEST_TIMEOUT, status)
    }

    /// A mistake of the server's own.
    pub(super) fn internal() -> Self {
        let message = "the server made a mistake, which its log tells of";
        status::plain(Code::Internal, "INTERNAL", message).into()
    }

    #[cfg(test)]
    pub(super) fn message(&self) -> &str {
        &self.status.message
    }

    /// The body of the answer.
    pub(super) fn envelope(&self, types: &Types) -> Value {
        let details = self.status.details.iter();
        let details: Vec<Value> = details.map(|detail| types.any(detail)).collect();
        json!({ "error": {
            "code": self.code.as_u16(),
            "message": self.status.message,
            "status": Code::try_from(self.status.code).unwrap_or(Code::Unknown).as_str_name(),
            "details": details,
        }})
    }
}

#[cfg_attr(
    not(feature = "server"),
    expect(dead_code, reason = "another server has its own words for these")
)]
impl Refusal {
    /// hyper cannot read the request, and says so with this code.
    pub(crate) fn unreadable(code: StatusCode) -> Self {
        let status = match code {
            StatusCode::URI_TOO_LONG => {
                let rule = "it is longer than the server takes; shorten it";
                status::invalid("URL", "URL_TOO_LONG", rule)
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                let rule = "the head of the request is larger than the server takes; shorten it";
                status::invalid("headers", "HEADERS_TOO_LARGE", rule)
            }
            _ => status::malformed("it is not HTTP; escape what does not belong into a URL"),
        };
        Self::new(code, status)
    }

    /// The body of the answer, for those who know no types but the built-in ones.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        self.envelope(&Types::built_in()).to_string().into_bytes()
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::new(http_code(&status), status)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let wait = error.retry_after();
        let mut refusal = Self::from(Status::from(error));
        refusal.header =
            wait.map(|wait| Box::new((header::RETRY_AFTER, wait.as_secs().max(1).into())));
        refusal
    }
}

impl From<BadUrl> for Refusal {
    fn from(error: BadUrl) -> Self {
        status::malformed(&format!("the URL: {error}")).into()
    }
}

impl NoRoute {
    /// As it is answered, on a server whose paths begin so.
    pub(super) fn refusal(self, prefix: &str) -> Refusal {
        match self {
            Self::Path => Refusal::path(prefix),
            Self::Method(allowed) => Refusal::method(allowed),
            Self::Url(error) => error.into(),
        }
    }
}

/// The HTTP code that `google/rpc/code.proto` gives a status.
fn http_code(status: &Status) -> StatusCode {
    let code = match Code::try_from(status.code) {
        Ok(Code::Ok) => 200,
        Ok(Code::Cancelled) => 499,
        Ok(Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange) => 400,
        Ok(Code::DeadlineExceeded) => 504,
        Ok(Code::NotFound) => 404,
        Ok(Code::AlreadyExists | Code::Aborted) => 409,
        Ok(Code::PermissionDenied) => 403,
        Ok(Code::Unauthenticated) => 401,
        Ok(Code::ResourceExhausted) => 429,
        Ok(Code::Unimplemented) => 501,
        Ok(Code::Unavailable) => 503,
        Ok(Code::Unknown | Code::Internal | Code::DataLoss) | Err(_) => 500,
    };
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    // AIP-193, google/rpc/code.proto
    #[test]
    fn every_code_has_the_http_code_of_code_proto() {
        let expected = [
            200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401,
        ];
        for (code, http) in (0..).zip(expected) {
            let status = Status {
                code,
                ..Status::default()
            };
            assert_eq!(http_code(&status).as_u16(), http, "{code}");
        }
        for code in [-1, 17, 123] {
            let status = Status {
                code,
                ..Status::default()
            };
            assert_eq!(http_code(&status).as_u16(), 500, "{code}");
        }
    }

    #[test]
    fn an_envelope_has_the_http_code_the_name_of_the_canonical_one_and_details() {
        let refusal = Refusal::from(Error::not_found("operations/x"));
        let mut envelope = refusal.envelope(&Types::built_in());
        assert_eq!(
            envelope["error"]["details"][0].take(),
            json!({
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "OPERATION_NOT_FOUND",
                "domain": "longrunning.v1",
                "metadata": { "name": "operations/x" },
            })
        );
        assert_eq!(
            envelope,
            json!({ "error": {
                "code": 404,
                "message": "operation \"operations/x\" not found: it never existed, was deleted, or has expired",
                "status": "NOT_FOUND",
                "details": [null],
            }})
        );
    }

    #[test]
    fn who_may_try_again_is_told_when() {
        let refusal = Refusal::from(Error::ShuttingDown);
        assert_eq!(refusal.code, StatusCode::SERVICE_UNAVAILABLE);
        let header = (header::RETRY_AFTER, HeaderValue::from_static("1"));
        assert_eq!(refusal.header, Some(Box::new(header)));
    }
}
