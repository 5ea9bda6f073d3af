//! How long a WaitOperation may take: its timeout, the deadline of the call and
//! the limits of the server.

use std::time::Duration;

use longrunning::{WaitLimits, proto::google};
use tokio::time::Instant;
use tonic::{Code, Request};

use crate::support::{Server, problem::problem, running, wait};

const MS: Duration = Duration::from_millis(1);

fn endless(name: &longrunning::OperationName) -> google::longrunning::WaitOperationRequest {
    google::longrunning::WaitOperationRequest {
        name: name.to_string(),
        timeout: None,
    }
}

// WAIT-3, WAIT-6
#[tokio::test]
async fn without_timeout_and_deadline_the_servers_default_holds_and_its_maximum_always() {
    let waits = WaitLimits {
        default: 500 * MS,
        max: 3000 * MS,
    };
    let server = Server::with_waits(crate::support::operations(), waits).await;
    let (name, _) = running(&server.operations).await;
    let mut client = server.client().await;
    let begun = Instant::now();
    assert!(
        !client
            .wait_operation(endless(&name))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    assert!(
        (500 * MS..3000 * MS).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    assert!(
        !client
            .wait_operation(wait(&name, 3_600_000))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    assert!(
        (3000 * MS..60_000 * MS).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
}

// WAIT-5
#[tokio::test]
async fn a_wait_with_a_grpc_timeout_of_300_ms_answers_ok_before_the_deadline() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let mut client = server.client().await;
    for timeout in [None, Some(60_000)] {
        let mut in_time = 0;
        // A machine that stands still for a moment may miss it, but not ten times.
        for _ in 0..10 {
            let message = timeout.map_or_else(|| endless(&name), |millis| wait(&name, millis));
            let mut request = Request::new(message);
            // Only the header: the client's own timer must not help.
            request
                .metadata_mut()
                .insert("grpc-timeout", "300m".parse().unwrap());
            let begun = Instant::now();
            let answer = client.wait_operation(request).await;
            let took = begun.elapsed();
            assert!(200 * MS <= took, "{took:?}");
            if let Ok(answer) = answer
                && took < 300 * MS
            {
                assert!(!answer.into_inner().done);
                in_time += 1;
                break;
            }
        }
        assert_eq!(in_time, 1, "no wait was answered before its deadline");
    }
}

// WAIT-5: a deadline within the margin leaves no time to wait.
#[tokio::test]
async fn a_wait_with_a_deadline_of_20_ms_answers_at_once() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let mut request = Request::new(endless(&name));
    request
        .metadata_mut()
        .insert("grpc-timeout", "20m".parse().unwrap());
    let answer = server.client().await.wait_operation(request).await.unwrap();
    assert!(!answer.into_inner().done);
}

// WAIT-7
#[tokio::test]
async fn a_timeout_of_0_answers_at_once_and_a_malformed_one_is_invalid() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let mut client = server.client().await;
    let begun = Instant::now();
    assert!(
        !client
            .wait_operation(wait(&name, 0))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    // Without the timeout it would have taken 30 s.
    assert!(begun.elapsed() < 20_000 * MS);
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
        let problem = problem(client.wait_operation(request).await);
        assert_eq!(
            problem.key(),
            (Code::InvalidArgument, "INVALID_TIMEOUT"),
            "{seconds} {nanos}"
        );
        assert_eq!(
            problem.fields,
            [("timeout".into(), "INVALID_TIMEOUT".into())]
        );
    }
    assert_eq!(server.operations.waiters(), 0);
}

// WAIT-7: the longest proper duration is the maximum of the server.
#[tokio::test]
async fn the_longest_duration_of_protobuf_is_cut_to_the_servers_maximum() {
    let waits = WaitLimits {
        default: MS,
        max: 50 * MS,
    };
    let server = Server::with_waits(crate::support::operations(), waits).await;
    let (name, _) = running(&server.operations).await;
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
