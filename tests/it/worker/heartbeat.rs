//! Heartbeats: lease renewal, reports and directives, for many leases in one call.

use longrunning::{
    Any, Limits,
    proto::{
        google::rpc,
        longrunning::v1::{
            CreateOperationRequest, Directive, HeartbeatRequest, Lease, LeaseHeartbeat, Progress,
            finish_operation_request::Outcome,
        },
    },
};
use prost::Message;
use tokio::time::{Duration, advance};
use tonic::{Code, Status};

use crate::support::{
    custom_metadata, decode_metadata,
    error_details::ErrorDetails,
    harness::{
        Harness, Kind, heartbeat_request, lease_heartbeat, lease_request, lease_request_with_wait,
        max_attempts, proto_seconds, queued_request, release, retryable_failure,
        self_executed_request,
    },
    operations_builder, progress, string_value,
};

const SECOND: Duration = Duration::from_secs(1);

/// Returns the error of a directive: why the lease is lost or the report was rejected.
fn directive_error(directive: &Directive) -> ErrorDetails {
    let status: &rpc::Status = directive.error.as_ref().expect("expected an error");
    let code = Code::from(status.code);
    let details = status.encode_to_vec().into();
    ErrorDetails::from_status(&Status::with_details(code, &status.message, details))
}

fn kinds(directives: &[Directive]) -> Vec<Kind> {
    directives.iter().map(Directive::kind).collect()
}

// Rules: HEARTBEAT-1
#[tokio::test(start_paused = true)]
async fn heartbeat_renews_lease_and_reports_progress_in_one_call() {
    let harness = Harness::start().await;
    let lease = harness.create_self_executed("w").await;
    for round in 1..=10 {
        advance(29 * SECOND).await;
        let report = LeaseHeartbeat {
            progress: Some(progress(round)),
            ..lease_heartbeat(&lease)
        };
        let response = harness
            .try_heartbeat(heartbeat_request("w", [report]))
            .await
            .unwrap();
        assert_eq!(response.heartbeat_interval, proto_seconds(10));
        let expected = Directive {
            name: lease.name.clone(),
            lease_token: lease.lease_token.clone(),
            kind: Kind::Continue.into(),
            lease_remaining: proto_seconds(30),
            ..Directive::default()
        };
        assert_eq!(response.directives, [expected]);
        let operation_metadata = decode_metadata(&harness.get(&lease.name).await);
        assert_eq!(operation_metadata.progress, Some(progress(round)));
    }
    let report = LeaseHeartbeat {
        metadata: Some(custom_metadata(7)),
        ..lease_heartbeat(&lease)
    };
    harness
        .try_heartbeat(heartbeat_request("w", [report]))
        .await
        .unwrap();
    assert_eq!(
        harness.get(&lease.name).await.metadata,
        Some(custom_metadata(7))
    );
}

// A heartbeat without a report is not visible to clients.
// Rules: HEARTBEAT-5
#[tokio::test(start_paused = true)]
async fn heartbeat_without_report_changes_no_client_visible_bytes() {
    let harness = Harness::start().await;
    for has_custom_metadata in [false, true] {
        let request = CreateOperationRequest {
            metadata: has_custom_metadata.then(|| custom_metadata(1)),
            ..self_executed_request("w")
        };
        let lease = harness.try_create(request).await.unwrap().lease.unwrap();
        let name = lease.name.parse().unwrap();
        let before = harness.operations.get_cached(&name).unwrap();
        for _ in 0..5 {
            advance(20 * SECOND).await;
            assert_eq!(harness.heartbeat_one(&lease).await.kind(), Kind::Continue);
        }
        let after = harness.operations.get_cached(&name).unwrap();
        assert_eq!(after.bytes(), before.bytes());
        assert_eq!(after.update_time(), before.update_time());
    }
}

// Rules: HEARTBEAT-2
#[tokio::test]
async fn empty_heartbeat_succeeds() {
    let harness = Harness::start().await;
    let response = harness
        .try_heartbeat(heartbeat_request("w", []))
        .await
        .unwrap();
    assert_eq!(
        (response.directives, response.heartbeat_interval),
        (Vec::new(), proto_seconds(10))
    );
}

