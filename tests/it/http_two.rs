//! HTTP/2 on the clients' listener, where gRPC and HTTP/JSON share connections:
//! what one call holds or asks for is no affair of the others.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use longrunning::proto::{
    google::longrunning::{
        ListOperationsRequest, WaitOperationRequest, operations_client::OperationsClient,
    },
    longrunning::v1::{
        FinishOperationRequest, finish_operation_request::Outcome,
        operation_worker_client::OperationWorkerClient,
    },
};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use crate::support::{
    get,
    http::{Site, named},
    response, running, succeeded, text,
};

/// So long a step may take before the test has failed.
const GUARD: Duration = Duration::from_secs(30);

/// What hyper says over HTTP/1.1 of a request that it cannot read.
const BARE: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

type Sender = SendRequest<Full<Bytes>>;

/// A connection of HTTP/2.
async fn connect(site: &Site) -> Sender {
    let stream = TcpStream::connect(&site.address).await.unwrap();
    let connected = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = connected.unwrap();
    tokio::spawn(connection);
    sender
}

/// The code and the body of the answer to a request.
async fn ask(
    sender: &mut Sender,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<(u16, Bytes), hyper::Error> {
    let mut request = http::Request::builder()
        .method(method)
        .uri(format!("http://test{target}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::default()).unwrap();
    let asked = async {
        let answer = sender.send_request(request).await?;
        let code = answer.status().as_u16();
        Ok((code, answer.into_body().collect().await?.to_bytes()))
    };
    timeout(GUARD, asked).await.expect("an answer comes")
}

fn reason(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap();
    json["error"]["details"][0]["reason"].to_string()
}

// BEHAVIOUR §2
#[tokio::test]
async fn a_result_that_looks_like_a_refusal_of_http1_is_served_byte_for_byte() {
    let site = Site::start().await;
    let channel = |address: &str| {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
        endpoint.unwrap().connect_lazy()
    };
    let mut clients = OperationsClient::new(channel(&site.address));
    let mut workers = OperationWorkerClient::new(channel(&site.workers));
    // Of each size, so that it ends where a write to the socket ends.
    for size in [0, 1000, 2048, 20_000, 200_000] {
        let captured = text(&format!("{}{BARE}", "x".repeat(size)));
        let (name, token) = running(&site.operations).await;
        let finish = FinishOperationRequest {
            name: name.to_string(),
            lease_token: token.as_bytes().to_vec(),
            outcome: Some(Outcome::Response(captured.clone())),
            ..Default::default()
        };
        let finished = workers.finish_operation(finish).await.unwrap().into_inner();
        assert_eq!(response(&finished), captured, "{size}");
        for _ in 0..2 {
            let got = clients.get_operation(get(name.as_str())).await;
            assert_eq!(response(&got.unwrap().into_inner()), captured, "{size}");
            let wait = WaitOperationRequest {
                name: name.to_string(),
                timeout: None,
            };
            let waited = clients.wait_operation(wait).await.unwrap().into_inner();
            assert_eq!(response(&waited), captured, "{size}");
        }
        let list = ListOperationsRequest {
            page_size: 1,
            ..Default::default()
        };
        let page = clients.list_operations(list).await.unwrap().into_inner();
        assert_eq!(response(&page.operations[0]), captured, "{size}");
    }
    // Over HTTP/1.1 it is a text among others.
    let (name, token) = running(&site.operations).await;
    let captured = format!("{}{BARE}", "x".repeat(2048));
    let done = site.operations.succeed(&name, token, text(&captured)).await;
    assert!(done.unwrap().bytes().ends_with(BARE.as_bytes()));
    let got = site.get(&format!("/v1/{name}")).await.ok();
    assert_eq!(got["response"]["value"], captured.as_str());
}

// HTTP-14
#[tokio::test]
async fn a_filter_as_long_as_filters_may_be_fits_into_a_url() {
    let site = Site::start().await;
    let name = succeeded(&site.operations).await;
    let mut sender = connect(&site).await;
    // All of it escaped: three bytes for one.
    let (quote, space) = ("%22", "%20".repeat(8192 - "name:\"operations\"".len()));
    let filter = format!("%6e%61%6d%65%3a{quote}operations{quote}{space}");
    let target = format!("/v1/operations?filter={filter}");
    let (code, body) = ask(&mut sender, "GET", &target, &[]).await.unwrap();
    assert_eq!(code, 200, "{}", String::from_utf8_lossy(&body));
    let list: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(list["operations"][0]["name"], name.as_str());
    assert_eq!(site.get(&target).await.ok(), list, "HTTP/1.1 says the same");
    let long = format!("/v1/operations/{}", "a".repeat(60_000));
    let (code, body) = ask(&mut sender, "GET", &long, &[]).await.unwrap();
    assert_eq!((code, &*reason(&body)), (404, "\"OPERATION_NOT_FOUND\""));
}

#[tokio::test]
async fn a_head_that_is_too_large_fails_alone_and_one_beyond_all_measure_with_its_connection() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    let mut sender = connect(&site).await;
    let large = "a".repeat(70_000);
    // The longest URL that the client can say.
    let target = format!("/v1/operations/{}", "a".repeat(65_490));
    // The library below answers these itself, without a body.
    for (target, headers) in [
        (target.as_str(), &[][..]),
        ("/v1/operations/x", &[("x", large.as_str())]),
    ] {
        let answer = ask(&mut sender, "GET", target, headers).await;
        assert_eq!(answer.map(|(code, _)| code).unwrap(), 431);
    }
    let got = ask(&mut sender, "GET", "/v1/operations/x", &[]).await;
    assert_eq!(got.unwrap().0, 200, "the connection lives on");
    let huge = [("x", &*"a".repeat(1 << 20))];
    assert!(
        ask(&mut sender, "GET", "/v1/operations/x", &huge)
            .await
            .is_err()
    );
    let mut sender = connect(&site).await;
    let got = ask(&mut sender, "GET", "/v1/operations/x", &[]).await;
    assert_eq!(got.unwrap().0, 200);
}

// HTTP-11, HTTP-14
#[tokio::test]
async fn a_path_of_http_is_answered_in_json_whatever_the_content_type_and_others_as_grpc_is() {
    for prefix in ["", "/", "/api/v2"] {
        let parsed = prefix.parse().unwrap();
        let site = Site::with(|config| config.http.prefix = parsed).await;
        named(&site.operations, "operations/x").await;
        let mut sender = connect(&site).await;
        let begin = match prefix {
            "" => "/v1",
            "/" => "",
            other => other,
        };
        for kind in [
            "application/grpc",
            "application/grpc+json",
            "application/grpc-web",
        ] {
            let headers = [("content-type", kind)];
            let cancel = format!("{begin}/operations/x:cancel");
            let (code, body) = ask(&mut sender, "POST", &cancel, &headers).await.unwrap();
            // Without a body, its type does not matter.
            assert_eq!((code, &*body), (200, &b"{}"[..]), "{prefix} {kind}");
            let missing = format!("{begin}/operations/x:frobnicate");
            let (code, body) = ask(&mut sender, "POST", &missing, &headers).await.unwrap();
            let expected = (404, "\"PATH_UNKNOWN\"".to_owned());
            if prefix != "/" {
                assert_eq!((code, reason(&body)), expected, "{prefix} {kind}");
            }
            let get = format!("{begin}/operations/x");
            let (code, _) = ask(&mut sender, "GET", &get, &headers).await.unwrap();
            assert_eq!(code, 200, "{prefix} {kind}");
            // A client of gRPC must be able to read what it is told.
            let unknown = "/shop.v1.Shop/Buy";
            let (code, body) = ask(&mut sender, "POST", unknown, &headers).await.unwrap();
            assert_eq!((code, body.len()), (200, 0), "{prefix} {kind}");
            let (code, body) = ask(&mut sender, "GET", unknown, &headers).await.unwrap();
            let problem = (code, reason(&body));
            assert_eq!(problem, expected, "{prefix} {kind}: gRPC is always a POST");
        }
    }
}
