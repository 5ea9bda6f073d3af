//! HTTP/JSON on the client listener.

#[cfg(feature = "cli")]
mod docs_examples;
mod google_clients;
mod http2;
mod json;
mod malformed_requests;
mod requests;
mod routing;
mod shared_port;
mod watch;