// worker.proto: HeartbeatResponse.heartbeat_interval.
// Rules: HEARTBEAT-3
#[tokio::test]
async fn heartbeat_interval_is_third_of_shortest_held_lease() {
    let harness = Harness::start().await;
    let mut leases = Vec::new();
    for lease_secs in [60, 9, 3000, 3] {
        let request = CreateOperationRequest {
            lease_duration: proto_seconds(lease_secs),
            ..self_executed_request("w")
        };
        leases.push(harness.try_create(request).await.unwrap().lease.unwrap());
    }
    for (subset, expected) in [(&leases[..], 1), (&leases[0..3], 3), (&leases[2..3], 1000)] {
        let request = heartbeat_request("w", subset.iter().map(lease_heartbeat));
        assert_eq!(
            harness
                .try_heartbeat(request)
                .await
                .unwrap()
                .heartbeat_interval,
            proto_seconds(expected)
        );
    }
    harness
        .finish(&leases[3], Outcome::Response(string_value("")))
        .await;
    let request = heartbeat_request("w", leases.iter().map(lease_heartbeat));
    let response = harness.try_heartbeat(request).await.unwrap();
    assert_eq!(
        response.heartbeat_interval,
        proto_seconds(3),
        "expected the lost lease to be ignored"
    );
}

// worker.proto: directives correspond to reports, in the same order.
// Rules: HEARTBEAT-4
#[tokio::test]
async fn rejected_report_does_not_affect_other_reports() {
    let harness = Harness::start().await;
    let mut leases = Vec::new();
    for _ in 0..9 {
        leases.push(harness.create_self_executed("w").await);
    }
    let bad = Some(Any {
        type_url: "/".into(),
        value: Vec::new(),
    });
    let mut reports: Vec<LeaseHeartbeat> = leases.iter().map(lease_heartbeat).collect();
    reports[1].metadata.clone_from(&bad);
    reports[2].checkpoint = bad;
    reports[3].lease_token = vec![0; 16];
    reports[4].lease_token = Vec::new();
    reports[5].lease_token = vec![1, 2, 3];
    reports[6].name = "operations/unknown".into();
    reports[7].name = String::new();
    let response = harness
        .try_heartbeat(heartbeat_request("w", reports.clone()))
        .await
        .unwrap();
    for (report, directive) in reports.iter().zip(&response.directives) {
        assert_eq!(report.name, directive.name);
        assert_eq!(report.lease_token, directive.lease_token);
    }
    let lost = Kind::LeaseLost;
    let continues = Kind::Continue;
    let expected = [
        continues, continues, continues, lost, lost, lost, lost, lost, continues,
    ];
    assert_eq!(kinds(&response.directives), expected);
    let reasons = [
        None,
        Some((Code::InvalidArgument, "INVALID_ANY")),
        Some((Code::InvalidArgument, "INVALID_ANY")),
        Some((Code::FailedPrecondition, "LEASE_LOST")),
        Some((Code::InvalidArgument, "INVALID_LEASE_TOKEN")),
        Some((Code::FailedPrecondition, "LEASE_LOST")),
        Some((Code::NotFound, "OPERATION_NOT_FOUND")),
        Some((Code::InvalidArgument, "INVALID_NAME")),
        None,
    ];
    for (directive, reason) in response.directives.iter().zip(reasons) {
        let error = directive
            .error
            .is_some()
            .then(|| directive_error(directive));
        assert_eq!(error.as_ref().map(ErrorDetails::code_and_reason), reason);
        assert_eq!(
            directive.lease_remaining.is_some(),
            directive.kind() == continues,
            "expected every lease that continues to be renewed"
        );
    }
    assert_eq!(
        directive_error(&response.directives[1]).field_violations[0].0,
        "metadata"
    );
    assert_eq!(
        directive_error(&response.directives[2]).field_violations[0].0,
        "checkpoint"
    );
}

// worker.proto: progress that clients could not display is not recorded.
// Rules: HEARTBEAT-4
#[tokio::test(start_paused = true)]
async fn out_of_range_progress_is_rejected_and_lease_is_renewed() {
    let harness = Harness::start().await;
    let lease = harness.create_self_executed("w").await;
    let good = progress(3);
    let bad = [
        Progress {
            fraction: Some(f64::NAN),
            ..good.clone()
        },
        Progress {
            done_units: -1,
            ..good.clone()
        },
        Progress {
            eta: Some(prost_types::Timestamp {
                seconds: i64::MAX,
                nanos: 0,
            }),
            ..good.clone()
        },
    ];
    for progress in bad {
        advance(20 * SECOND).await;
        let report = LeaseHeartbeat {
            progress: Some(progress),
            ..lease_heartbeat(&lease)
        };
        let response = harness
            .try_heartbeat(heartbeat_request("w", [report]))
            .await
            .unwrap();
        let directive = &response.directives[0];
        assert_eq!(
            (directive.kind(), directive.lease_remaining),
            (Kind::Continue, proto_seconds(30))
        );
        assert_eq!(
            directive_error(directive).code_and_reason(),
            (Code::InvalidArgument, "INVALID_PROGRESS")
        );
    }
    assert_eq!(
        decode_metadata(&harness.get(&lease.name).await).progress,
        None
    );
}

