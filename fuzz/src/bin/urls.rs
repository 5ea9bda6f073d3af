//! Fuzzes the HTTP/JSON gateway with random methods and content types and randomly
//! mutated URLs and bodies. Ends after the given time or at the first finding:
//!
//! ```console
//! cargo run --release --manifest-path fuzz/Cargo.toml --bin urls -- SECONDS [SEED]
//! ```
//!
//! A finding is a panic, a 5xx, an error without the envelope of AIP-193, or a call
//! of more than 10 s.

use std::{error::Error, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use longrunning::{HttpOptions, NewOperation, Operations, WaitLimits, gateway};
use tokio::time::Instant;
use tower::Service;

use mutator::Mutator;

/// The fragments that mutations insert.
const FRAGMENTS: [&str; 32] = [
    "/v1/operations/x",
    "/v1/operations",
    "/v1/operations/x:cancel",
    "/v1/operations/x:wait",
    "/v1/operations/x:watch",
    "/v1/projects/p/operations/y:wait?timeout=1s&$alt=json;enum-encoding=int",
    "/v1/projects/p/locations/eu/operations?filter=done%3Dfalse&pageSize=5",
    "/v1/-/operations?page_size=1&page_token=",
    "/v2/x/y/z?name=operations/x",
    "?filter=labels.a%20%3D%20b%20AND%20done",
    "?timeout=-1s",
    "&returnPartialSuccess=true",
    "%2F",
    "%",
    "%C3%28",
    "%00",
    ":",
    "//",
    "..",
    "/",
    "?",
    "&",
    "=",
    ";",
    "*",
    "{\"name\":\"operations/x\",\"timeout\":\"1s\"}",
    "{\"timeout\":",
    "[[[[[[[[",
    "\u{e9}",
    "\"",
    "null",
    "{}",
];

const METHODS: [Method; 7] = [
    Method::GET,
    Method::POST,
    Method::DELETE,
    Method::PUT,
    Method::PATCH,
    Method::HEAD,
    Method::OPTIONS,
];

const CONTENT_TYPES: [&str; 5] = [
    "application/json",
    "application/json; charset=latin1",
    "text/plain",
    "application/grpc",
    "",
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let seed = arguments.next().map_or(Ok(0x5eed), |text| text.parse())?;
    let operations = Operations::builder().start().await?;
    let mut options = HttpOptions::default();
    options.wait_limits = WaitLimits::default()
        .with_default_timeout(Duration::ZERO)
        .with_max_timeout(Duration::ZERO);
    let mut gateway = gateway(&operations, options);
    let mut mutator = Mutator::new(seed, &FRAGMENTS);
    let mut corpus: Vec<String> = FRAGMENTS.map(str::to_owned).into();
    let (started, mut count, mut succeeded) = (Instant::now(), 0u64, 0u64);
    while started.elapsed() < Duration::from_secs(seconds) {
        // Recreate operations that a fuzzed request deleted.
        if count.is_multiple_of(1000) {
            let _ = operations
                .create(NewOperation::queued("q").id("x").label("a", "b"))
                .await;
            let _ = operations
                .create(NewOperation::queued("q").parent("projects/p").id("y"))
                .await;
        }
        count += 1;
        let (url_index, body_index) = (mutator.below(corpus.len()), mutator.below(corpus.len()));
        let url = mutator.mutate(&corpus[url_index].clone());
        let body = mutator.mutate(&corpus[body_index].clone());
        let method = METHODS[mutator.below(METHODS.len())].clone();
        let request = Request::builder()
            .method(&method)
            .uri(&url)
            .header(
                "content-type",
                CONTENT_TYPES[mutator.below(CONTENT_TYPES.len())],
            )
            .body(Full::<bytes::Bytes>::from(body.clone()));
        // hyper rejects an invalid URL before the gateway sees it.
        let Ok(request) = request else { continue };
        let call_started = Instant::now();
        let result = AssertUnwindSafe(async {
            let Ok(response) = gateway.call(request).await;
            let (parts, body) = response.into_parts();
            let is_stream = parts
                .headers
                .get("content-type")
                .is_some_and(|kind| kind == "text/event-stream");
            if parts.status.is_success() || is_stream {
                return Some(true);
            }
            let body = body.collect().await.ok()?.to_bytes();
            let has_valid_body = method == Method::HEAD || is_error_envelope(&body);
            (has_valid_body && !parts.status.is_server_error()).then_some(false)
        });
        let Ok(Some(is_success)) = result.catch_unwind().await else {
            return Err(format!("seed {seed}, call {count}: {method} {url:?} {body:?}").into());
        };
        if call_started.elapsed() > Duration::from_secs(10) {
            return Err(format!("slow: seed {seed}, call {count}: {method} {url:?}").into());
        }
        if is_success {
            succeeded += 1;
            corpus.push(url);
        }
        if corpus.len() > 5000 {
            corpus.drain(FRAGMENTS.len()..2500);
        }
    }
    println!("{count} requests in {seconds} s from seed {seed}, {succeeded} succeeded, no finding");
    Ok(())
}

/// Returns `true` if the body is an AIP-193 envelope with code, status and message.
fn is_error_envelope(body: &[u8]) -> bool {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else {
        return false;
    };
    let error = &json["error"];
    error["code"].is_u64() && error["status"].is_string() && error["message"].is_string()
}
