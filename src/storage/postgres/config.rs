//! Which database, and how it is used.

use std::fmt;

/// Which database, and how it is used. It prints without a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, or `host=… user=…`.
    ///
    /// Parameters are those of libpq. TLS is set by `sslmode`: `disable`, `prefer` (the
    /// default), `require`, `verify-ca` or `verify-full`; `sslrootcert`, the PEM file of
    /// the authorities, or `system`; and `sslcert` with `sslkey`, the PEM files of a
    /// certificate of our own. Only `verify-full` makes sure that it is the right
    /// database: `…?sslmode=verify-full&sslrootcert=/etc/ssl/database.pem`. Without
    /// `sslrootcert` it goes by the authorities of the system.
    pub url: String,
    /// The same database for the one connection that listens, if `url` leads to a
    /// pooler that gives each transaction another connection. None: `url`.
    pub notify_url: Option<String>,
    /// How many done operations a server has in memory at the most; it reads the
    /// older ones from the database when they are asked for. None: all of them.
    pub cache_limit: Option<usize>,
    /// The schema that holds the tables: letters a to z, digits and `_`, at most 63.
    /// Servers of the same schema share their operations.
    pub schema: String,
}

// === impl PostgresOptions ===

impl PostgresConfig {
    /// The schema `longrunning` of a database.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            notify_url: None,
            cache_limit: None,
            schema: "longrunning".to_owned(),
        }
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
        write!(f, "PostgresOptions({self}, {:?})", self.schema)
    }
}

/// The host and the database in a URL. None where it is not sure what of it is a
/// password, which may stand among the parameters too.
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
