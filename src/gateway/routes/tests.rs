//! Tests of the routing table, and of malformed paths.

use proptest::prelude::*;

use super::*;

fn try_route(method: &str, path: &str) -> Result<(Action, String), RouteError> {
    let method = method.parse().unwrap();
    match_route(&HttpPrefix::default(), &method, path).map(|route| (route.action, route.name))
}

fn route(method: &str, path: &str) -> (Action, String) {
    try_route(method, path).unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
}

// Rules: HTTP-1, HTTP-2, HTTP-3
#[test]
fn every_http_binding_routes_to_its_method() {
    for (method, path, action, name) in [
        ("GET", "/v1/operations", Action::List, "operations"),
        (
            "GET",
            "/v1/projects/p/operations",
            Action::List,
            "projects/p",
        ),
        (
            "GET",
            "/v1/projects/-/operations",
            Action::List,
            "projects/-",
        ),
        ("GET", "/v1/-/operations", Action::List, "-"),
        (
            "GET",
            "/v1/operations/operations",
            Action::List,
            "operations",
        ),
        (
            "GET",
            "/v1/operations/ns/operations",
            Action::List,
            "operations/ns",
        ),
        ("GET", "/v1/operations/x", Action::Get, "operations/x"),
        (
            "GET",
            "/v1/operations/a/b/c",
            Action::Get,
            "operations/a/b/c",
        ),
        (
            "GET",
            "/v2/projects/p/locations/l/operations/x",
            Action::Get,
            "projects/p/locations/l/operations/x",
        ),
        ("HEAD", "/v1/operations/x", Action::Get, "operations/x"),
        ("HEAD", "/v1/operations", Action::List, "operations"),
        ("DELETE", "/v1/operations/x", Action::Delete, "operations/x"),
        (
            "DELETE",
            "/v1beta1/projects/p/operations/x",
            Action::Delete,
            "projects/p/operations/x",
        ),
        (
            "POST",
            "/v1/operations/x:cancel",
            Action::Cancel,
            "operations/x",
        ),
        (
            "POST",
            "/v1/projects/p/operations/x:cancel",
            Action::Cancel,
            "projects/p/operations/x",
        ),
        (
            "POST",
            "/v1/operations/x/y:cancel",
            Action::Cancel,
            "operations/x/y",
        ),
        (
            "POST",
            "/v1/operations/x:wait",
            Action::Wait,
            "operations/x",
        ),
        (
            "POST",
            "/v1/projects/p/operations/x:wait",
            Action::Wait,
            "projects/p/operations/x",
        ),
        (
            "GET",
            "/v1/operations/x:watch",
            Action::Watch,
            "operations/x",
        ),
        (
            "GET",
            "/v1/projects/p/operations/x:watch",
            Action::Watch,
            "projects/p/operations/x",
        ),
        // A variable of many segments may be empty.
        (
            "POST",
            "/v1/operations:cancel",
            Action::Cancel,
            "operations",
        ),
    ] {
        assert_eq!(
            route(method, path),
            (action, name.to_owned()),
            "{method} {path}"
        );
    }
}

// Rules: HTTP-4
#[test]
fn verb_is_split_before_decoding_and_colon_may_be_raw_or_escaped() {
    for (method, path, action, name) in [
        ("GET", "/v1/operations/a:b", Action::Get, "operations/a:b"),
        ("GET", "/v1/operations/a%3Ab", Action::Get, "operations/a:b"),
        (
            "DELETE",
            "/v1/operations/a:b",
            Action::Delete,
            "operations/a:b",
        ),
        (
            "GET",
            "/v1/operations/x%3Acancel",
            Action::Get,
            "operations/x:cancel",
        ),
        (
            "POST",
            "/v1/operations/x%3Acancel:cancel",
            Action::Cancel,
            "operations/x:cancel",
        ),
        (
            "POST",
            "/v1/operations/a:b:wait",
            Action::Wait,
            "operations/a:b",
        ),
        (
            "GET",
            "/v1/a:cancel/operations/x",
            Action::Get,
            "a:cancel/operations/x",
        ),
    ] {
        assert_eq!(
            route(method, path),
            (action, name.to_owned()),
            "{method} {path}"
        );
    }
}

// Rules: HTTP-5
#[test]
fn name_is_percent_decoded_except_for_escaped_slashes() {
    for (path, name) in [
        ("/v1/operations/a/b%3Ac%20d%25", "operations/a/b:c d%"),
        (
            "/v1/projects/a%2Fb/operations/x",
            "projects/a%2Fb/operations/x",
        ),
        ("/v1/operations/a/b%2fc", "operations/a/b%2fc"),
        ("/v1/operations/%C3%A9", "operations/\u{e9}"),
        ("/v1/operations/%6Fperations", "operations/operations"),
    ] {
        assert_eq!(route("GET", path), (Action::Get, name.to_owned()), "{path}");
    }
    for (path, error) in [
        ("/v1/operations/100%", InvalidUrl::MalformedEscape),
        ("/v1/operations/%zz", InvalidUrl::MalformedEscape),
        ("/v1/operations/%ff", InvalidUrl::InvalidUtf8),
        ("/v1/projects/%ff/operations", InvalidUrl::InvalidUtf8),
    ] {
        assert_eq!(
            try_route("GET", path),
            Err(RouteError::InvalidUrl(error)),
            "{path}"
        );
    }
}

