//! HTTP/JSON on the listener for clients.

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
