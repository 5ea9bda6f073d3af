//! HTTP/JSON: the bindings of operations.proto for those who speak REST, from
//! curl to Google's REST clients. URLs and JSON in, ProtoJSON out, errors in the
//! envelope of AIP-193. It decides nothing; `operations` does.

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
