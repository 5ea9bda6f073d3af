//! The prefix of HTTP paths, such as the API version.

use std::str::FromStr;

/// The prefix of every HTTP path.
///
/// Clients use the version of their own API in the path (`/v1/`, `/v2/`, `/v1beta1/`),
/// also for operations. The default therefore matches any version; a configured prefix,
/// such as `/longrunning/v1`, matches only itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpPrefix(Option<Box<str>>);

/// Error for a text that is not an [`HttpPrefix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid path prefix {0:?}: write / for none, or segments of letters, digits and . _ ~ - such as /v1 or /api/v2"
)]
pub struct InvalidHttpPrefix(String);

// === impl HttpPrefix ===

impl HttpPrefix {
    /// Returns the path after the prefix and its slash, or `None` if it does not match.
    pub(super) fn strip<'a>(&self, path: &'a str) -> Option<&'a str> {
        match &self.0 {
            Some(prefix) => path.strip_prefix(&**prefix)?.strip_prefix('/'),
            None => {
                let (version, rest) = path.strip_prefix('/')?.split_once('/')?;
                is_version(version).then_some(rest)
            }
        }
    }

    /// Returns `true` if paths have no prefix.
    pub(super) fn is_empty(&self) -> bool {
        self.0.as_deref() == Some("")
    }

    /// Returns a prefix that matches: the configured one, or `/v1`.
    pub fn example(&self) -> &str {
        self.0.as_deref().unwrap_or("/v1")
    }
}

impl FromStr for HttpPrefix {
    type Err = InvalidHttpPrefix;

    /// Parses a prefix. The empty text is the default: any version.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let segments = text.trim_end_matches('/');
        let is_segment = |segment: &str| {
            !segment.is_empty()
                && segment
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        };
        match segments.strip_prefix('/') {
            Some(path) if path.split('/').all(is_segment) => Ok(Self(Some(segments.into()))),
            None if segments.is_empty() => Ok(Self(Some(segments.into()))),
            _ => Err(InvalidHttpPrefix(text.to_owned())),
        }
    }
}

/// Returns `true` for `v1`, `v2beta`, `v1beta1`, `v1p1beta1` and the like (AIP-185).
fn is_version(text: &str) -> bool {
    let is_suffix = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.strip_prefix('v').is_some_and(|rest| {
        rest.starts_with(|first: char| first.is_ascii_digit()) && rest.bytes().all(is_suffix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: HTTP-2
    #[test]
    fn default_http_prefix_matches_any_api_version() {
        let default_prefix = HttpPrefix::default();
        for version in ["v1", "v2", "v1beta1", "v1p1beta1", "v1alpha", "v10"] {
            let path = format!("/{version}/operations/x");
            assert_eq!(
                default_prefix.strip(&path),
                Some("operations/x"),
                "{version}"
            );
        }
        for path in [
            "/operations/x",
            "/v/operations/x",
            "/V1/operations/x",
            "v1/operations",
            "/v1",
            "//operations",
            "",
            "*",
            "/x/v1/operations",
            "/v1%31/operations",
        ] {
            assert_eq!(default_prefix.strip(path), None, "{path}");
        }
    }

    // Rules: HTTP-2
    #[test]
    fn configured_http_prefix_is_the_only_match() {
        let configured: HttpPrefix = "/api/v2/".parse().unwrap();
        assert_eq!(configured.strip("/api/v2/operations"), Some("operations"));
        assert_eq!(configured.strip("/v1/operations"), None);
        assert_eq!(configured.strip("/api/v22/operations"), None);
        let empty: HttpPrefix = "/".parse().unwrap();
        assert_eq!(empty.strip("/operations"), Some("operations"));
        assert_eq!("".parse(), Ok(HttpPrefix::default()));
        for invalid in ["v1", "/a b", "/v1?", "//v1", "/v1//x", "/é"] {
            assert!(invalid.parse::<HttpPrefix>().is_err(), "{invalid}");
        }
    }
}
