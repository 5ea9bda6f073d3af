//! The gRPC services: requests in, stored bytes out, errors as statuses. They
//! decide nothing; `operations` does.

pub(crate) mod border;
pub(crate) mod codec;
pub(crate) mod lease;
pub(crate) mod operations;
pub(crate) mod status;
pub(crate) mod watch;
pub(crate) mod worker;