// A watch sends changes only.
// Rules: HEARTBEAT-5
#[tokio::test(start_paused = true)]
async fn identical_report_renews_lease_without_changing_operation() {
    let harness = Harness::start().await;
    let lease = harness.create_self_executed("w").await;
    let report = || LeaseHeartbeat {
        progress: Some(progress(3)),
        checkpoint: Some(string_value("3")),
        ..lease_heartbeat(&lease)
    };
    harness
        .try_heartbeat(heartbeat_request("w", [report()]))
        .await
        .unwrap();
    let before = harness.get(&lease.name).await;
    for _ in 0..3 {
        advance(20 * SECOND).await;
        let response = harness
            .try_heartbeat(heartbeat_request("w", [report()]))
            .await
            .unwrap();
        assert_eq!(response.directives[0].lease_remaining, proto_seconds(30));
        assert_eq!(harness.get(&lease.name).await, before);
    }
    let changed_report = LeaseHeartbeat {
        progress: Some(progress(4)),
        ..report()
    };
    harness
        .try_heartbeat(heartbeat_request("w", [changed_report]))
        .await
        .unwrap();
    assert_ne!(harness.get(&lease.name).await, before);
}

// worker.proto: the response must stay below the message limit of clients.
// Rules: HEARTBEAT-2
#[tokio::test]
async fn heartbeat_with_more_than_1000_reports_is_rejected() {
    let harness = Harness::start().await;
    let lease = harness.create_self_executed("w").await;
    let reports = |count| std::iter::repeat_n(lease_heartbeat(&lease), count);
    let response = harness
        .try_heartbeat(heartbeat_request("w", reports(1000)))
        .await
        .unwrap();
    assert_eq!(response.directives.len(), 1000);
    let rejected = harness
        .try_heartbeat(heartbeat_request("w", reports(1001)))
        .await
        .unwrap_err();
    let key = (Code::InvalidArgument, "INVALID_REPORTS");
    assert_eq!(ErrorDetails::from_status(&rejected).code_and_reason(), key);
}

// worker.proto: Directive.error with another kind than LEASE_LOST.
// Rules: HEARTBEAT-4
#[tokio::test(start_paused = true)]
async fn oversized_heartbeat_report_is_rejected_and_lease_is_renewed() {
    let limits = Limits::default().with_max_operation_bytes(1000);
    let harness = Harness::start_with(operations_builder().limits(limits)).await;
    let lease = harness.create_self_executed("w").await;
    let before = harness.get(&lease.name).await;
    for _ in 0..3 {
        advance(29 * SECOND).await;
        let report = LeaseHeartbeat {
            checkpoint: Some(string_value(&"x".repeat(1000))),
            progress: Some(progress(1)),
            ..lease_heartbeat(&lease)
        };
        let response = harness
            .try_heartbeat(heartbeat_request("w", [report]))
            .await
            .unwrap();
        let directive = &response.directives[0];
        assert_eq!(directive.kind(), Kind::Continue);
        assert_eq!(directive.lease_remaining, proto_seconds(30));
        assert_eq!(
            directive_error(directive).code_and_reason(),
            (Code::ResourceExhausted, "TOO_LARGE")
        );
    }
    assert_eq!(harness.get(&lease.name).await, before);
}

// Rules: HEARTBEAT-6
#[tokio::test(start_paused = true)]
async fn heartbeat_returns_cancel_directive_with_remaining_grace() {
    let harness = Harness::start().await;
    for grace in [None, proto_seconds(50)] {
        let request = CreateOperationRequest {
            cancel_grace_period: grace,
            ..self_executed_request("w")
        };
        let lease = harness.try_create(request).await.unwrap().lease.unwrap();
        harness.cancel(&lease.name).await;
        advance(20 * SECOND).await;
        // A deletion does not hide the cancellation.
        harness.delete(&lease.name).await;
        let directive = harness.heartbeat_one(&lease).await;
        assert_eq!(directive.kind(), Kind::CancelRequested);
        assert_eq!(directive.lease_remaining, proto_seconds(30));
        assert_eq!(
            directive.cancel_grace_remaining,
            grace.and(proto_seconds(30))
        );
        assert_eq!(directive.error, None);
    }
}

// Rules: HEARTBEAT-6
#[tokio::test]
async fn heartbeat_returns_deleted_directive_and_renews_lease() {
    let harness = Harness::start().await;
    let lease = harness.create_self_executed("w").await;
    harness.delete(&lease.name).await;
    for _ in 0..3 {
        let directive = harness.heartbeat_one(&lease).await;
        assert_eq!(
            (directive.kind(), directive.error),
            (Kind::OperationDeleted, None)
        );
    }
    harness
        .finish(&lease, Outcome::Response(string_value("unseen")))
        .await;
    let directive = harness.heartbeat_one(&lease).await;
    assert_eq!(directive.kind(), Kind::LeaseLost);
    assert_eq!(
        directive_error(&directive).code_and_reason(),
        (Code::NotFound, "OPERATION_NOT_FOUND")
    );
}

