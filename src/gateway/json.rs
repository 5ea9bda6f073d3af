//! The JSON of requests and answers: ProtoJSON, as `types` has it. Operations
//! are stored encoded; their JSON is made when it is asked for.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::{Message, Name};
use serde_json::{Map, Value};

use super::status::Refusal;
use crate::{
    error::Error,
    operation::operation::Operation,
    operations::{calls::parse_timeout, listing::Page},
    proto::google::longrunning::{CancelOperationRequest, WaitOperationRequest},
    status,
    tasks::aside,
    types::{Enums, Types},
};

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// Inside an `Any` too.
    pub(super) enums: Enums,
    /// With line breaks, for people.
    pub(super) pretty: bool,
}

// === impl Form ===

impl Default for Form {
    fn default() -> Self {
        Self {
            enums: Enums::Names,
            pretty: false,
        }
    }
}

impl Form {
    /// The text of a value.
    pub(super) fn write(self, json: &Value) -> Bytes {
        if self.pretty {
            format!("{json:#}\n").into()
        } else {
            json.to_string().into()
        }
    }

    /// An operation.
    pub(super) async fn operation(self, types: &Types, operation: Arc<Operation>) -> Bytes {
        let types = types.clone();
        aside(operation.bytes().len(), move || {
            self.write(&self.value(&types, &operation))
        })
        .await
    }

    /// A `google.longrunning.ListOperationsResponse`. What is empty is left out:
    /// older Python clients know no `unreachable`, and refuse what they do not know.
    pub(super) async fn page(self, types: &Types, page: Page) -> Bytes {
        let size = page.operations.iter().map(|one| one.bytes().len()).sum();
        let types = types.clone();
        aside(size, move || {
            let mut json = Map::new();
            if !page.operations.is_empty() {
                let operations = page.operations.iter();
                let operations = operations.map(|one| self.value(&types, one)).collect();
                json.insert("operations".into(), Value::Array(operations));
            }
            if !page.next_page_token.is_empty() {
                json.insert("nextPageToken".into(), page.next_page_token.into());
            }
            if !page.unreachable.is_empty() {
                json.insert("unreachable".into(), page.unreachable.into());
            }
            self.write(&Value::Object(json))
        })
        .await
    }

    fn value(self, types: &Types, operation: &Operation) -> Value {
        types.operation(&operation.to_proto(), self.enums)
    }
}

/// Checks the body of a cancel call; the path has the name already.
pub(super) fn read_cancel(types: &Types, name: &str, body: &[u8]) -> Result<(), Refusal> {
    let request: CancelOperationRequest = message(types, object(body)?)?;
    same_name(name, &request.name)
}

/// Reads the timeout in the body of a wait call.
pub(super) fn read_wait(
    types: &Types,
    name: &str,
    body: &[u8],
) -> Result<Option<Duration>, Refusal> {
    let mut fields = object(body)?;
    // Read by itself, so that a bad one is named.
    let timeout = match fields.remove("timeout") {
        None | Some(Value::Null) => None,
        Some(timeout) => {
            let refuse =
                |error: &dyn std::fmt::Display| Error::invalid("timeout", "INVALID_TIMEOUT", error);
            let duration = types
                .pack("google.protobuf.Duration", &timeout)
                .map_err(|error| refuse(&error))?;
            let duration = prost_types::Duration::decode(duration.value.as_slice())
                .map_err(|error| refuse(&error))?;
            Some(parse_timeout(duration)?)
        }
    };
    let request: WaitOperationRequest = message(types, fields)?;
    same_name(name, &request.name)?;
    Ok(timeout)
}

/// The fields of a body. An empty one has none.
fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(status::malformed("the body must be a JSON object").into()),
        Err(error) => Err(status::malformed(&format!("the body is not JSON: {error}")).into()),
    }
}

fn message<M: Name + Default>(types: &Types, fields: Map<String, Value>) -> Result<M, Refusal> {
    let any = types
        .pack(&M::full_name(), &Value::Object(fields))
        .map_err(|error| status::malformed(&format!("the body: {error}")))?;
    M::decode(any.value.as_slice()).map_err(|error| status::malformed(&error.to_string()).into())
}

fn same_name(path: &str, body: &str) -> Result<(), Refusal> {
    if body.is_empty() || body == path {
        return Ok(());
    }
    let rule = "the body names another operation than the path; leave it out there";
    Err(Error::invalid("name", "INVALID_NAME", rule).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(body: &str) -> Result<Option<Duration>, Refusal> {
        read_wait(&Types::built_in(), "operations/x", body.as_bytes())
    }

    #[test]
    fn the_timeout_of_a_wait_is_a_proto_json_duration() {
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
            assert_eq!(timeout(body).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn a_body_that_is_no_such_request_is_refused_with_what_is_wrong() {
        for (body, said) in [
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
            let refusal = timeout(body).expect_err(body);
            let message = refusal.message();
            assert!(message.contains(said), "{body}: {message}");
        }
        let deep = "[".repeat(100_000);
        assert!(timeout(&deep).is_err());
    }
}
