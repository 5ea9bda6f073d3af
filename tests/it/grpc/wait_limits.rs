//! The duration of a WaitOperation: its timeout, the deadline of the call and the limits
//! of the server.

use std::time::Duration;

use longrunning::{WaitLimits, proto::google};
use tokio::time::Instant;
use tonic::{Code, Request};

use crate::support::{
    GrpcTestServer, create_running, error_details::expect_status_error,
    operations::wait_request_without_timeout, wait_request,
};

const MS: Duration = Duration::from_millis(1);

// Rules: WAIT-3, WAIT-6
#[tokio::test]
async fn wait_uses_default_timeout_and_is_capped_by_max_timeout() {
    let wait_limits = WaitLimits::default()
        .with_default_timeout(500 * MS)
        .with_max_timeout(3000 * MS);
    let server =
        GrpcTestServer::start_with_wait_limits(crate::support::operations_builder(), wait_limits)
            .await;
    let (name, _) = create_running(&server.operations).await;
    let mut client = server.client().await;
    let start = Instant::now();
    assert!(
        !client
            .wait_operation(wait_request_without_timeout(&name))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    assert!(
        (500 * MS..3000 * MS).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    let start = Instant::now();
    assert!(
        !client
            .wait_operation(wait_request(&name, 3_600_000))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    assert!(
        (3000 * MS..60_000 * MS).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

// Rules: WAIT-5
#[tokio::test]
async fn wait_with_300_ms_grpc_timeout_returns_before_deadline() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut client = server.client().await;
    for timeout in [None, Some(60_000)] {
        let mut in_time = false;
        // A busy machine may miss the deadline once, but not ten times.
        for _ in 0..10 {
            let message = timeout.map_or_else(
                || wait_request_without_timeout(&name),
                |millis| wait_request(&name, millis),
            );
            let mut request = Request::new(message);
            // Set the header only, so that the client's own timer does not run.
            request
                .metadata_mut()
                .insert("grpc-timeout", "300m".parse().unwrap());
            let start = Instant::now();
            let result = client.wait_operation(request).await;
            let elapsed = start.elapsed();
            assert!(elapsed >= 200 * MS, "{elapsed:?}");
            if let Ok(response) = result
                && elapsed < 300 * MS
            {
                assert!(!response.into_inner().done);
                in_time = true;
                break;
            }
        }
        assert!(in_time, "expected a response before the deadline");
    }
}

// A deadline shorter than the safety margin leaves no time to wait.
// Rules: WAIT-5
#[tokio::test]
async fn wait_with_20_ms_deadline_returns_immediately() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut request = Request::new(wait_request_without_timeout(&name));
    request
        .metadata_mut()
        .insert("grpc-timeout", "20m".parse().unwrap());
    let response = server.client().await.wait_operation(request).await.unwrap();
    assert!(!response.into_inner().done);
}

// Rules: WAIT-7
#[tokio::test]
async fn zero_wait_timeout_returns_immediately_and_malformed_is_invalid() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut client = server.client().await;
    let start = Instant::now();
    assert!(
        !client
            .wait_operation(wait_request(&name, 0))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    // The default timeout would be 30 s.
    assert!(start.elapsed() < 20_000 * MS);
    for (seconds, nanos) in [
        (-1, 0),
        (0, -1),
        (-1, -1),
        (1, -1),
        (0, 1_000_000_000),
        (0, i32::MAX),
        (0, i32::MIN),
        (315_576_000_001, 0),
        (i64::MAX, 0),
        (i64::MIN, 0),
    ] {
        let timeout = Some(prost_types::Duration { seconds, nanos });
        let request = google::longrunning::WaitOperationRequest {
            name: name.to_string(),
            timeout,
        };
        let details = expect_status_error(client.wait_operation(request).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_TIMEOUT"),
            "{seconds} {nanos}"
        );
        assert_eq!(
            details.field_violations,
            [("timeout".into(), "INVALID_TIMEOUT".into())]
        );
    }
    assert_eq!(server.operations.waiter_count(), 0);
}

// The longest valid duration is capped by the maximum of the server.
// Rules: WAIT-7
#[tokio::test]
async fn longest_protobuf_duration_is_capped_by_max_wait_timeout() {
    let wait_limits = WaitLimits::default()
        .with_default_timeout(MS)
        .with_max_timeout(50 * MS);
    let server =
        GrpcTestServer::start_with_wait_limits(crate::support::operations_builder(), wait_limits)
            .await;
    let (name, _) = create_running(&server.operations).await;
    let timeout = Some(prost_types::Duration {
        seconds: 315_576_000_000,
        nanos: 0,
    });
    let request = google::longrunning::WaitOperationRequest {
        name: name.to_string(),
        timeout,
    };
    assert!(
        !server
            .client()
            .await
            .wait_operation(request)
            .await
            .unwrap()
            .into_inner()
            .done
    );
}
