//! Plain metric handles, passed down to those who count. Registering and
//! serving them is for whoever composes; nothing here is global.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::proto::{google::rpc::Code, longrunning::v1::operation_metadata::State};

/// The metrics of one server. Clones share the values.
#[derive(Clone, Debug)]
pub struct Metrics {
    operations: Family<StateLabel, Gauge>,
    by_state: [Gauge; 6],
    pub(crate) stored_bytes: Gauge,
    pub(crate) waiters: Gauge,
    /// Told by whoever serves the metrics.
    pub(crate) store_writable: Gauge,
    pub(crate) replication_delay: Histogram,
    /// Told by whoever serves the metrics.
    pub(crate) replication_lag: Gauge<f64, AtomicU64>,
    queue_depth: Family<QueueLabel, Gauge>,
    attempts: Family<AttemptLabel, Counter>,
    attempt_duration: Family<QueueLabel, Histogram>,
    grpc_requests: Family<RpcLabel, Counter>,
    grpc_request_duration: Family<MethodLabel, Histogram>,
    http_requests: Family<HttpLabel, Counter>,
    http_request_duration: Family<MethodLabel, Histogram>,
}

/// The counters of one RPC method, looked up once.
#[derive(Clone, Debug)]
pub(crate) struct RpcMetrics {
    by_code: [Counter; 17],
    duration: Histogram,
}

/// How an attempt ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the values of the label")]
pub(crate) enum AttemptOutcome {
    succeeded,
    failed,
    cancelled,
    retried,
    panicked,
    released,
    lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabel {
    queue: String,
    outcome: AttemptOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabel {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabel {
    method: &'static str,
    code: u32,
}

const STATES: [State; 5] = [
    State::Pending,
    State::Running,
    State::Succeeded,
    State::Failed,
    State::Cancelled,
];

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        let operations: Family<StateLabel, Gauge> = Family::default();
        let mut by_state: [Gauge; 6] = Default::default();
        for state in STATES {
            let label = StateLabel {
                state: state.as_str_name(),
            };
            by_state[state as usize] = operations.get_or_create_owned(&label);
        }
        Self {
            operations,
            by_state,
            stored_bytes: Gauge::default(),
            waiters: Gauge::default(),
            store_writable: Gauge::default(),
            replication_delay: request_duration_histogram(),
            replication_lag: Gauge::default(),
            queue_depth: Family::default(),
            attempts: Family::default(),
            attempt_duration: Family::new_with_constructor(|| {
                Histogram::new([0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0])
            }),
            grpc_requests: Family::default(),
            grpc_request_duration: Family::new_with_constructor(request_duration_histogram),
            http_requests: Family::default(),
            http_request_duration: Family::new_with_constructor(request_duration_histogram),
        }
    }
}

fn request_duration_histogram() -> Histogram {
    Histogram::new([0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0])
}

impl Metrics {
    /// Puts every metric into a registry, with the prefix `longrunning_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("longrunning");
        registry.register(
            "operations",
            "Operations in the store, by state",
            self.operations.clone(),
        );
        registry.register(
            "stored_bytes",
            "Bytes of encoded operations, inputs and labels",
            self.stored_bytes.clone(),
        );
        registry.register(
            "open_waits",
            "Open WaitOperation calls and watches",
            self.waiters.clone(),
        );
        registry.register(
            "store_writable",
            "Whether the store accepts writes (1) or rejects them (0)",
            self.store_writable.clone(),
        );
        registry.register(
            "replication_delay_seconds",
            "Time from the first change of a batch on another server until it is visible here",
            self.replication_delay.clone(),
        );
        registry.register(
            "replication_lag_seconds",
            "Time since this server was last in sync with the shared database",
            self.replication_lag.clone(),
        );
        registry.register(
            "queue_depth",
            "Operations waiting for a worker, by queue",
            self.queue_depth.clone(),
        );
        registry.register(
            "attempts",
            "Finished attempts of in-process workers, by queue and outcome",
            self.attempts.clone(),
        );
        registry.register(
            "attempt_duration_seconds",
            "Duration of attempts of in-process workers, by queue",
            self.attempt_duration.clone(),
        );
        registry.register(
            "grpc_requests",
            "Completed gRPC requests, by method and status code; streaming watches are counted when they start",
            self.grpc_requests.clone(),
        );
        registry.register(
            "grpc_request_duration_seconds",
            "Time from gRPC request to response, by method",
            self.grpc_request_duration.clone(),
        );
        registry.register(
            "http_requests",
            "Completed HTTP/JSON requests, by RPC method and HTTP status code; streaming watches are counted when they start",
            self.http_requests.clone(),
        );
        registry.register(
            "http_request_duration_seconds",
            "Time from HTTP/JSON request to response, by RPC method",
            self.http_request_duration.clone(),
        );
    }

    /// The number of operations in a state.
    pub(crate) fn operations(&self, state: State) -> &Gauge {
        &self.by_state[state as usize]
    }

    pub(crate) fn queue_depth(&self, queue: &str) -> Gauge {
        self.queue_depth.get_or_create_owned(&QueueLabel {
            queue: queue.to_owned(),
        })
    }

    /// Drops the series of a queue that is gone.
    pub(crate) fn remove_queue(&self, queue: &str) {
        self.queue_depth.remove(&QueueLabel {
            queue: queue.to_owned(),
        });
    }

    /// Counts the end of an attempt.
    pub(crate) fn record_attempt(&self, queue: &str, outcome: AttemptOutcome, seconds: f64) {
        let queue = queue.to_owned();
        self.attempts
            .get_or_create(&AttemptLabel {
                queue: queue.clone(),
                outcome,
            })
            .inc();
        self.attempt_duration
            .get_or_create(&QueueLabel { queue })
            .observe(seconds);
    }

    /// Counts an answer over HTTP.
    #[cfg_attr(
        not(feature = "gateway"),
        expect(dead_code, reason = "only the gateway answers over HTTP")
    )]
    pub(crate) fn record_http_request(&self, method: &'static str, code: u16, seconds: f64) {
        let code = u32::from(code);
        self.http_requests
            .get_or_create(&HttpLabel { method, code })
            .inc();
        self.http_request_duration
            .get_or_create(&MethodLabel { method })
            .observe(seconds);
    }

    pub(crate) fn rpc_metrics(&self, method: &'static str) -> RpcMetrics {
        let by_code = std::array::from_fn(|code| {
            let code = Code::try_from(i32::try_from(code).unwrap_or(2)).unwrap_or(Code::Unknown);
            self.grpc_requests.get_or_create_owned(&RpcLabel {
                method,
                code: code.as_str_name(),
            })
        });
        RpcMetrics {
            by_code,
            duration: self
                .grpc_request_duration
                .get_or_create_owned(&MethodLabel { method }),
        }
    }
}

// === impl RpcMetrics ===

impl RpcMetrics {
    /// Counts one answer.
    pub(crate) fn observe(&self, code: usize, seconds: f64) {
        self.by_code.get(code).unwrap_or(&self.by_code[2]).inc();
        self.duration.observe(seconds);
    }
}
