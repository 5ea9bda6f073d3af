//! `GET …:watch`: the states of an operation as server-sent events.

use std::time::Duration;

use longrunning::{OperationName, Report};
use serde_json::Value;

use crate::support::{
    http::{Site, Wire, error, request},
    progress, running, succeeded, text,
};

async fn watch(site: &Site, name: &OperationName, headers: &str) -> Wire {
    let mut wire = site.wire().await;
    let target = format!("/v1/{name}:watch");
    wire.send(request("GET", &target, headers, "")).await;
    wire
}

async fn opened(site: &Site, name: &OperationName) -> Wire {
    let mut wire = watch(site, name, "accept: text/event-stream\r\n").await;
    let head = wire.head().await;
    assert_eq!(head.code, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(head.header("cache-control"), Some("no-store"));
    wire
}

/// The JSON of the next event.
async fn event(wire: &mut Wire) -> Option<Value> {
    let line = wire.line_with("data: ").await?;
    Some(serde_json::from_str(&line["data: ".len()..]).unwrap())
}

// BEHAVIOUR §7
#[tokio::test]
async fn a_watch_shows_the_present_state_then_each_change_and_ends_after_the_done_one() {
    let site = Site::start().await;
    let (name, token) = running(&site.operations).await;
    let mut wire = opened(&site, &name).await;
    let first = event(&mut wire).await.unwrap();
    assert_eq!(
        (&first["name"], &first["done"]),
        (&name.as_str().into(), &false.into())
    );
    for done in 1..=3 {
        let report = Report {
            progress: Some(progress(done)),
            ..Report::default()
        };
        site.operations.report(&name, token, report).await.unwrap();
        let change = event(&mut wire).await.unwrap();
        let units = &change["metadata"]["progress"]["doneUnits"];
        assert_eq!(units, &Value::from(done.to_string()));
    }
    let response = text("result");
    site.operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    wire.line_with("id: done")
        .await
        .expect("the last event has an id");
    let last = event(&mut wire).await.unwrap();
    assert_eq!(last["response"]["value"], "result");
    // The last chunk ends the body, and the connection is good for more.
    assert_eq!(wire.line_with("0").await.as_deref(), Some("0"));
    assert_eq!(wire.line().await.as_deref(), Some(""));
    wire.send(request("GET", &format!("/v1/{name}"), "", ""))
        .await;
    assert_eq!(wire.answer().await.ok(), last);
}

#[tokio::test]
async fn a_browser_that_comes_back_after_the_end_is_sent_away() {
    let site = Site::start().await;
    let name = succeeded(&site.operations).await;
    let mut wire = watch(&site, &name, "last-event-id: done\r\n").await;
    assert_eq!(wire.head().await.code, 204);
}

#[tokio::test]
async fn a_watch_of_nothing_is_an_error_like_any_other() {
    let site = Site::start().await;
    let missing = site.get("/v1/operations/missing:watch").await;
    let expected = error(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
    assert_eq!(missing.problem(), expected);
}

#[tokio::test]
async fn a_watch_of_a_deleted_operation_ends_with_the_error() {
    let site = Site::start().await;
    let (name, _) = running(&site.operations).await;
    let mut wire = opened(&site, &name).await;
    event(&mut wire).await.unwrap();
    site.operations.delete(&name).await.unwrap();
    wire.line_with("event: error").await.expect("it is told");
    let told = event(&mut wire).await.unwrap();
    assert_eq!(told["error"]["code"], 404);
    assert_eq!(wire.line_with("0").await.as_deref(), Some("0"));
}

// BEHAVIOUR §10
#[tokio::test]
async fn a_watch_ends_with_unavailable_when_the_server_shuts_down() {
    let site = Site::start().await;
    let (name, _) = running(&site.operations).await;
    let mut wire = opened(&site, &name).await;
    event(&mut wire).await.unwrap();
    site.stop();
    let told = event(&mut wire).await.unwrap();
    assert_eq!(told["error"]["status"], "UNAVAILABLE");
    site.close().await;
}

#[tokio::test]
async fn a_quiet_watch_gives_signs_of_life() {
    let site = Site::with(|config| config.http.heartbeat = Duration::from_millis(20)).await;
    let (name, token) = running(&site.operations).await;
    let mut wire = opened(&site, &name).await;
    event(&mut wire).await.unwrap();
    for _ in 0..3 {
        assert_eq!(wire.line_with(":").await.as_deref(), Some(":"));
    }
    let response = text("result");
    site.operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    assert_eq!(event(&mut wire).await.unwrap()["done"], true);
}

#[tokio::test]
async fn a_watch_ends_when_its_client_has_gone() {
    let site = Site::with(|config| config.http.heartbeat = Duration::from_millis(20)).await;
    let (name, _) = running(&site.operations).await;
    let mut wire = opened(&site, &name).await;
    event(&mut wire).await.unwrap();
    assert_eq!(site.operations.waiters(), 1);
    drop(wire);
    let gone = async {
        while 0 < site.operations.waiters() {
            tokio::task::yield_now().await;
        }
    };
    let guard = Duration::from_secs(10);
    tokio::time::timeout(guard, gone)
        .await
        .expect("nobody watches");
}

// WAIT-12
#[tokio::test]
async fn over_the_limit_a_watch_is_refused_with_the_time_to_come_back() {
    let site = Site::with(|config| config.limits.max_waiters = 1).await;
    let (name, _) = running(&site.operations).await;
    let mut first = opened(&site, &name).await;
    event(&mut first).await.unwrap();
    let refused = site.get(&format!("/v1/{name}:watch")).await;
    let expected = error(429, "RESOURCE_EXHAUSTED", "TOO_MANY_WAITERS");
    assert_eq!(refused.problem(), expected);
    assert_eq!(refused.header("retry-after"), Some("1"));
}
