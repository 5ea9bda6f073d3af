//! The configuration of PostgreSQL storage.

use std::fmt;

/// The database, and how it is used. `Display` and `Debug` leave out passwords.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, or `host=… user=…`, with the parameters of libpq.
    ///
    /// `sslmode` is `disable`, `prefer` (the default), `require`, `verify-ca` or `verify-full`. `sslrootcert` is a
    /// PEM file with the trusted authorities, or `system`. `sslcert` and `sslkey` are PEM files with the client
    /// certificate and its key. Only `verify-full` verifies that the host is the right one:
    /// `…?sslmode=verify-full&sslrootcert=/etc/ssl/database.pem`. Without `sslrootcert`, it trusts the authorities of
    /// the system.
    pub url: String,
    /// A URL of the same database for LISTEN/NOTIFY, required if `url` points at a transaction pooler. Default: `url`.
    pub notify_url: Option<String>,
    /// How many done operations a server has in memory at most; it reads older ones from the database on demand.
    /// Default: all.
    pub cache_limit: Option<usize>,
    /// The schema that contains the tables: 1 to 63 letters a to z, digits and `_`, beginning with a letter or `_`.
    /// Servers with the same schema share their operations. Default: `longrunning`.
    pub schema: String,
}

// === impl PostgresConfig ===

impl PostgresConfig {
    /// Returns the configuration for a database, with defaults for everything else.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            notify_url: None,
            cache_limit: None,
            schema: "longrunning".to_owned(),
        }
    }

    /// Sets the URL for LISTEN/NOTIFY.
    #[must_use]
    pub fn with_notify_url(mut self, url: impl Into<String>) -> Self {
        self.notify_url = Some(url.into());
        self
    }

    /// Sets how many done operations a server has in memory at most.
    #[must_use]
    pub fn with_cache_limit(mut self, limit: usize) -> Self {
        self.cache_limit = Some(limit);
        self
    }

    /// Sets the schema that contains the tables.
    #[must_use]
    pub fn with_schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }
}

impl fmt::Display for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match host_and_database(&self.url) {
            Some(address) => write!(f, "postgres://…@{address}"),
            None => f.write_str("postgres://…"),
        }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("url", &format_args!("{self}"))
            .field("cache_limit", &self.cache_limit)
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

/// Returns the host and the database of a URL, or `None` if any of its text may be part of a password.
fn host_and_database(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let (user, address) = rest.split_once('@')?;
    let address = address
        .split_once('?')
        .map_or(address, |(address, _)| address);
    let is_unambiguous = matches!(scheme, "postgres" | "postgresql")
        && rest.matches('@').count() == 1
        && !user.contains(['/', '?']);
    is_unambiguous.then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: TLS-4
    #[test]
    fn display_shows_host_and_database_but_no_password() {
        let cases = [
            ("postgres://u:secret@h:1,i/d", "postgres://…@h:1,i/d"),
            ("postgresql://u@h", "postgres://…@h"),
            (
                "postgres://u@h/d?sslmode=verify-full&password=secret",
                "postgres://…@h/d",
            ),
            ("postgres://u:p@h?password=secret", "postgres://…@h"),
            ("postgres://h/d?password=secret", "postgres://…"),
            ("postgres://h/d?password=se@cret", "postgres://…"),
            ("postgres://h?password=se@cret", "postgres://…"),
            ("postgres://u:se@cret@h/d", "postgres://…"),
            ("postgres://u:p@h?password=se@cret", "postgres://…"),
            ("host=h password=secret", "postgres://…"),
            ("password=a://secret user=u@h", "postgres://…"),
        ];
        for (url, printed) in cases {
            let config = PostgresConfig::new(url);
            assert_eq!(config.to_string(), printed, "{url}");
            assert!(!format!("{config:?}").contains("cret"), "{url}");
        }
    }
}
