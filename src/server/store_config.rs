//! The storage backend of a server, as operators write it.

use std::{borrow::Cow, fmt, path::PathBuf, str::FromStr};

use crate::storage::postgres::config::PostgresConfig;

/// The storage backend. Parses from `memory`, `sqlite:PATH` or
/// `postgres://USER:PASSWORD@HOST/DATABASE`; displays the same without the password.
/// The URLs that other programs use for SQLite files are accepted where they name one file:
/// `sqlite://x.db`, `sqlite:///var/x.db`, `file:x.db` and `file:///var/x.db`, also with
/// `?mode=rwc`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreConfig {
    /// Memory only: operations are lost when the process ends.
    Memory,
    /// A SQLite file, for a single server.
    Sqlite(PathBuf),
    /// PostgreSQL: all servers of one schema share all operations.
    Postgres(PostgresConfig),
}

/// Error for a text that is not a [`StoreConfig`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid store: {advice}")]
pub struct InvalidStoreConfig {
    advice: Cow<'static, str>,
}

// === impl StoreConfig ===

impl FromStr for StoreConfig {
    type Err = InvalidStoreConfig;

    fn from_str(text: &str) -> Result<Self, InvalidStoreConfig> {
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory),
            Some(("sqlite", location)) => parse_sqlite_path(location).map(Self::Sqlite),
            Some(("file", _)) => parse_sqlite_path(text).map(Self::Sqlite),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(PostgresConfig::new(text))),
            _ => Err(InvalidStoreConfig::unknown()),
        }
    }
}

impl fmt::Display for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(options) => options.fmt(f),
        }
    }
}

// === impl InvalidStoreConfig ===

impl InvalidStoreConfig {
    fn new(advice: impl Into<Cow<'static, str>>) -> Self {
        Self {
            advice: advice.into(),
        }
    }

    fn unknown() -> Self {
        Self::new(
            "use memory, sqlite:PATH such as sqlite:/var/lib/longrunning/operations.db, or \
             postgres://USER:PASSWORD@HOST/DATABASE",
        )
    }
}

/// Returns the path of `PATH`, `//PATH`, or `file:` with either.
fn parse_sqlite_path(location: &str) -> Result<PathBuf, InvalidStoreConfig> {
    let uri = location.strip_prefix("file:");
    let is_url = uri.is_some() || location.starts_with("//");
    let (path, parameters) = split_parameters(uri.unwrap_or(location), is_url);
    if path.trim_start_matches('/') == ":memory:" || parameters.contains(&"mode=memory") {
        return Err(InvalidStoreConfig::new(
            "a SQLite database in memory is not supported: use memory",
        ));
    }
    let path = match path.strip_prefix("//") {
        // In a `file:` URI, a host would follow.
        Some(relative) if uri.is_some() && !relative.starts_with('/') => {
            let advice = format!("a file URI has no host: use sqlite:{relative}");
            return Err(InvalidStoreConfig::new(advice));
        }
        Some(rest) if rest.starts_with('/') => format!("/{}", rest.trim_start_matches('/')),
        Some(rest) => rest.to_owned(),
        None => path.to_owned(),
    };
    if path.is_empty() {
        return Err(InvalidStoreConfig::unknown());
    }
    // `rwc` is what the server does: it creates a file that does not exist.
    if let Some(other) = parameters.iter().find(|text| **text != "mode=rwc") {
        let advice = format!("a SQLite file has no parameter {other:?}: use sqlite:{path}");
        return Err(InvalidStoreConfig::new(advice));
    }
    // Programs differ in whether they decode it.
    if is_url && path.contains(['%', '#']) {
        let advice = "a SQLite URL with % or # is ambiguous: use sqlite:PATH, where all \
                      characters stand for themselves";
        return Err(InvalidStoreConfig::new(advice));
    }
    Ok(path.into())
}

/// Splits the parameters off. In a path that is not a URL, a question mark is part of the name
/// unless all that follows looks like parameters.
fn split_parameters(location: &str, is_url: bool) -> (&str, Vec<&str>) {
    let is_parameter = |text: &str| {
        text.split_once('=').is_some_and(|(key, _)| {
            !key.is_empty()
                && key
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        })
    };
    match location.split_once('?') {
        Some((path, query)) if is_url || query.split('&').all(is_parameter) => {
            (path, query.split('&').collect())
        }
        _ => (location, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: SQLITE-15
    #[test]
    fn sqlite_urls_of_other_programs_name_the_same_file() {
        for (text, path) in [
            ("sqlite:x.db", "x.db"),
            ("sqlite:./x.db", "./x.db"),
            ("sqlite:/var/x.db", "/var/x.db"),
            ("sqlite:a b%20c#d?e.db", "a b%20c#d?e.db"),
            ("sqlite:what?", "what?"),
            ("sqlite:x.db?mode=rwc", "x.db"),
            ("sqlite://x.db", "x.db"),
            ("sqlite://./x.db", "./x.db"),
            ("sqlite://x.db?mode=rwc", "x.db"),
            ("sqlite:///var/x.db", "/var/x.db"),
            ("sqlite:////var/x.db", "/var/x.db"),
            ("sqlite:file:x.db", "x.db"),
            ("file:x.db", "x.db"),
            ("file:./x.db", "./x.db"),
            ("file:/var/x.db", "/var/x.db"),
            ("file:///var/x.db?mode=rwc", "/var/x.db"),
        ] {
            let store = text.parse::<StoreConfig>();
            assert_eq!(store, Ok(StoreConfig::Sqlite(path.into())), "{text}");
        }
    }

    // Rules: SQLITE-15
    #[test]
    fn ambiguous_sqlite_urls_are_rejected_with_what_to_write() {
        for (text, advice) in [
            ("sqlite:", "sqlite:PATH"),
            ("sqlite://", "sqlite:PATH"),
            ("file:", "sqlite:PATH"),
            ("sqlite::memory:", "use memory"),
            ("sqlite://:memory:", "use memory"),
            ("file::memory:?cache=shared", "use memory"),
            ("sqlite:file:x.db?mode=memory&cache=shared", "use memory"),
            ("sqlite:x.db?mode=ro", "use sqlite:x.db"),
            ("sqlite:///x.db?mode=rw", "use sqlite:/x.db"),
            ("file:x.db?connection_limit=1", "use sqlite:x.db"),
            ("sqlite://x.db?", "use sqlite:x.db"),
            ("sqlite://a%20b.db", "use sqlite:PATH"),
            ("file://localhost/x.db", "a file URI has no host"),
            ("sqlite3:x.db", "use memory, sqlite:PATH"),
            ("x.db", "use memory, sqlite:PATH"),
        ] {
            let error = text.parse::<StoreConfig>().unwrap_err().to_string();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }
}
