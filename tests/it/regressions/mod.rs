//! Faults of other servers, which this one must not have.

mod execution;
mod operation_shape;
