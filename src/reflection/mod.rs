//! gRPC server reflection: a service for the types of the registry, and a client
//! that loads the types of another server.

pub(crate) mod client;
pub(crate) mod service;
