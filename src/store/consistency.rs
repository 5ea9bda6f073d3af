//! How recent reads are if several servers share the storage.

/// How recent reads are if several servers share the storage. Without shared storage, every read is linearizable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadConsistency {
    /// Reads this server's copy. It includes every change made through this server; changes made through others
    /// arrive after the replication delay.
    #[default]
    Local,
    /// Includes every change that any server acknowledged before the read began. Each read waits for a query of the
    /// database; reads at the same time share one.
    Linearizable,
}
