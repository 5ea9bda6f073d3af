//! How recent reads are if several servers share the storage.

/// How recent reads are if several servers share the storage. Without shared storage, every read is linearizable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadConsistency {
    /// Includes every change that any server acknowledged before the read began, if the database answers within a
    /// second; else reads this server's copy. An operation that is done in this server's copy is returned as it is: a
    /// client that polls several servers never sees an operation go back from done.
    #[default]
    Auto,
    /// Reads this server's copy. It includes every change made through this server; changes made through others
    /// arrive after the replication delay.
    Local,
    /// Includes every change that any server acknowledged before the read began, and fails with UNAVAILABLE while the
    /// database is unavailable. Each read waits for a query of the database; reads at the same time share one.
    Linearizable,
}
