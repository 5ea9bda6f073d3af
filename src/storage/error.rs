//! The error of storage backends.

use std::{error::Error, fmt, sync::Arc};

/// Why stored operations cannot be read or written.
#[derive(Clone, Debug)]
pub struct StorageError {
    kind: StorageErrorKind,
    message: Box<str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// What kind of failure a [`StorageError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageErrorKind {
    /// The configuration is invalid: a URL, a path, a schema name or TLS parameters.
    InvalidConfig,
    /// Another process or program owns the storage.
    InUse,
    /// The stored data has a version that this program does not support.
    UnsupportedVersion,
    /// Stored data is damaged or incomplete.
    Corrupt,
    /// The disk or the database does not accept requests, or does not answer.
    Unavailable,
    /// The storage was closed.
    Closed,
    /// A bug of the backend.
    Internal,
}

impl StorageError {
    /// Returns an error with a message for operators: lower case, without a final stop.
    pub fn new(kind: StorageErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into().into_boxed_str(),
            source: None,
        }
    }

    /// Adds the error that caused this one. Its text is part of neither the message nor `Display`.
    #[must_use]
    pub fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Returns the kind of failure.
    pub fn kind(&self) -> StorageErrorKind {
        self.kind
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::Internal, message)
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl StorageError {
    /// Returns the error of a backend that was closed.
    pub(crate) fn closed() -> Self {
        Self::new(StorageErrorKind::Closed, "the storage is closed")
    }

    pub(crate) fn invalid_config(message: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::InvalidConfig, message)
    }

    pub(crate) fn unsupported_version(message: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::UnsupportedVersion, message)
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::Corrupt, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::Unavailable, message)
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn in_use(message: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::InUse, message)
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for StorageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}
