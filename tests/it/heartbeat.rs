//! Heartbeats: renewal and report in one, many leases in one call, and what a
//! worker is told about each.

use longrunning::{
    Any, Limits,
    proto::{
        google::rpc,
        longrunning::v1::{
            CreateOperationRequest, Directive, HeartbeatRequest, Lease, LeaseReport, Progress,
            finish_operation_request::Outcome,
        },
    },
};
use prost::Message;
use tokio::time::{Duration, advance};
use tonic::{Code, Status};

use crate::support::{
    metadata, own_metadata,
    problem::Problem,
    progress,
    shop::{
        Kind, Shop, attempts, beat, poll, queued, release, retryable, seconds, self_executed, sign,
    },
    text,
};

const SECOND: Duration = Duration::from_secs(1);

/// Why a directive says that a lease is lost, or a report was not taken.
fn why(directive: &Directive) -> Problem {
    let full: &rpc::Status = directive.error.as_ref().expect("it says why");
    let code = Code::from(full.code);
    let details = full.encode_to_vec().into();
    Problem::of(&Status::with_details(code, &full.message, details))
}

fn kinds(directives: &[Directive]) -> Vec<Kind> {
    directives.iter().map(Directive::kind).collect()
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_heartbeat_renews_a_lease_and_tells_how_far_the_work_is_in_one() {
    let shop = Shop::open().await;
    let lease = shop.hold("w").await;
    for round in 1..=10 {
        advance(29 * SECOND).await;
        let report = LeaseReport {
            progress: Some(progress(round)),
            ..sign(&lease)
        };
        let answer = shop.heartbeat(beat("w", [report])).await.unwrap();
        assert_eq!(answer.next_heartbeat, seconds(10));
        let expected = Directive {
            name: lease.name.clone(),
            lease_token: lease.lease_token.clone(),
            kind: Kind::Continue.into(),
            lease_remaining: seconds(30),
            ..Directive::default()
        };
        assert_eq!(answer.directives, [expected]);
        let shown = metadata(&shop.get(&lease.name).await);
        assert_eq!(shown.progress, Some(progress(round)));
    }
    let report = LeaseReport {
        metadata: Some(own_metadata(7)),
        ..sign(&lease)
    };
    shop.heartbeat(beat("w", [report])).await.unwrap();
    assert_eq!(shop.get(&lease.name).await.metadata, Some(own_metadata(7)));
}

// BEHAVIOUR §4: a sign of life is nothing that clients see.
#[tokio::test(start_paused = true)]
async fn a_renewal_without_news_changes_no_byte_that_clients_see() {
    let shop = Shop::open().await;
    for own in [false, true] {
        let request = CreateOperationRequest {
            metadata: own.then(|| own_metadata(1)),
            ..self_executed("w")
        };
        let lease = shop.create(request).await.unwrap().lease.unwrap();
        let name = lease.name.parse().unwrap();
        let before = shop.operations.get(&name).unwrap();
        for _ in 0..5 {
            advance(20 * SECOND).await;
            assert_eq!(shop.beat(&lease).await.kind(), Kind::Continue);
        }
        let after = shop.operations.get(&name).unwrap();
        assert_eq!(after.bytes(), before.bytes());
        assert_eq!(after.update_time(), before.update_time());
    }
}

// BEHAVIOUR §5
#[tokio::test]
async fn an_empty_heartbeat_is_fine() {
    let shop = Shop::open().await;
    let answer = shop.heartbeat(beat("w", [])).await.unwrap();
    assert_eq!(
        (answer.directives, answer.next_heartbeat),
        (Vec::new(), seconds(10))
    );
}

// worker.proto: HeartbeatResponse.next_heartbeat.
#[tokio::test]
async fn the_next_heartbeat_comes_after_a_third_of_the_shortest_lease_that_is_held() {
    let shop = Shop::open().await;
    let mut leases = Vec::new();
    for length in [60, 9, 3000, 3] {
        let request = CreateOperationRequest {
            lease_duration: seconds(length),
            ..self_executed("w")
        };
        leases.push(shop.create(request).await.unwrap().lease.unwrap());
    }
    for (some, expected) in [(&leases[..], 1), (&leases[0..3], 3), (&leases[2..3], 1000)] {
        let request = beat("w", some.iter().map(sign));
        assert_eq!(
            shop.heartbeat(request).await.unwrap().next_heartbeat,
            seconds(expected)
        );
    }
    shop.finish(&leases[3], Outcome::Response(text(""))).await;
    let request = beat("w", leases.iter().map(sign));
    let answer = shop.heartbeat(request).await.unwrap();
    assert_eq!(
        answer.next_heartbeat,
        seconds(3),
        "one that is lost does not count"
    );
}

// worker.proto: every report is answered, in the same order.
#[tokio::test]
async fn a_report_that_is_refused_takes_no_other_with_it() {
    let shop = Shop::open().await;
    let mut leases = Vec::new();
    for _ in 0..9 {
        leases.push(shop.hold("w").await);
    }
    let bad = Some(Any {
        type_url: "/".into(),
        value: Vec::new(),
    });
    let mut reports: Vec<LeaseReport> = leases.iter().map(sign).collect();
    reports[1].metadata.clone_from(&bad);
    reports[2].checkpoint = bad;
    reports[3].lease_token = vec![0; 16];
    reports[4].lease_token = Vec::new();
    reports[5].lease_token = vec![1, 2, 3];
    reports[6].name = "operations/unknown".into();
    reports[7].name = String::new();
    let answer = shop.heartbeat(beat("w", reports.clone())).await.unwrap();
    for (report, directive) in reports.iter().zip(&answer.directives) {
        assert_eq!(report.name, directive.name);
        assert_eq!(report.lease_token, directive.lease_token);
    }
    let lost = Kind::LeaseLost;
    let go_on = Kind::Continue;
    let expected = [go_on, go_on, go_on, lost, lost, lost, lost, lost, go_on];
    assert_eq!(kinds(&answer.directives), expected);
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
    for (directive, reason) in answer.directives.iter().zip(reasons) {
        let said = directive.error.is_some().then(|| why(directive));
        assert_eq!(said.as_ref().map(Problem::key), reason);
        let renewed = (directive.kind() == go_on).then_some(prost_types::Duration {
            seconds: 30,
            nanos: 0,
        });
        let about_30 = directive.lease_remaining.is_some();
        assert_eq!(about_30, renewed.is_some(), "what goes on was renewed");
    }
    assert_eq!(why(&answer.directives[1]).fields[0].0, "metadata");
    assert_eq!(why(&answer.directives[2]).fields[0].0, "checkpoint");
}

// worker.proto: what no client could show is not recorded.
#[tokio::test(start_paused = true)]
async fn a_progress_out_of_range_is_refused_and_does_not_cost_the_lease() {
    let shop = Shop::open().await;
    let lease = shop.hold("w").await;
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
        let report = LeaseReport {
            progress: Some(progress),
            ..sign(&lease)
        };
        let answer = shop.heartbeat(beat("w", [report])).await.unwrap();
        let told = &answer.directives[0];
        assert_eq!(
            (told.kind(), told.lease_remaining),
            (Kind::Continue, seconds(30))
        );
        assert_eq!(why(told).key(), (Code::InvalidArgument, "INVALID_PROGRESS"));
    }
    assert_eq!(metadata(&shop.get(&lease.name).await).progress, None);
}

