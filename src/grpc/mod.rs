//! The gRPC services. They translate requests and errors, and answer with stored bytes.

pub(crate) mod admin;
pub(crate) mod codec;
pub(crate) mod lease_proto;
pub(crate) mod metrics_layer;
pub(crate) mod operations;
pub(crate) mod status;
pub(crate) mod watch;
pub(crate) mod worker;
