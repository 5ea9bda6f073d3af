//! The gRPC services: requests in, stored bytes out, errors as statuses. They
//! decide nothing; `operations` does.

pub(crate) mod codec;
pub(crate) mod lease_proto;
pub(crate) mod metrics_layer;
pub(crate) mod operations;
pub(crate) mod status;
pub(crate) mod watch;
pub(crate) mod worker;
