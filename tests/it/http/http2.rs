//! HTTP/2 on the client listener, where gRPC and HTTP/JSON share connections.

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
    create_running, create_succeeded, expect_response, get_request,
    http_server::{HttpTestServer, create_named},
    string_value,
};

/// Time limit for one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// The response of hyper to an HTTP/1.1 request that it cannot parse.
const HTTP1_BAD_REQUEST: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

type Sender = SendRequest<Full<Bytes>>;

/// Opens an HTTP/2 connection.
async fn connect(server: &HttpTestServer) -> Sender {
    let stream = TcpStream::connect(&server.client_address).await.unwrap();
    let connected = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = connected.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends a request and returns status code and body of the response.
async fn send_request(
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
    let exchange = async {
        let http_response = sender.send_request(request).await?;
        let code = http_response.status().as_u16();
        Ok((code, http_response.into_body().collect().await?.to_bytes()))
    };
    timeout(STEP_TIMEOUT, exchange)
        .await
        .expect("expected a response in time")
}

fn error_reason(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap();
    json["error"]["details"][0]["reason"].to_string()
}

// Rules: OP-16
#[tokio::test]
async fn response_resembling_http1_error_is_served_byte_for_byte() {
    let server = HttpTestServer::start().await;
    let channel = |address: &str| {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
        endpoint.unwrap().connect_lazy()
    };
    let mut clients = OperationsClient::new(channel(&server.client_address));
    let mut workers = OperationWorkerClient::new(channel(&server.worker_address));
    // Different sizes, so that the text ends at the end of a socket write at least once.
    for size in [0, 1000, 2048, 20_000, 200_000] {
        let captured = string_value(&format!("{}{HTTP1_BAD_REQUEST}", "x".repeat(size)));
        let (name, token) = create_running(&server.operations).await;
        let finish = FinishOperationRequest {
            name: name.to_string(),
            lease_token: token.as_bytes().to_vec(),
            outcome: Some(Outcome::Response(captured.clone())),
            ..Default::default()
        };
        let finished = workers.finish_operation(finish).await.unwrap().into_inner();
        assert_eq!(expect_response(&finished), captured, "{size}");
        for _ in 0..2 {
            let got = clients.get_operation(get_request(name.as_str())).await;
            assert_eq!(
                expect_response(&got.unwrap().into_inner()),
                captured,
                "{size}"
            );
            let wait = WaitOperationRequest {
                name: name.to_string(),
                timeout: None,
            };
            let waited = clients.wait_operation(wait).await.unwrap().into_inner();
            assert_eq!(expect_response(&waited), captured, "{size}");
        }
        let list = ListOperationsRequest {
            page_size: 1,
            ..Default::default()
        };
        let page = clients.list_operations(list).await.unwrap().into_inner();
        assert_eq!(expect_response(&page.operations[0]), captured, "{size}");
    }
    // HTTP/1.1 serves it unchanged, too.
    let (name, token) = create_running(&server.operations).await;
    let captured = format!("{}{HTTP1_BAD_REQUEST}", "x".repeat(2048));
    let done = server
        .operations
        .succeed(&name, token, string_value(&captured))
        .await;
    assert!(
        done.unwrap()
            .bytes()
            .ends_with(HTTP1_BAD_REQUEST.as_bytes())
    );
    let got = server.get(&format!("/v1/{name}")).await.expect_ok_json();
    assert_eq!(got["response"]["value"], captured.as_str());
}

// Rules: HTTP-14
#[tokio::test]
async fn longest_filter_fits_into_url() {
    let server = HttpTestServer::start().await;
    let name = create_succeeded(&server.operations).await;
    let mut sender = connect(&server).await;
    // Escape every byte, which triples the length.
    let (quote, space) = ("%22", "%20".repeat(8192 - "name:\"operations\"".len()));
    let filter = format!("%6e%61%6d%65%3a{quote}operations{quote}{space}");
    let target = format!("/v1/operations?filter={filter}");
    let (code, body) = send_request(&mut sender, "GET", &target, &[])
        .await
        .unwrap();
    assert_eq!(code, 200, "{}", String::from_utf8_lossy(&body));
    let list: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(list["operations"][0]["name"], name.as_str());
    assert_eq!(
        server.get(&target).await.expect_ok_json(),
        list,
        "expected the same response over HTTP/1.1"
    );
    let long = format!("/v1/operations/{}", "a".repeat(60_000));
    let (code, body) = send_request(&mut sender, "GET", &long, &[]).await.unwrap();
    assert_eq!(
        (code, &*error_reason(&body)),
        (404, "\"OPERATION_NOT_FOUND\"")
    );
}

// Rules: HTTP-19
#[tokio::test]
async fn oversized_headers_fail_request_and_huge_ones_fail_connection() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    let mut sender = connect(&server).await;
    let large = "a".repeat(70_000);
    // The longest URL that the client can send.
    let target = format!("/v1/operations/{}", "a".repeat(65_490));
    // The HTTP/2 library answers these itself, without a body.
    for (target, headers) in [
        (target.as_str(), &[][..]),
        ("/v1/operations/x", &[("x", large.as_str())]),
    ] {
        let http_response = send_request(&mut sender, "GET", target, headers).await;
        assert_eq!(http_response.map(|(code, _)| code).unwrap(), 431);
    }
    let got = send_request(&mut sender, "GET", "/v1/operations/x", &[]).await;
    assert_eq!(got.unwrap().0, 200, "expected the connection to stay open");
    let huge = [("x", &*"a".repeat(1 << 20))];
    assert!(
        send_request(&mut sender, "GET", "/v1/operations/x", &huge)
            .await
            .is_err()
    );
    let mut sender = connect(&server).await;
    let got = send_request(&mut sender, "GET", "/v1/operations/x", &[]).await;
    assert_eq!(got.unwrap().0, 200);
}

