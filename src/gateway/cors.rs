//! Calls from web pages of other origins: refused where they would change
//! something, and unreadable otherwise (the CORS protocol of the Fetch standard),
//! unless their origins are named.

use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};

/// How long a browser may remember a permission, in seconds.
const MAX_AGE: &str = "600";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const METHODS: &str = "GET, HEAD, POST, DELETE";

/// The origins whose pages may call the server, such as
/// `https://app.example.com`; `*` is any. By default there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsOrigins(Vec<HeaderValue>);

/// A text that is not a list of origins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an origin: write SCHEME://HOST or SCHEME://HOST:PORT, as browsers do, without a path; or * for any"
)]
pub struct CorsOriginsError(String);

// === impl CorsOrigins ===

impl CorsOrigins {
    /// Whether a call comes from a page that may not call. A browser sends a
    /// plain POST for any page, and only hides the answer from it.
    pub(super) fn forbid(&self, request: &Parts) -> bool {
        let headers = &request.headers;
        let Some(origin) = headers.get(header::ORIGIN) else {
            return false;
        };
        if self.find(origin).is_some() {
            return false;
        }
        if let Some(site) = headers.get(SEC_FETCH_SITE) {
            return site != "same-origin" && site != "none";
        }
        // HTTP/2 has the host in the URL.
        let host = match request.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => headers
                .get(header::HOST)
                .and_then(|host| host.to_str().ok()),
        };
        let own = origin.to_str().ok().and_then(|text| text.split_once("://"));
        own.is_none_or(|(_, own)| Some(own) != host)
    }

    fn find(&self, origin: &HeaderValue) -> Option<&HeaderValue> {
        self.0.iter().find(|one| *one == "*" || *one == origin)
    }

    /// Adds what lets the page that asked read the answer, if it may.
    pub(super) fn permit(&self, method: &Method, request: &HeaderMap, answer: &mut HeaderMap) {
        if self.0.is_empty() {
            return;
        }
        // The answer to another origin is another one, also for caches.
        answer.append(header::VARY, header::ORIGIN.into());
        let Some(origin) = request.get(header::ORIGIN) else {
            return;
        };
        let Some(permitted) = self.find(origin) else {
            return;
        };
        let asked = header::ACCESS_CONTROL_REQUEST_METHOD;
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, permitted.clone());
        if method != Method::OPTIONS || !request.contains_key(asked) {
            let shown = HeaderValue::from_static("retry-after");
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, shown);
            return;
        }
        let methods = HeaderValue::from_static(METHODS);
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        answer.insert(
            header::ACCESS_CONTROL_MAX_AGE,
            HeaderValue::from_static(MAX_AGE),
        );
        // Clients send headers of their own kind, none of which means anything here.
        if let Some(headers) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
        }
    }
}

impl FromStr for CorsOrigins {
    type Err = CorsOriginsError;

    /// Origins with commas between them; the empty text is none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let origins = text.split(',').map(str::trim);
        let origins = origins.filter(|origin| !origin.is_empty());
        let parse = |origin: &str| {
            HeaderValue::from_str(origin)
                .ok()
                .filter(|_| is_origin(origin))
                .ok_or_else(|| CorsOriginsError(origin.to_owned()))
        };
        origins.map(parse).collect::<Result<_, _>>().map(Self)
    }
}

fn is_origin(text: &str) -> bool {
    let host = text.split_once("://").map(|(_, host)| host);
    let is_host = |host: &str| {
        !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
    };
    text == "*" || (host.is_some_and(is_host) && text.is_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permitted(origins: &str, method: Method, request: &[(&'static str, &str)]) -> String {
        let request: HeaderMap = request
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let mut answer = HeaderMap::new();
        let origins: CorsOrigins = origins.parse().unwrap();
        origins.permit(&method, &request, &mut answer);
        let mut lines: Vec<String> = answer
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn without_origins_nothing_is_permitted() {
        let asked = [("origin", "https://a.example")];
        assert_eq!(permitted("", Method::GET, &asked), "");
    }

    #[test]
    fn an_origin_of_the_list_may_read_answers_and_another_may_not() {
        let list = "https://a.example, http://localhost:3000";
        assert_eq!(
            permitted(list, Method::GET, &[("origin", "http://localhost:3000")]),
            "access-control-allow-origin: http://localhost:3000\n\
             access-control-expose-headers: retry-after\nvary: origin"
        );
        let others = ["https://a.example.evil", "http://a.example", "null"];
        for other in others {
            let answer = permitted(list, Method::GET, &[("origin", other)]);
            assert_eq!(answer, "vary: origin", "{other}");
        }
        assert!(permitted("*", Method::GET, &[("origin", "null")]).contains("origin: *"));
    }

    #[test]
    fn a_preflight_is_told_what_it_asks() {
        let asked = [
            ("origin", "https://a.example"),
            ("access-control-request-method", "DELETE"),
            ("access-control-request-headers", "x-goog-api-client"),
        ];
        assert_eq!(
            permitted("https://a.example", Method::OPTIONS, &asked),
            "access-control-allow-headers: x-goog-api-client\n\
             access-control-allow-methods: GET, HEAD, POST, DELETE\n\
             access-control-allow-origin: https://a.example\n\
             access-control-max-age: 600\nvary: origin"
        );
    }

    #[test]
    fn a_page_of_another_origin_may_not_call() {
        let forbids = |origins: &str, headers: &[(&str, &str)]| {
            let mut request = http::Request::builder().uri("/v1/operations/x:cancel");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            origins.parse::<CorsOrigins>().unwrap().forbid(&parts)
        };
        let other = [("origin", "https://a.example"), ("host", "127.0.0.1:8470")];
        assert!(forbids("", &other));
        assert!(forbids("https://b.example", &other));
        assert!(forbids("", &[("origin", "null")]));
        assert!(!forbids("https://a.example", &other));
        assert!(!forbids("*", &other));
        // Who is no browser, and the server's own pages behind whatever proxy.
        assert!(!forbids("", &[]));
        assert!(!forbids(
            "",
            &[
                ("origin", "http://localhost:8470"),
                ("host", "localhost:8470")
            ]
        ));
        let site = |site| [other[0], other[1], ("sec-fetch-site", site)];
        assert!(!forbids("", &site("same-origin")));
        assert!(forbids("", &site("same-site")) && forbids("", &site("cross-site")));
    }

    #[test]
    fn what_is_not_an_origin_is_refused() {
        for bad in [
            "a.example",
            "https://",
            "https://a/",
            "https://a b",
            "https://é",
            "**",
        ] {
            assert!(bad.parse::<CorsOrigins>().is_err(), "{bad}");
        }
    }
}
