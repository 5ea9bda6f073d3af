//! The HTTP/JSON gateway: the `google.api.http` bindings of operations.proto, for curl,
//! browsers and Google's REST clients. Errors have the envelope of AIP-193.

pub(crate) mod body;
pub(crate) mod cors;
pub(crate) mod http_error;
pub(crate) mod json;
pub(crate) mod prefix;
pub(crate) mod query;
pub(crate) mod routes;
pub(crate) mod service;
pub(crate) mod url;
pub(crate) mod watch;
