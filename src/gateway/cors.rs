//! Cross-origin calls (CORS). Unless its origin is configured, a web page can neither
//! modify operations nor read responses.

use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};

/// Time for which a browser may cache a preflight response.
const PREFLIGHT_MAX_AGE_SECONDS: &str = "600";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const ALLOWED_METHODS: &str = "GET, HEAD, POST, DELETE";

/// The origins whose pages may call the server, such as `https://app.example.com`, or
/// `*` for any. Empty by default. Parses from a comma-separated list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsOrigins(Vec<HeaderValue>);

/// Error for a text that is not a list of origins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid origin {0:?}: write SCHEME://HOST or SCHEME://HOST:PORT without a path, or * for any"
)]
pub struct InvalidCorsOrigins(String);

// === impl CorsOrigins ===

impl CorsOrigins {
    /// Returns `true` if the call comes from a page of another origin that is not
    /// configured. A browser sends a simple POST from any page and only hides the
    /// response, so the server must reject it.
    pub(super) fn is_forbidden(&self, request: &Parts) -> bool {
        let headers = &request.headers;
        let Some(origin) = headers.get(header::ORIGIN) else {
            return false;
        };
        if self.find_allowed(origin).is_some() {
            return false;
        }
        if let Some(site) = headers.get(SEC_FETCH_SITE) {
            return site != "same-origin" && site != "none";
        }
        // HTTP/2 has the host in `:authority`.
        let host = match request.uri.authority() {
            Some(authority) => Some(authority.as_str().as_bytes()),
            None => headers.get(header::HOST).map(HeaderValue::as_bytes),
        };
        let origin_parts = origin.to_str().ok().and_then(|text| text.split_once("://"));
        origin_parts.is_none_or(|(_, origin_host)| Some(origin_host.as_bytes()) != host)
    }

    fn find_allowed(&self, origin: &HeaderValue) -> Option<&HeaderValue> {
        self.0
            .iter()
            .find(|allowed| *allowed == "*" || *allowed == origin)
    }

    /// Adds the headers that let a page of a configured origin read the response.
    pub(super) fn add_cors_headers(
        &self,
        method: &Method,
        request: &HeaderMap,
        response: &mut HeaderMap,
    ) {
        if self.0.is_empty() {
            return;
        }
        // A cache must not serve the response to another origin.
        response.append(header::VARY, header::ORIGIN.into());
        let origin = request.get(header::ORIGIN);
        let Some(allowed_origin) = origin.and_then(|origin| self.find_allowed(origin)) else {
            return;
        };
        let request_method_header = header::ACCESS_CONTROL_REQUEST_METHOD;
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed_origin.clone());
        if method != Method::OPTIONS || !request.contains_key(request_method_header) {
            let exposed_headers = HeaderValue::from_static("retry-after");
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed_headers);
            return;
        }
        let methods = HeaderValue::from_static(ALLOWED_METHODS);
        response.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let max_age = HeaderValue::from_static(PREFLIGHT_MAX_AGE_SECONDS);
        response.insert(header::ACCESS_CONTROL_MAX_AGE, max_age);
        // No request header changes what a call does here, so all are allowed.
        if let Some(headers) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            response.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
        }
    }
}

impl FromStr for CorsOrigins {
    type Err = InvalidCorsOrigins;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let origins = text.split(',').map(str::trim);
        let origins = origins.filter(|origin| !origin.is_empty());
        let parse = |origin: &str| match HeaderValue::from_str(origin) {
            Ok(value) if is_origin(origin) => Ok(value),
            _ => Err(InvalidCorsOrigins(origin.to_owned())),
        };
        origins.map(parse).collect::<Result<_, _>>().map(Self)
    }
}

fn is_origin(text: &str) -> bool {
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let is_url = |(_, host): (&str, &str)| !host.is_empty() && host.bytes().all(is_host_byte);
    text == "*" || (text.split_once("://").is_some_and(is_url) && text.is_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors_headers(origins: &str, method: Method, request: &[(&'static str, &str)]) -> String {
        let request: HeaderMap = request
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let mut response = HeaderMap::new();
        let origins: CorsOrigins = origins.parse().unwrap();
        origins.add_cors_headers(&method, &request, &mut response);
        let mut lines: Vec<String> = response
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines.join("\n")
    }

    // Rules: HTTP-16
    #[test]
    fn no_cors_headers_are_added_without_configured_origins() {
        let request = [("origin", "https://a.example")];
        assert_eq!(cors_headers("", Method::GET, &request), "");
    }

    // Rules: HTTP-16
    #[test]
    fn listed_origin_may_read_responses_and_others_may_not() {
        let allowed_origins = "https://a.example, http://localhost:3000";
        assert_eq!(
            cors_headers(
                allowed_origins,
                Method::GET,
                &[("origin", "http://localhost:3000")]
            ),
            "access-control-allow-origin: http://localhost:3000\n\
             access-control-expose-headers: retry-after\nvary: origin"
        );
        let other_origins = ["https://a.example.evil", "http://a.example", "null"];
        for other in other_origins {
            let headers = cors_headers(allowed_origins, Method::GET, &[("origin", other)]);
            assert_eq!(headers, "vary: origin", "{other}");
        }
        assert!(cors_headers("*", Method::GET, &[("origin", "null")]).contains("origin: *"));
    }

    // Rules: HTTP-16
    #[test]
    fn preflight_response_allows_requested_method_and_headers() {
        let request = [
            ("origin", "https://a.example"),
            ("access-control-request-method", "DELETE"),
            ("access-control-request-headers", "x-goog-api-client"),
        ];
        assert_eq!(
            cors_headers("https://a.example", Method::OPTIONS, &request),
            "access-control-allow-headers: x-goog-api-client\n\
             access-control-allow-methods: GET, HEAD, POST, DELETE\n\
             access-control-allow-origin: https://a.example\n\
             access-control-max-age: 600\nvary: origin"
        );
    }

    // Rules: HTTP-16
    #[test]
    fn cross_origin_call_is_forbidden_unless_origin_is_listed() {
        let is_forbidden = |origins: &str, headers: &[(&str, &str)]| {
            let mut request = http::Request::builder().uri("/v1/operations/x:cancel");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            origins.parse::<CorsOrigins>().unwrap().is_forbidden(&parts)
        };
        let other = [("origin", "https://a.example"), ("host", "127.0.0.1:8470")];
        assert!(is_forbidden("", &other));
        assert!(is_forbidden("https://b.example", &other));
        assert!(is_forbidden("", &[("origin", "null")]));
        assert!(!is_forbidden("https://a.example", &other));
        assert!(!is_forbidden("*", &other));
        // Clients other than browsers, and the server's own pages behind a proxy.
        assert!(!is_forbidden("", &[]));
        assert!(!is_forbidden(
            "",
            &[
                ("origin", "http://localhost:8470"),
                ("host", "localhost:8470")
            ]
        ));
        let with_fetch_site = |site| [other[0], other[1], ("sec-fetch-site", site)];
        assert!(!is_forbidden("", &with_fetch_site("same-origin")));
        assert!(
            is_forbidden("", &with_fetch_site("same-site"))
                && is_forbidden("", &with_fetch_site("cross-site"))
        );
    }

    #[test]
    fn invalid_cors_origin_is_rejected() {
        for invalid in [
            "a.example",
            "https://",
            "https://a/",
            "https://a b",
            "https://é",
            "**",
        ] {
            assert!(invalid.parse::<CorsOrigins>().is_err(), "{invalid}");
        }
    }
}
