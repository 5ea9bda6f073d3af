//! Which database, and how it is used.

use std::fmt;

/// Which database, and how it is used. It prints without a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresOptions {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, or `host=… user=…`.
    pub url: String,
    /// The same database for the one connection that listens, if `url` leads to a
    /// pooler that gives each transaction another connection. None: `url`.
    pub listen_url: Option<String>,
    /// How many done operations a server has in memory at the most; it reads the
    /// older ones from the database when they are asked for. None: all of them.
    pub view_limit: Option<usize>,
    /// The schema that holds the tables: letters a to z, digits and `_`, at most 63.
    /// Servers of the same schema share their operations.
    pub schema: String,
}

// === impl PostgresOptions ===

impl PostgresOptions {
    /// The schema `longrunning` of a database.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            listen_url: None,
            view_limit: None,
            schema: "longrunning".to_owned(),
        }
    }
}

impl fmt::Display for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.url.split_once("://").zip(self.url.rsplit_once('@')) {
            Some(((scheme, _), (_, place))) => write!(f, "{scheme}://…@{place}"),
            None => f.write_str("postgres://…"),
        }
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresOptions({self}, {:?})", self.schema)
    }
}