// Rules: HEARTBEAT-7, LEASE-6
#[tokio::test(start_paused = true)]
async fn heartbeat_returns_lease_lost_with_reason() {
    let harness = Harness::start().await;
    let request = CreateOperationRequest {
        retry_policy: max_attempts(9),
        ..queued_request("q")
    };
    harness.create_operation(request).await;
    let first = harness.lease_one("q", "w").await;
    let assert_lease_lost = async |lease: &Lease, expected_message: &str| {
        let directive = harness.heartbeat_one(lease).await;
        assert_eq!(
            (directive.kind(), directive.lease_remaining),
            (Kind::LeaseLost, None)
        );
        let error = directive_error(&directive);
        assert_eq!(
            error.code_and_reason(),
            (Code::FailedPrecondition, "LEASE_LOST")
        );
        assert!(
            error.message.contains(expected_message),
            "{}",
            error.message
        );
    };
    // From the moment of expiry, whether or not the timer has run.
    advance(30 * SECOND).await;
    assert_lease_lost(&first, "").await;
    let second = &harness
        .try_lease(lease_request_with_wait(&["q"], "w", 60))
        .await
        .unwrap()[0];
    assert_lease_lost(&first, "another attempt").await;
    assert_eq!(harness.heartbeat_one(second).await.kind(), Kind::Continue);
    harness.finish(second, release()).await;
    assert_lease_lost(second, "went back").await;
    let third = harness.lease_one("q", "w").await;
    let failure = retryable_failure(Code::Unavailable, "again");
    harness.finish(&third, failure).await;
    assert_lease_lost(&third, "went back").await;
    let fourth = &harness
        .try_lease(lease_request_with_wait(&["q"], "w", 60))
        .await
        .unwrap()[0];
    harness
        .finish(fourth, Outcome::Response(string_value("")))
        .await;
    let directive = harness.heartbeat_one(fourth).await;
    assert_eq!(
        (
            directive.kind(),
            directive_error(&directive).reason.as_str()
        ),
        (Kind::LeaseLost, "OPERATION_ALREADY_DONE")
    );
}

// worker.proto: HeartbeatResponse.directives.
// Rules: HEARTBEAT-8
#[tokio::test]
async fn heartbeat_response_during_shutdown_ends_with_drain() {
    let harness = Harness::start().await;
    let lease = harness.create_self_executed("w").await;
    harness.operations.shutdown(Duration::ZERO).await;
    let response = harness
        .try_heartbeat(heartbeat_request("w", [lease_heartbeat(&lease)]))
        .await
        .unwrap();
    assert_eq!(kinds(&response.directives), [Kind::Continue, Kind::Drain]);
    assert_eq!(response.directives[1].name, "");
    let response = harness
        .try_heartbeat(heartbeat_request("w", []))
        .await
        .unwrap();
    assert_eq!(kinds(&response.directives), [Kind::Drain]);
}

// worker.proto: the lease token authorizes a worker; the worker id only identifies it.
// Rules: LEASE-7
#[tokio::test]
async fn lease_token_authorizes_heartbeat_from_any_worker_id() {
    let harness = Harness::start().await;
    let lease = harness.create_self_executed("w").await;
    let response = harness
        .try_heartbeat(heartbeat_request("another", [lease_heartbeat(&lease)]))
        .await
        .unwrap();
    assert_eq!(kinds(&response.directives), [Kind::Continue]);
}

// One call can renew 1000 leases.
// Rules: HEARTBEAT-1
#[tokio::test]
async fn directives_are_in_order_of_1000_reports() {
    let harness = Harness::start().await;
    for _ in 0..1000 {
        harness.create_queued("q").await;
    }
    let leases = harness
        .try_lease(lease_request(&["q"], "w", 1000))
        .await
        .unwrap();
    for lease in leases.iter().step_by(7) {
        harness.cancel(&lease.name).await;
    }
    let reports = leases.iter().rev().map(|lease| LeaseHeartbeat {
        progress: Some(progress(1)),
        ..lease_heartbeat(lease)
    });
    let request = HeartbeatRequest {
        draining: true,
        ..heartbeat_request("w", reports)
    };
    let response = harness.try_heartbeat(request).await.unwrap();
    for (index, (lease, directive)) in leases.iter().rev().zip(&response.directives).enumerate() {
        let is_cancelled = (leases.len() - 1 - index).is_multiple_of(7);
        let expected = if is_cancelled {
            Kind::CancelRequested
        } else {
            Kind::Continue
        };
        assert_eq!((&directive.name, directive.kind()), (&lease.name, expected));
    }
    assert_eq!(response.directives.len(), 1000);
}
