//! The metric handles of one server, passed to the code that records them.
//! There is no global registry.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelValue,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::proto::{google::rpc::Code, longrunning::v1::operation_metadata::State};

/// The metrics of one server. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    operations: Family<Label<&'static str>, Gauge>,
    by_state: [Gauge; 6],
    deleted_operations: Family<Label<&'static str>, Gauge>,
    pub(crate) stored_bytes: Gauge,
    pub(crate) waiters: Gauge,
    /// 1 while the storage is available, else 0. Set by the code that serves the metrics.
    pub(crate) store_writable: Gauge,
    pub(crate) replication_delay: Histogram,
    /// In seconds. Set by the code that serves the metrics.
    pub(crate) replication_lag: Gauge<f64, AtomicU64>,
    queue_depth: Family<Label<String>, Gauge>,
    attempts: Family<(Label<String>, Label<AttemptOutcome>), Counter>,
    attempt_duration: Family<Label<String>, Histogram>,
    grpc_requests: Family<[(&'static str, &'static str); 2], Counter>,
    grpc_request_duration: Family<Label<&'static str>, Histogram>,
    http_requests: Family<(Label<&'static str>, Label<u32>), Counter>,
    http_request_duration: Family<Label<&'static str>, Histogram>,
}

/// The request counters of one RPC method, indexed by status code.
#[derive(Clone, Debug)]
pub(crate) struct RpcMetrics {
    by_code: [Counter; 17],
    duration: Histogram,
}

/// Outcome of an attempt; the value of the label `outcome`.
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

/// The name and the value of a label.
type Label<V> = [(&'static str, V); 1];

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
        let operations: Family<Label<&'static str>, Gauge> = Family::default();
        let mut by_state: [Gauge; 6] = Default::default();
        for state in STATES {
            let label = [("state", state.as_str_name())];
            by_state[state as usize] = operations.get_or_create_owned(&label);
        }
        let deleted_operations: Family<Label<&'static str>, Gauge> = Family::default();
        for state in [State::Pending, State::Running] {
            let label = [("state", state.as_str_name())];
            deleted_operations.get_or_create_owned(&label);
        }
        let store_writable = Gauge::default();
        store_writable.set(1);
        Self {
            operations,
            by_state,
            deleted_operations,
            stored_bytes: Gauge::default(),
            waiters: Gauge::default(),
            store_writable,
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
    /// Registers every metric in `registry`, with the prefix `longrunning_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("longrunning");
        registry.register(
            "operations",
            "Operations in the memory of this server, by state",
            self.operations.clone(),
        );
        registry.register(
            "deleted_operations",
            "Operations that were deleted and are still queued or running, by state; included in operations",
            self.deleted_operations.clone(),
        );
        registry.register(
            "stored_bytes",
            "Bytes of encoded operations, inputs and labels in the memory of this server",
            self.stored_bytes.clone(),
        );
        registry.register(
            "open_waits",
            "Open WaitOperation calls and watches",
            self.waiters.clone(),
        );
        registry.register(
            "store_writable",
            "1 if the storage is available, 0 if writes fail or the change log cannot be read",
            self.store_writable.clone(),
        );
        registry.register(
            "replication_delay_seconds",
            "Time from the commit of the first change of a batch, of any server, until the batch is applied here",
            self.replication_delay.clone(),
        );
        registry.register(
            "replication_lag_seconds",
            "Time since this server was last in sync with the shared database",
            self.replication_lag.clone(),
        );
        registry.register(
            "queue_depth",
            "Pending operations, delayed ones included, by queue; servers that share a database each export all of them",
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

    /// Returns the gauge of operations in `state`.
    pub(crate) fn operations(&self, state: State) -> &Gauge {
        &self.by_state[state as usize]
    }

    /// Returns the gauge of deleted operations in `state`.
    pub(crate) fn deleted_operations(&self, state: State) -> Gauge {
        self.deleted_operations
            .get_or_create_owned(&[("state", state.as_str_name())])
    }

    /// Returns the gauge of operations that wait in `queue`; creates the series if needed.
    pub(crate) fn queue_depth(&self, queue: &str) -> Gauge {
        self.queue_depth
            .get_or_create_owned(&[("queue", queue.to_owned())])
    }

    /// Removes the `queue_depth` series of `queue`.
    pub(crate) fn remove_queue(&self, queue: &str) {
        self.queue_depth.remove(&[("queue", queue.to_owned())]);
    }

    /// Records one finished attempt and its duration.
    pub(crate) fn record_attempt(&self, queue: &str, outcome: AttemptOutcome, seconds: f64) {
        let queue = [("queue", queue.to_owned())];
        let attempts = (queue.clone(), [("outcome", outcome)]);
        self.attempts.get_or_create(&attempts).inc();
        self.attempt_duration.get_or_create(&queue).observe(seconds);
    }

    /// Records one HTTP/JSON response and the time from its request.
    #[cfg_attr(
        not(feature = "gateway"),
        expect(dead_code, reason = "only the gateway serves HTTP/JSON")
    )]
    pub(crate) fn record_http_request(&self, method: &'static str, code: u16, seconds: f64) {
        let (method, code) = ([("method", method)], [("code", u32::from(code))]);
        self.http_requests.get_or_create(&(method, code)).inc();
        let duration = self.http_request_duration.get_or_create(&method);
        duration.observe(seconds);
    }

    /// Returns the counters of `method`, so that a request needs no lookup by label.
    pub(crate) fn rpc_metrics(&self, method: &'static str) -> RpcMetrics {
        let by_code = std::array::from_fn(|code| {
            let code = Code::try_from(i32::try_from(code).unwrap_or(2)).unwrap_or(Code::Unknown);
            self.grpc_requests
                .get_or_create_owned(&[("method", method), ("code", code.as_str_name())])
        });
        RpcMetrics {
            by_code,
            duration: self
                .grpc_request_duration
                .get_or_create_owned(&[("method", method)]),
        }
    }
}

// === impl RpcMetrics ===

impl RpcMetrics {
    /// Records one response. A `code` outside 0 to 16 counts as UNKNOWN.
    pub(crate) fn observe(&self, code: usize, seconds: f64) {
        self.by_code.get(code).unwrap_or(&self.by_code[2]).inc();
        self.duration.observe(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_writable_is_1_before_the_first_scrape() {
        let mut registry = Registry::default();
        Metrics::default().register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("longrunning_store_writable 1\n"), "{text}");
    }
}
