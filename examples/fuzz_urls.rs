//! Throws what no client would send at the HTTP/JSON paths: methods, URLs,
//! queries and bodies, cut, joined and damaged at random. It ends when its time
//! is over, or at the first finding:
//!
//! ```console
//! cargo run --release --example fuzz_urls -- 600       # seconds; a seed may follow
//! ```
//!
//! A finding is a panic, a 5xx, an error without the envelope of AIP-193, or an
//! answer that takes ten seconds.

#[path = "fuzz/dice.rs"]
mod dice;

use std::{error::Error, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use longrunning::{HttpOptions, NewOperation, Operations, WaitLimits, gateway};
use tokio::time::Instant;
use tower::Service;

use dice::Dice;

/// What the inputs are made of.
const SEEDS: [&str; 32] = [
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

const TYPES: [&str; 5] = [
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
    let options = HttpOptions {
        waits: WaitLimits {
            default: Duration::ZERO,
            max: Duration::ZERO,
        },
        ..HttpOptions::default()
    };
    let mut gateway = gateway(&operations, options);
    let mut dice = Dice::new(seed, &SEEDS);
    let mut pool: Vec<String> = SEEDS.map(str::to_owned).into();
    let (begun, mut count, mut good) = (Instant::now(), 0u64, 0u64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        // Some are deleted on the way.
        if count.is_multiple_of(1000) {
            let _ = operations
                .create(NewOperation::queued("q").id("x").label("a", "b"))
                .await;
            let _ = operations
                .create(NewOperation::queued("q").parent("projects/p").id("y"))
                .await;
        }
        count += 1;
        let (url, body) = (dice.below(pool.len()), dice.below(pool.len()));
        let url = dice.mutate(&pool[url].clone());
        let body = dice.mutate(&pool[body].clone());
        let method = METHODS[dice.below(METHODS.len())].clone();
        let request = Request::builder()
            .method(&method)
            .uri(&url)
            .header("content-type", TYPES[dice.below(TYPES.len())])
            .body(Full::<bytes::Bytes>::from(body.clone()));
        // What is no URL at all does not get past HTTP.
        let Ok(request) = request else { continue };
        let asked = Instant::now();
        let answer = AssertUnwindSafe(async {
            let Ok(answer) = gateway.call(request).await;
            let (head, body) = answer.into_parts();
            let is_stream = head
                .headers
                .get("content-type")
                .is_some_and(|kind| kind == "text/event-stream");
            if head.status.is_success() || is_stream {
                return Some(true);
            }
            let body = body.collect().await.ok()?.to_bytes();
            let is_told = method == Method::HEAD || is_envelope(&body);
            (is_told && !head.status.is_server_error()).then_some(false)
        });
        let Ok(Some(is_good)) = answer.catch_unwind().await else {
            return Err(format!("seed {seed}, call {count}: {method} {url:?} {body:?}").into());
        };
        if Duration::from_secs(10) < asked.elapsed() {
            return Err(format!("slow: seed {seed}, call {count}: {method} {url:?}").into());
        }
        if is_good {
            good += 1;
            pool.push(url);
        }
        if 5000 < pool.len() {
            pool.drain(SEEDS.len()..2500);
        }
    }
    println!(
        "{count} requests in {seconds} s from seed {seed}, {good} of them answered; no finding"
    );
    Ok(())
}

/// Whether it is the envelope, with the code and the status that belong in it.
fn is_envelope(body: &[u8]) -> bool {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else {
        return false;
    };
    let error = &json["error"];
    error["code"].is_u64() && error["status"].is_string() && error["message"].is_string()
}
