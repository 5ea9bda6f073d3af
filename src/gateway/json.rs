//! Parses request bodies and serializes responses as ProtoJSON. The JSON of an
//! operation is generated per request, because only its protobuf bytes are stored.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Name;
use serde_json::{Map, Value};

use super::http_error::HttpError;
use crate::{
    error::Error,
    error_status,
    operation::Operation,
    proto::google::longrunning::{CancelOperationRequest, WaitOperationRequest},
    service::{list::Page, request_params::parse_duration_field},
    tasks::spawn_blocking_if_large,
    types::{EnumFormat, TypeRegistry},
};

/// Format of a JSON response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct JsonFormat {
    /// Applies inside an `Any` too.
    pub(super) enum_encoding: EnumFormat,
    /// Adds line breaks and indentation.
    pub(super) pretty: bool,
}

// === impl JsonFormat ===

impl JsonFormat {
    pub(super) fn serialize(self, json: &Value) -> Bytes {
        if self.pretty {
            format!("{json:#}\n").into()
        } else {
            json.to_string().into()
        }
    }

    /// Serializes an operation, on a blocking thread if it is large.
    pub(super) async fn serialize_operation(
        self,
        types: &TypeRegistry,
        operation: Arc<Operation>,
    ) -> Bytes {
        let types = types.clone();
        spawn_blocking_if_large(operation.bytes().len(), move || {
            self.serialize(&self.operation_to_json(&types, &operation))
        })
        .await
    }

    /// Serializes a `google.longrunning.ListOperationsResponse`. Empty fields are omitted:
    /// older Python clients reject the unknown field `unreachable`.
    pub(super) async fn serialize_page(self, types: &TypeRegistry, page: Page) -> Bytes {
        let sizes = page.operations.iter();
        let sizes = sizes.map(|operation| operation.bytes().len());
        let size = sizes.sum();
        let types = types.clone();
        spawn_blocking_if_large(size, move || {
            let mut json = Map::new();
            if !page.operations.is_empty() {
                let operations = page.operations.iter();
                let operations =
                    operations.map(|operation| self.operation_to_json(&types, operation));
                json.insert("operations".into(), operations.collect());
            }
            if !page.next_page_token.is_empty() {
                json.insert("nextPageToken".into(), page.next_page_token.into());
            }
            if !page.unreachable.is_empty() {
                json.insert("unreachable".into(), page.unreachable.into());
            }
            self.serialize(&Value::Object(json))
        })
        .await
    }

    fn operation_to_json(self, types: &TypeRegistry, operation: &Operation) -> Value {
        types.operation_to_json(&operation.to_proto(), self.enum_encoding)
    }
}

/// Checks the body of a cancel call.
///
/// # Errors
/// The body is malformed or has a name other than `name`, that of the path.
pub(super) fn parse_cancel_body(
    types: &TypeRegistry,
    name: &str,
    body: &[u8],
) -> Result<(), HttpError> {
    let request: CancelOperationRequest = decode_fields(types, parse_object(body)?)?;
    check_name_matches_path(name, &request.name)
}

/// Returns the timeout in the body of a wait call, or `None` if there is none.
///
/// # Errors
/// The body is malformed or has a name other than `name`, that of the path.
pub(super) fn parse_wait_body(
    types: &TypeRegistry,
    name: &str,
    body: &[u8],
) -> Result<Option<Duration>, HttpError> {
    let mut fields = parse_object(body)?;
    // Parsed separately, so that the error names the field.
    let timeout = fields
        .remove("timeout")
        .filter(|timeout| !timeout.is_null());
    let timeout = timeout.map(|timeout| decode(types, &timeout)).transpose();
    let timeout = timeout.map_err(|error| Error::invalid("timeout", "INVALID_TIMEOUT", error))?;
    let timeout = parse_duration_field("timeout", "INVALID_TIMEOUT", timeout)?;
    let request: WaitOperationRequest = decode_fields(types, fields)?;
    check_name_matches_path(name, &request.name)?;
    Ok(timeout)
}

/// Returns the fields of a body. An empty body has none.
fn parse_object(body: &[u8]) -> Result<Map<String, Value>, HttpError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    let problem = match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => return Ok(fields),
        Ok(_) => "the body must be a JSON object".to_owned(),
        Err(error) => format!("the body is not JSON: {error}"),
    };
    Err(error_status::malformed_request(&problem).into())
}

fn decode_fields<M: Name + Default>(
    types: &TypeRegistry,
    fields: Map<String, Value>,
) -> Result<M, HttpError> {
    decode(types, &Value::Object(fields))
        .map_err(|error| error_status::malformed_request(&format!("invalid body: {error}")).into())
}

fn decode<M: Name + Default>(types: &TypeRegistry, json: &Value) -> Result<M, String> {
    let any = types
        .pack(&M::full_name(), json)
        .map_err(|error| error.to_string())?;
    M::decode(any.value.as_slice()).map_err(|error| error.to_string())
}

fn check_name_matches_path(path: &str, body: &str) -> Result<(), HttpError> {
    if body.is_empty() || body == path {
        return Ok(());
    }
    let message = "the body names another operation than the path; omit the name in the body";
    Err(Error::invalid("name", "INVALID_NAME", message).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_wait_timeout(body: &str) -> Result<Option<Duration>, HttpError> {
        parse_wait_body(&TypeRegistry::built_in(), "operations/x", body.as_bytes())
    }

    // Rules: HTTP-3
    #[test]
    fn wait_body_timeout_is_a_proto_json_duration() {
        for (body, millis) in [
            ("", None),
            (" \n", None),
            ("{}", None),
            (r#"{"timeout": null}"#, None),
            (r#"{"timeout": "5.500s"}"#, Some(5500)),
            (r#"{"name": "operations/x", "timeout": "3s"}"#, Some(3000)),
            (r#"{"timeout": "9s", "timeout": "0s"}"#, Some(0)),
        ] {
            let expected = millis.map(Duration::from_millis);
            assert_eq!(parse_wait_timeout(body).unwrap(), expected, "{body}");
        }
    }

    // Rules: HTTP-3, JSON-8
    #[test]
    fn invalid_wait_body_is_rejected_with_the_cause() {
        for (body, expected) in [
            (r#"{"timeout": "soon"}"#, "timeout"),
            (r#"{"timeout": 3}"#, "timeout"),
            (r#"{"timeout": "-1s"}"#, "timeout"),
            (r#"{"timeout": "315576000001s"}"#, "timeout"),
            (r#"{"timeuot": "3s"}"#, "timeuot"),
            (r#"{"name": 7}"#, "WaitOperationRequest"),
            (r#"{"name": "operations/y"}"#, "another operation"),
            ("[]", "must be a JSON object"),
            ("null", "must be a JSON object"),
            ("{", "not JSON"),
            ("{} {}", "not JSON"),
            ("timeout=3s", "not JSON"),
        ] {
            let error = parse_wait_timeout(body).expect_err(body);
            let message = error.message();
            assert!(message.contains(expected), "{body}: {message}");
        }
        let deeply_nested = "[".repeat(100_000);
        assert!(parse_wait_timeout(&deeply_nested).is_err());
    }
}