// BEHAVIOUR §3: a watch tells of changes.
#[tokio::test(start_paused = true)]
async fn a_report_that_says_the_same_again_renews_the_lease_and_changes_nothing() {
    let shop = Shop::open().await;
    let lease = shop.hold("w").await;
    let report = || LeaseReport {
        progress: Some(progress(3)),
        checkpoint: Some(text("3")),
        ..sign(&lease)
    };
    shop.heartbeat(beat("w", [report()])).await.unwrap();
    let before = shop.get(&lease.name).await;
    for _ in 0..3 {
        advance(20 * SECOND).await;
        let answer = shop.heartbeat(beat("w", [report()])).await.unwrap();
        assert_eq!(answer.directives[0].lease_remaining, seconds(30));
        assert_eq!(shop.get(&lease.name).await, before);
    }
    let news = LeaseReport {
        progress: Some(progress(4)),
        ..report()
    };
    shop.heartbeat(beat("w", [news])).await.unwrap();
    assert_ne!(shop.get(&lease.name).await, before);
}

// worker.proto: the answer must fit into what clients take in.
#[tokio::test]
async fn a_heartbeat_with_more_than_1000_reports_is_refused() {
    let shop = Shop::open().await;
    let lease = shop.hold("w").await;
    let reports = |count| std::iter::repeat_n(sign(&lease), count);
    let answer = shop.heartbeat(beat("w", reports(1000))).await.unwrap();
    assert_eq!(answer.directives.len(), 1000);
    let refused = shop.heartbeat(beat("w", reports(1001))).await.unwrap_err();
    let key = (Code::InvalidArgument, "INVALID_REPORTS");
    assert_eq!(Problem::of(&refused).key(), key);
}

