//! The version of an operation: which of its revisions this is.

use crate::clock::Timestamp;

/// Identifies one revision of an operation, for equality only.
///
/// The revision number alone is not enough: a database that lost acknowledged
/// writes in a failover assigns the same numbers again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationVersion {
    pub(super) revision: u32,
    pub(super) update_time: Timestamp,
}