// Rules: HTTP-17
#[test]
fn single_segment_with_escaped_slashes_is_the_full_name() {
    for (path, name) in [
        ("/v1/operations/operations%2Fx", "operations/x"),
        (
            "/v1/operations/projects%2fp%2Foperations%2Fx%3Ay%20z",
            "projects/p/operations/x:y z",
        ),
    ] {
        assert_eq!(route("GET", path), (Action::Get, name.to_owned()), "{path}");
        let cancel = format!("{path}:cancel");
        assert_eq!(route("POST", &cancel), (Action::Cancel, name.to_owned()));
    }
}

// Rules: HTTP-14
#[test]
fn wrong_method_lists_allowed_ones_and_unknown_path_is_not_found() {
    for (method, path, allowed) in [
        ("POST", "/v1/operations", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/operations", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/projects/p/operations", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/operations/operations", "GET, HEAD, OPTIONS"),
        ("POST", "/v1/operations/x", "GET, HEAD, DELETE, OPTIONS"),
        ("PATCH", "/v1/operations/x", "GET, HEAD, DELETE, OPTIONS"),
        ("BREW", "/v1/operations/x", "GET, HEAD, DELETE, OPTIONS"),
        ("OPTIONS", "/v1/operations/x", "GET, HEAD, DELETE, OPTIONS"),
        (
            "POST",
            "/v1/operations/x%3Acancel",
            "GET, HEAD, DELETE, OPTIONS",
        ),
        ("GET", "/v1/operations/x:cancel", "POST, OPTIONS"),
        ("GET", "/v1/operations/x:wait", "POST, OPTIONS"),
        ("POST", "/v1/operations/x:watch", "GET, OPTIONS"),
        ("HEAD", "/v1/operations/x:watch", "GET, OPTIONS"),
    ] {
        assert_eq!(
            try_route(method, path),
            Err(RouteError::MethodNotAllowed(allowed)),
            "{method} {path}"
        );
    }
    for (method, path) in [
        ("GET", "/"),
        ("GET", ""),
        ("OPTIONS", "*"),
        ("GET", "/v1"),
        ("GET", "/v1/"),
        ("GET", "/operations/x"),
        // An empty parent would list everything.
        ("GET", "/v1//operations"),
        ("HEAD", "/v1//operations"),
        ("GET", "/v1///operations"),
        ("GET", "/v1//operations/x"),
        ("DELETE", "/v1//operations/x"),
        ("POST", "/v1//operations/x:cancel"),
        ("GET", "/v1//projects/p/operations"),
        ("GET", "/v1/projects/p"),
        ("GET", "/v1/operationsx"),
        ("POST", "/v1/operations/x:frobnicate"),
        ("POST", "/v1/projects/p/operations:cancel"),
        ("POST", "/v1/projects/p:cancel"),
        ("GET", "/google.longrunning.Operations/GetOperation"),
    ] {
        assert_eq!(
            try_route(method, path),
            Err(RouteError::NotFound),
            "{method} {path}"
        );
    }
}

fn percent_encode(text: &str, escape_mask: &[bool]) -> String {
    let mut escape_mask = escape_mask.iter().copied().cycle();
    text.bytes()
        .map(|byte| match byte {
            b'/' => "/".to_owned(),
            byte if escape_mask.next().unwrap_or(true) => format!("%{byte:02X}"),
            byte => char::from(byte).to_string(),
        })
        .collect()
}

proptest! {
    // Rules: NAME-1
    #[test]
    fn name_round_trips_through_any_percent_encoding(
        parent in "([a-z]{1,9}/[a-zA-Z0-9._~]{1,9}/){0,3}",
        id in "[a-z0-9]{1,20}",
        choice in proptest::collection::vec(any::<bool>(), 1..40),
    ) {
        let name = format!("{parent}operations/{id}");
        prop_assume!(id != OPERATIONS_COLLECTION);
        let plain = format!("/v1/{name}");
        prop_assert_eq!(route("GET", &plain), (Action::Get, name.clone()));
        let escaped = format!("/v1/{parent}operations/{}", percent_encode(&id, &choice));
        prop_assert_eq!(route("DELETE", &escaped), (Action::Delete, name.clone()));
        let wait = format!("/v1/{}operations/{}:wait", percent_encode(&parent, &choice), percent_encode(&id, &choice));
        prop_assert_eq!(route("POST", &wait), (Action::Wait, name));
    }

    #[test]
    fn any_path_is_routed_without_panic(
        method in "GET|POST|DELETE|HEAD|PUT",
        path in "(/v1/|/)?([a-z:%/2F]|operations|:cancel|:wait|:watch|%2F|\\PC){0,12}",
    ) {
        let _ = try_route(&method, &path);
    }
}