// worker.proto: Directive.error with another kind than LEASE_LOST.
#[tokio::test(start_paused = true)]
async fn a_report_that_is_too_large_does_not_cost_the_lease() {
    let limits = Limits {
        max_operation_bytes: 1000,
        ..Limits::default()
    };
    let shop = Shop::with(crate::support::operations().limits(limits)).await;
    let lease = shop.hold("w").await;
    let before = shop.get(&lease.name).await;
    for _ in 0..3 {
        advance(29 * SECOND).await;
        let report = LeaseReport {
            checkpoint: Some(text(&"x".repeat(1000))),
            progress: Some(progress(1)),
            ..sign(&lease)
        };
        let answer = shop.heartbeat(beat("w", [report])).await.unwrap();
        let directive = &answer.directives[0];
        assert_eq!(directive.kind(), Kind::Continue);
        assert_eq!(directive.lease_remaining, seconds(30));
        assert_eq!(why(directive).key(), (Code::ResourceExhausted, "TOO_LARGE"));
    }
    assert_eq!(shop.get(&lease.name).await, before);
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_heartbeat_tells_of_a_cancellation_and_how_much_grace_is_left() {
    let shop = Shop::open().await;
    for grace in [None, seconds(50)] {
        let request = CreateOperationRequest {
            cancel_grace: grace,
            ..self_executed("w")
        };
        let lease = shop.create(request).await.unwrap().lease.unwrap();
        shop.cancel(&lease.name).await;
        advance(20 * SECOND).await;
        // A deletion does not hide the cancellation.
        shop.delete(&lease.name).await;
        let told = shop.beat(&lease).await;
        assert_eq!(told.kind(), Kind::CancelRequested);
        assert_eq!(told.lease_remaining, seconds(30));
        assert_eq!(told.cancel_grace_remaining, grace.and(seconds(30)));
        assert_eq!(told.error, None);
    }
}

// BEHAVIOUR §3
#[tokio::test]
async fn a_heartbeat_tells_of_a_deletion_and_keeps_the_lease() {
    let shop = Shop::open().await;
    let lease = shop.hold("w").await;
    shop.delete(&lease.name).await;
    for _ in 0..3 {
        let told = shop.beat(&lease).await;
        assert_eq!((told.kind(), told.error), (Kind::OperationDeleted, None));
    }
    shop.finish(&lease, Outcome::Response(text("unseen"))).await;
    let told = shop.beat(&lease).await;
    assert_eq!(told.kind(), Kind::LeaseLost);
    assert_eq!(why(&told).key(), (Code::NotFound, "OPERATION_NOT_FOUND"));
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_is_told_with_the_reason() {
    let shop = Shop::open().await;
    let request = CreateOperationRequest {
        retry_policy: attempts(9),
        ..queued("q")
    };
    shop.add(request).await;
    let first = shop.one("q", "w").await;
    let lost = async |lease: &Lease, words: &str| {
        let told = shop.beat(lease).await;
        assert_eq!((told.kind(), told.lease_remaining), (Kind::LeaseLost, None));
        let why = why(&told);
        assert_eq!(why.key(), (Code::FailedPrecondition, "LEASE_LOST"));
        assert!(why.message.contains(words), "{}", why.message);
    };
    // At the very moment, whether or not somebody has looked.
    advance(30 * SECOND).await;
    lost(&first, "").await;
    let second = &shop.lease(poll(&["q"], "w", 60)).await.unwrap()[0];
    lost(&first, "another attempt").await;
    assert_eq!(shop.beat(second).await.kind(), Kind::Continue);
    shop.finish(second, release()).await;
    lost(second, "went back").await;
    let third = shop.one("q", "w").await;
    shop.finish(&third, retryable(14, "again")).await;
    lost(&third, "went back").await;
    let fourth = &shop.lease(poll(&["q"], "w", 60)).await.unwrap()[0];
    shop.finish(fourth, Outcome::Response(text(""))).await;
    let told = shop.beat(fourth).await;
    assert_eq!(
        (told.kind(), why(&told).reason.as_str()),
        (Kind::LeaseLost, "OPERATION_DONE")
    );
}

// worker.proto: HeartbeatResponse.directives.
#[tokio::test]
async fn when_the_server_shuts_down_every_heartbeat_ends_with_drain() {
    let shop = Shop::open().await;
    let lease = shop.hold("w").await;
    shop.operations.shutdown(Duration::ZERO).await;
    let answer = shop.heartbeat(beat("w", [sign(&lease)])).await.unwrap();
    assert_eq!(kinds(&answer.directives), [Kind::Continue, Kind::Drain]);
    assert_eq!(answer.directives[1].name, "");
    let answer = shop.heartbeat(beat("w", [])).await.unwrap();
    assert_eq!(kinds(&answer.directives), [Kind::Drain]);
}

// worker.proto: the id says who works; the token proves it.
#[tokio::test]
async fn whoever_has_the_token_may_renew_and_finish() {
    let shop = Shop::open().await;
    let lease = shop.hold("w").await;
    let answer = shop
        .heartbeat(beat("another", [sign(&lease)]))
        .await
        .unwrap();
    assert_eq!(kinds(&answer.directives), [Kind::Continue]);
}

// BEHAVIOUR §5: one call for a thousand leases is one call.
#[tokio::test]
async fn a_thousand_reports_in_one_heartbeat_are_answered_in_their_order() {
    let shop = Shop::open().await;
    for _ in 0..1000 {
        shop.queue("q").await;
    }
    let leases = shop
        .lease(crate::support::shop::look(&["q"], "w", 1000))
        .await
        .unwrap();
    for lease in leases.iter().step_by(7) {
        shop.cancel(&lease.name).await;
    }
    let reports = leases.iter().rev().map(|lease| LeaseReport {
        progress: Some(progress(1)),
        ..sign(lease)
    });
    let request = HeartbeatRequest {
        draining: true,
        ..beat("w", reports)
    };
    let answer = shop.heartbeat(request).await.unwrap();
    for (at, (lease, told)) in leases.iter().rev().zip(&answer.directives).enumerate() {
        let asked = (leases.len() - 1 - at).is_multiple_of(7);
        let expected = if asked {
            Kind::CancelRequested
        } else {
            Kind::Continue
        };
        assert_eq!((&told.name, told.kind()), (&lease.name, expected));
    }
    assert_eq!(answer.directives.len(), 1000);
}
