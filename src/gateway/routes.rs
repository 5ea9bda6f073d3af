//! Routes a method and a path to a call: the bindings of operations.proto, and those
//! built into Google's REST clients.
//!
//! | binding | call |
//! | --- | --- |
//! | `GET {name=operations}`, `GET {name=**}/operations` | list |
//! | `GET {name=operations/**}`, `GET {name=**/operations/*}` | get |
//! | `DELETE`, the same | delete |
//! | `POST {name=…}:cancel`, `POST {name=…}:wait`, the same | cancel, wait |
//! | `GET {name=…}:watch`, the same | watch |

use http::Method;

use super::{
    prefix::HttpPrefix,
    url::{InvalidUrl, UrlPart, percent_decode},
};
use crate::operation::name::OPERATIONS_COLLECTION;

/// The call of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    List,
    Get,
    Delete,
    Cancel,
    Wait,
    Watch,
}

/// A call and the name in its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) action: Action,
    pub(super) name: String,
}

/// Error for a request that matches no binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RouteError {
    /// No binding matches the path.
    NotFound,
    /// The path has bindings, but only for these methods (value of `allow`).
    MethodNotAllowed(&'static str),
    /// The path is malformed.
    InvalidUrl(InvalidUrl),
}

/// The resource that a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Operation,
    Collection,
    Verb(Action),
}

/// Returns the call for a method and a raw path.
pub(super) fn match_route(
    prefix: &HttpPrefix,
    method: &Method,
    path: &str,
) -> Result<Route, RouteError> {
    let path = prefix.strip(path).ok_or(RouteError::NotFound)?;
    if path.starts_with('/') {
        // A duplicate slash in a client's base URL would be an empty parent, which
        // lists everything.
        return Err(RouteError::NotFound);
    }
    let (path, verb) = split_verb(path);
    let resource = classify(path, verb).ok_or(RouteError::NotFound)?;
    let Some(action) = resource.action(method) else {
        // A POST to an unknown verb is 404, although `x:verb` is a valid operation id.
        let last = path.rsplit('/').next().unwrap_or_default();
        let is_unknown_verb = method == Method::POST && verb.is_none() && last.contains(':');
        return Err(if is_unknown_verb {
            RouteError::NotFound
        } else {
            RouteError::MethodNotAllowed(resource.allowed_methods())
        });
    };
    let name = match action {
        Action::List => percent_decode(list_parent(path), UrlPart::MultiSegment),
        _ => operation_name(path),
    };
    let name = name.map_err(RouteError::InvalidUrl)?;
    Ok(Route { action, name })
}

/// Returns `true` if a raw path belongs to HTTP/JSON and not to a gRPC service. With the
/// empty prefix, both have the same form, and only paths with a binding are HTTP/JSON.
pub(super) fn is_gateway_path(prefix: &HttpPrefix, path: &str) -> bool {
    prefix.strip(path).is_some_and(|path| {
        let (path, verb) = split_verb(path);
        !prefix.is_empty() || classify(path, verb).is_some()
    })
}

/// Splits a custom verb from a raw path: the text after the last colon, if it is a known
/// verb. Works on the raw path, so that an escaped colon belongs to the name; so does a
/// raw colon before anything else, because Google's Rust client does not escape colons.
fn split_verb(path: &str) -> (&str, Option<Action>) {
    match path.rsplit_once(':') {
        Some((path, "cancel")) => (path, Some(Action::Cancel)),
        Some((path, "wait")) => (path, Some(Action::Wait)),
        Some((path, "watch")) => (path, Some(Action::Watch)),
        _ => (path, None),
    }
}

/// Returns the resource of a raw path without its verb, or `None` if no binding matches.
fn classify(path: &str, verb: Option<Action>) -> Option<Resource> {
    let (front, last) = path.rsplit_once('/').unwrap_or(("", path));
    let previous_segment = front.rsplit('/').next();
    let is_operation = previous_segment == Some(OPERATIONS_COLLECTION)
        || path
            .strip_prefix(OPERATIONS_COLLECTION)
            .is_some_and(|rest| rest.starts_with('/') || (rest.is_empty() && verb.is_some()));
    if let Some(verb) = verb {
        return is_operation.then_some(Resource::Verb(verb));
    }
    match (is_operation, last == OPERATIONS_COLLECTION) {
        // Also `…/operations/operations`, with which Google's Python client lists the collection
        // `…/operations`: no operation has the id `operations`.
        (_, true) => Some(Resource::Collection),
        (true, false) => Some(Resource::Operation),
        (false, false) => None,
    }
}

/// Returns the name of a list request: the parent of the collection, or the top-level
/// collection itself.
fn list_parent(path: &str) -> &str {
    path.strip_suffix(OPERATIONS_COLLECTION)
        .and_then(|front| front.strip_suffix('/'))
        .unwrap_or(path)
}

fn operation_name(path: &str) -> Result<String, InvalidUrl> {
    // google-gax for Node requests `operations/{name}` with the slashes of the full name
    // escaped (gax/protos/operations.json). This is unambiguous: no name contains an
    // escaped slash.
    let escaped_segment = path
        .strip_prefix(OPERATIONS_COLLECTION)
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|segment| !segment.contains('/'))
        .filter(|segment| segment.contains("%2F") || segment.contains("%2f"));
    match escaped_segment {
        Some(segment) => percent_decode(segment, UrlPart::SingleSegment),
        None => percent_decode(path, UrlPart::MultiSegment),
    }
}

// === impl Action ===

impl Action {
    #[cfg(test)]
    pub(super) const ALL: [Self; 6] = [
        Self::List,
        Self::Get,
        Self::Delete,
        Self::Cancel,
        Self::Wait,
        Self::Watch,
    ];

    /// Returns the name of the RPC, for metrics.
    pub(super) fn rpc_name(self) -> &'static str {
        match self {
            Self::List => "ListOperations",
            Self::Get => "GetOperation",
            Self::Delete => "DeleteOperation",
            Self::Cancel => "CancelOperation",
            Self::Wait => "WaitOperation",
            Self::Watch => "WatchOperation",
        }
    }
}

// === impl Resource ===

impl Resource {
    fn action(self, method: &Method) -> Option<Action> {
        // HEAD is a GET without the body (RFC 9110).
        let is_get = method == Method::GET || method == Method::HEAD;
        match self {
            Self::Collection if is_get => Some(Action::List),
            Self::Operation if is_get => Some(Action::Get),
            Self::Operation if method == Method::DELETE => Some(Action::Delete),
            Self::Verb(Action::Watch) => (method == Method::GET).then_some(Action::Watch),
            Self::Verb(verb) => (method == Method::POST).then_some(verb),
            _ => None,
        }
    }

    /// Returns the value of the header `allow`.
    fn allowed_methods(self) -> &'static str {
        match self {
            Self::Collection => "GET, HEAD, OPTIONS",
            Self::Operation => "GET, HEAD, DELETE, OPTIONS",
            Self::Verb(Action::Watch) => "GET, OPTIONS",
            Self::Verb(_) => "POST, OPTIONS",
        }
    }
}

#[cfg(test)]
mod tests;
