//! Storage backends: durability, restarts, disk faults, database files and limits.

#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod backend_matrix;
mod background_maintenance;
#[cfg(feature = "cli")]
mod disk_faults;
mod durability;
mod limits;
mod restart;
#[cfg(feature = "cli")]
mod sqlite_files;
