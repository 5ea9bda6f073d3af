//! The errors of this backend, formatted for operators.

use std::{error::Error, time::Duration};

use crate::storage::error::{StorageError, StorageErrorKind};

/// Returns an error of tokio-postgres as the server worded it, with its SQLSTATE; otherwise with its cause.
pub(super) fn query_error(error: tokio_postgres::Error) -> StorageError {
    let message = match (error.as_db_error(), error.source()) {
        (Some(db_error), _) => format!(
            "database error: {} (SQLSTATE {})",
            db_error.message(),
            db_error.code().code()
        ),
        (None, Some(cause)) => format!("the database cannot be used: {error}: {cause}"),
        (None, None) => format!("the database cannot be used: {error}"),
    };
    // Classes 28 and 3D: a wrong user, password or database, which a retry cannot fix.
    let is_misconfigured = error
        .code()
        .is_some_and(|state| state.code().starts_with("28") || state.code().starts_with("3D"));
    let kind = if is_misconfigured {
        StorageErrorKind::InvalidConfig
    } else {
        StorageErrorKind::Unavailable
    };
    StorageError::new(kind, message).with_source(error)
}

/// Returns the error of a database that did not answer in time.
pub(super) fn timeout_error(limit: Duration) -> StorageError {
    StorageError::unavailable(format!(
        "the database did not answer within {} s",
        limit.as_secs()
    ))
}

/// Returns the error of a table `schema_meta` without its row.
pub(super) fn missing_meta_error() -> StorageError {
    StorageError::corrupt("the table schema_meta is empty; restore it from a backup")
}