// Rules: HTTP-11, HTTP-14
#[tokio::test]
async fn http_paths_get_json_for_any_content_type_and_others_get_grpc() {
    for prefix in ["", "/", "/api/v2"] {
        let parsed = prefix.parse().unwrap();
        let server = HttpTestServer::start_with(|config| config.http.prefix = parsed).await;
        create_named(&server.operations, "operations/x").await;
        let mut sender = connect(&server).await;
        let path_prefix = match prefix {
            "" => "/v1",
            "/" => "",
            other => other,
        };
        for content_type in [
            "application/grpc",
            "application/grpc+json",
            "application/grpc-web",
        ] {
            let headers = [("content-type", content_type)];
            let cancel = format!("{path_prefix}/operations/x:cancel");
            let (code, body) = send_request(&mut sender, "POST", &cancel, &headers)
                .await
                .unwrap();
            // The content type of an empty body is ignored.
            assert_eq!((code, &*body), (200, &b"{}"[..]), "{prefix} {content_type}");
            let missing = format!("{path_prefix}/operations/x:frobnicate");
            let (code, body) = send_request(&mut sender, "POST", &missing, &headers)
                .await
                .unwrap();
            let expected = (404, "\"UNKNOWN_PATH\"".to_owned());
            if prefix != "/" {
                assert_eq!(
                    (code, error_reason(&body)),
                    expected,
                    "{prefix} {content_type}"
                );
            }
            let get = format!("{path_prefix}/operations/x");
            let (code, _) = send_request(&mut sender, "GET", &get, &headers)
                .await
                .unwrap();
            assert_eq!(code, 200, "{prefix} {content_type}");
            // A gRPC client must get an error that it can decode.
            let unknown = "/shop.v1.Shop/Buy";
            let (code, body) = send_request(&mut sender, "POST", unknown, &headers)
                .await
                .unwrap();
            assert_eq!((code, body.len()), (200, 0), "{prefix} {content_type}");
            let (code, body) = send_request(&mut sender, "GET", unknown, &headers)
                .await
                .unwrap();
            let code_and_reason = (code, error_reason(&body));
            assert_eq!(
                code_and_reason, expected,
                "{prefix} {content_type}: expected only POST to be gRPC"
            );
        }
    }
}
