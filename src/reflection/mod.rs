//! gRPC server reflection, both ways: `service` tells clients of the types in
//! the registry, `client` asks another server for its types. What is done with
//! types is not decided here.

pub(crate) mod client;
pub(crate) mod service;
