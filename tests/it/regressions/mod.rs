//! Faults found in other servers of `google.longrunning.Operations`. The comment above
//! each test describes the fault that the test excludes.

mod execution;
mod operation_shape;
