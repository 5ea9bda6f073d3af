//! Errors of the gateway: the envelope of AIP-193 with the HTTP codes of
//! `google/rpc/code.proto`.

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::{routes::RouteError, url::InvalidUrl};
use crate::{
    error::Error,
    error_status,
    proto::google::rpc::{Code, Status},
    types::TypeRegistry,
};

/// An HTTP error response.
#[derive(Debug)]
pub(crate) struct HttpError {
    pub(super) code: StatusCode,
    status: Status,
    /// A header such as `allow` or `retry-after`. Boxed, because it is rare and large.
    pub(super) header: Option<Box<(HeaderName, HeaderValue)>>,
}

// === impl HttpError ===

impl HttpError {
    fn new(code: StatusCode, status: Status) -> Self {
        Self {
            code,
            status,
            header: None,
        }
    }

    /// No binding matches the path.
    pub(super) fn unknown_path(prefix: &str) -> Self {
        let message = format!(
            "unknown path; available: GET {prefix}/operations, GET and DELETE {prefix}/operations/ID, \
             POST {prefix}/operations/ID:cancel and :wait, and GET {prefix}/operations/ID:watch, \
             each also below a parent such as {prefix}/projects/p1"
        );
        error_status::with_reason(Code::NotFound, "UNKNOWN_PATH", &message).into()
    }

    /// The path has bindings, but only for the `allowed` methods.
    pub(super) fn method_not_allowed(allowed: &'static str) -> Self {
        let message = format!("method not allowed for this path; allowed: {allowed}");
        let status = error_status::with_reason(Code::Unimplemented, "METHOD_NOT_ALLOWED", &message);
        let allow = (header::ALLOW, HeaderValue::from_static(allowed));
        Self {
            header: Some(Box::new(allow)),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, status)
        }
    }

    /// The call comes from a page whose origin is not configured.
    pub(super) fn origin_not_allowed() -> Self {
        let message = "calls from pages of this origin are not allowed; add it to --cors-origin of the server";
        error_status::with_reason(Code::PermissionDenied, "ORIGIN_NOT_ALLOWED", message).into()
    }

    /// The body exceeds the limit.
    pub(super) fn body_too_large(limit: usize) -> Self {
        let message = format!("the body exceeds the limit of {limit} bytes; send a smaller one");
        let status = error_status::with_reason(Code::ResourceExhausted, "TOO_LARGE", &message);
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, status)
    }

    /// The content type of the body is not JSON.
    pub(super) fn unsupported_media_type() -> Self {
        let message = "the body must be JSON; send it with content-type: application/json";
        let status =
            error_status::invalid_argument("content-type", "INVALID_CONTENT_TYPE", message);
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, status)
    }

    /// The request has a body, but its method takes none.
    pub(super) fn unexpected_body() -> Self {
        error_status::malformed_request("this call takes no body").into()
    }

    /// The body did not arrive in time.
    pub(super) fn body_timeout() -> Self {
        let message = "the body did not arrive in time; send it with the request, or none";
        let status =
            error_status::with_reason(Code::DeadlineExceeded, "REQUEST_BODY_TIMEOUT", message);
        Self::new(StatusCode::REQUEST_TIMEOUT, status)
    }

    /// The handling of the call panicked.
    pub(super) fn internal() -> Self {
        let message = "internal server error; see the server log";
        error_status::with_reason(Code::Internal, "INTERNAL", message).into()
    }

    #[cfg(test)]
    pub(super) fn message(&self) -> &str {
        &self.status.message
    }

    /// Returns the body of the response. A detail of a type that `types` lacks is base64.
    pub(super) fn envelope(&self, types: &TypeRegistry) -> Value {
        let details = self.status.details.iter();
        let details: Vec<Value> = details.map(|detail| types.any_to_json(detail)).collect();
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
    expect(
        dead_code,
        reason = "only the program answers requests that hyper rejects"
    )
)]
impl HttpError {
    /// hyper rejected the request with `code`.
    pub(crate) fn unparsable_request(code: StatusCode) -> Self {
        let status = match code {
            StatusCode::URI_TOO_LONG => {
                let message = "longer than the limit of the server; shorten it";
                error_status::invalid_argument("URL", "URL_TOO_LONG", message)
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                let message = "the request headers exceed the limit of the server; shorten them";
                error_status::invalid_argument("headers", "HEADERS_TOO_LARGE", message)
            }
            _ => error_status::malformed_request(
                "not valid HTTP; percent-encode reserved characters in the URL",
            ),
        };
        Self::new(code, status)
    }

    /// Returns the body of the response, with the built-in types only.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let json = self.envelope(&TypeRegistry::built_in());
        json.to_string().into_bytes()
    }
}

impl From<Status> for HttpError {
    fn from(status: Status) -> Self {
        Self::new(http_code(&status), status)
    }
}

impl From<Error> for HttpError {
    fn from(error: Error) -> Self {
        let retry_after = error.retry_after().map(|delay| delay.as_secs().max(1));
        Self {
            header: retry_after.map(|secs| Box::new((header::RETRY_AFTER, secs.into()))),
            ..Status::from(error).into()
        }
    }
}

impl From<InvalidUrl> for HttpError {
    fn from(error: InvalidUrl) -> Self {
        error_status::malformed_request(&format!("invalid URL: {error}")).into()
    }
}

impl RouteError {
    /// Converts to a response; its message shows paths with `prefix`.
    pub(super) fn into_http_error(self, prefix: &str) -> HttpError {
        match self {
            Self::NotFound => HttpError::unknown_path(prefix),
            Self::MethodNotAllowed(allowed) => HttpError::method_not_allowed(allowed),
            Self::InvalidUrl(error) => error.into(),
        }
    }
}

/// Returns the HTTP code of `google/rpc/code.proto` for a status.
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
    // Rules: HTTP-12
    #[test]
    fn every_grpc_code_maps_to_the_http_code_of_code_proto() {
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

    // Rules: HTTP-12
    #[test]
    fn error_envelope_has_http_code_canonical_name_and_details() {
        let error = HttpError::from(Error::not_found("operations/x"));
        let mut envelope = error.envelope(&TypeRegistry::built_in());
        assert_eq!(
            envelope["error"]["details"][0].take(),
            json!({
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "OPERATION_NOT_FOUND",
                "domain": "longrunning.dev",
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

    // Rules: HTTP-12, ERR-6
    #[test]
    fn retryable_error_has_a_retry_after_header() {
        let error = HttpError::from(Error::ShuttingDown);
        assert_eq!(error.code, StatusCode::SERVICE_UNAVAILABLE);
        let header = (header::RETRY_AFTER, HeaderValue::from_static("1"));
        assert_eq!(error.header, Some(Box::new(header)));
    }
}
