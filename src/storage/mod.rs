//! Where changes are kept before they are shown: one narrow trait, the journal
//! that keeps nothing, and the one in a file. Nobody below `operations` names a
//! concrete one.

pub(crate) mod journal;
pub(crate) mod memory;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
