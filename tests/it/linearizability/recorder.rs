//! State shared by all clients, and the history of their calls.

use std::{collections::HashMap, sync::Arc, time::Duration};

use longrunning::proto::{
    google::{
        longrunning::{Operation, operation},
        rpc::Code,
    },
    longrunning::v1::{
        CreateOperationRequest, RetryPolicy,
        create_operation_request::{Execution, Queued},
        operation_metadata::State,
    },
};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;

use super::{
    cluster::{ReplicaProcess, ServerCluster},
    events::{
        Call, CallResponse, FinishRequest, Invocation, NEVER_RETURNED, NameId, Nanos,
        OperationSnapshot, ReadMode, SnapshotPhase, TerminalOutcome, TokenId,
    },
};
use crate::support::{decode_metadata, error_reason, harness::max_attempts};

/// The label that contains the key of an operation.
pub(super) const KEY_LABEL: &str = "key";
pub(super) const QUEUE: &str = "jobs";

const ID_COUNT: u64 = 4;
const REQUEST_ID_COUNT: u64 = 3;

/// The identity for which a separate history is recorded and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum HistoryKey {
    /// A client-chosen operation id.
    Id(u64),
    /// A request id, under names chosen by the server.
    Request(u64),
}

/// State shared by all clients.
pub(super) struct Recorder {
    pub(super) cluster: Arc<ServerCluster>,
    pub(super) read_mode: ReadMode,
    pub(super) lease_duration: Nanos,
    pub(super) record: Mutex<RecordedHistory>,
    pub(super) is_stopped: watch::Sender<bool>,
}

#[derive(Default)]
pub(super) struct RecordedHistory {
    pub(super) calls: Vec<(HistoryKey, Call)>,
    pub(super) names: HashMap<String, (HistoryKey, NameId)>,
    pub(super) names_by_key: HashMap<HistoryKey, Vec<String>>,
    pub(super) leases: Vec<ObservedLease>,
    pub(super) last_token: TokenId,
    pub(super) last_number: i64,
}

/// A granted lease. Clients share leases.
#[derive(Clone, Debug)]
pub(super) struct ObservedLease {
    pub(super) name: String,
    pub(super) token: TokenId,
    pub(super) lease_token: Vec<u8>,
    /// The last finish request without a response.
    pub(super) unconfirmed_finish: Option<FinishRequest>,
}

/// A call in progress.
pub(super) struct PendingInvocation {
    pub(super) invoked_at: Nanos,
    pub(super) process: usize,
    pub(super) process_started_at: Nanos,
}

// === impl HistoryKey ===

impl HistoryKey {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let requests = (0..REQUEST_ID_COUNT).map(Self::Request);
        (0..ID_COUNT).map(Self::Id).chain(requests)
    }

    pub(super) fn has_client_id(self) -> bool {
        matches!(self, Self::Id(_))
    }

    /// Returns the limit of lost workers, or `None` if it is never reached.
    pub(super) fn max_worker_losses(self) -> Option<u32> {
        self.max_attempts().map(|_| 2)
    }

    /// Returns the limit of failed attempts, or `None` if it is never reached.
    pub(super) fn max_attempts(self) -> Option<u32> {
        match self {
            Self::Id(0) | Self::Request(0) => Some(3),
            Self::Id(_) | Self::Request(_) => None,
        }
    }

    pub(super) fn label(self) -> String {
        match self {
            Self::Id(number) => format!("id-{number}"),
            Self::Request(number) => format!("request-{number}"),
        }
    }

    pub(super) fn from_label(label: &str) -> Option<Self> {
        Self::all().find(|key| key.label() == label)
    }

    pub(super) fn create_request(self) -> CreateOperationRequest {
        let mut request = CreateOperationRequest {
            labels: [(KEY_LABEL.to_owned(), self.label())].into(),
            execution: Some(Execution::Queued(Queued {
                queue: QUEUE.to_owned(),
                ..Queued::default()
            })),
            retry_policy: max_attempts(self.max_attempts().map_or(1_000_000, u32::cast_signed))
                .map(|policy| RetryPolicy {
                    initial_backoff: Some(Duration::from_millis(10).try_into().unwrap()),
                    max_backoff: Some(Duration::from_millis(10).try_into().unwrap()),
                    max_worker_losses: Some(
                        self.max_worker_losses().map_or(i32::MAX, u32::cast_signed),
                    ),
                    ..policy
                }),
            ..CreateOperationRequest::default()
        };
        match self {
            Self::Id(_) => request.operation_id = self.label(),
            Self::Request(_) => request.request_id = self.label(),
        }
        request
    }
}

// === impl Recorder ===

impl Recorder {
    pub(super) fn new(
        cluster: Arc<ServerCluster>,
        read_mode: ReadMode,
        lease_duration: Nanos,
    ) -> Self {
        Self {
            cluster,
            read_mode,
            lease_duration,
            record: Mutex::default(),
            is_stopped: watch::Sender::new(false),
        }
    }

    /// Makes clients stop after their current call.
    pub(super) fn stop_clients(&self) {
        self.is_stopped.send_replace(true);
    }

    /// Returns the history of each key, in order of invocation.
    pub(super) fn histories(&self) -> Vec<(HistoryKey, Vec<Call>)> {
        let record = self.record.lock();
        let history_of = |key| {
            let calls = record.calls.iter().filter(|(call_key, _)| *call_key == key);
            let mut calls: Vec<Call> = calls.map(|(_, call)| call.clone()).collect();
            calls.sort_by_key(|call| call.invoked_at);
            (key, calls)
        };
        HistoryKey::all().map(history_of).collect()
    }

    /// Returns all names observed so far.
    pub(super) fn names(&self) -> Vec<String> {
        self.record.lock().names.keys().cloned().collect()
    }

    /// Registers the name of an operation that no response may have contained.
    pub(super) fn record_operation(&self, operation: &longrunning::Operation) {
        let key = operation
            .labels()
            .get(KEY_LABEL)
            .and_then(HistoryKey::from_label);
        self.name_id(key.expect("expected a key label"), operation.name());
    }

    /// Records the final state of the database as a linearizable read.
    pub(super) fn record_final_read(
        &self,
        name: &str,
        invoked_at: Nanos,
        operation: Option<&Operation>,
    ) {
        let pending = PendingInvocation {
            invoked_at,
            process: 0,
            process_started_at: invoked_at,
        };
        let (key, number) = self.lookup_name(name);
        let response = operation.map_or(CallResponse::NotFound, |operation| {
            CallResponse::Snapshot(snapshot(operation))
        });
        self.record_call(
            &pending,
            key,
            Invocation::Get(number, ReadMode::Linearizable),
            response,
        );
    }

    pub(super) fn begin_call(&self, process: &ReplicaProcess) -> PendingInvocation {
        PendingInvocation {
            invoked_at: self.cluster.now(),
            process: process.number,
            process_started_at: process.started_at,
        }
    }

    pub(super) fn record_call(
        &self,
        pending: &PendingInvocation,
        key: HistoryKey,
        invocation: Invocation,
        response: CallResponse,
    ) {
        let returned_at = match response {
            CallResponse::Unknown => NEVER_RETURNED,
            _ => self.cluster.now(),
        };
        let call = Call {
            invoked_at: pending.invoked_at,
            returned_at,
            process: pending.process,
            process_started_at: pending.process_started_at,
            invocation,
            response,
        };
        self.record.lock().calls.push((key, call));
    }

    /// Returns the number of a name, and registers a new one. A client id has only number 0.
    pub(super) fn name_id(&self, key: HistoryKey, name: &str) -> NameId {
        let mut record = self.record.lock();
        if let Some((_, number)) = record.names.get(name) {
            return *number;
        }
        let latest = record.names_by_key.entry(key).or_default();
        latest.push(name.to_owned());
        let number = latest.len() - 1;
        record.names.insert(name.to_owned(), (key, number));
        number
    }

    pub(super) fn lookup_name(&self, name: &str) -> (HistoryKey, NameId) {
        self.record.lock().names[name]
    }
}

/// Converts an operation as returned to clients.
pub(super) fn snapshot(operation: &Operation) -> OperationSnapshot {
    let metadata = decode_metadata(operation);
    let phase = match (&operation.result, metadata.state()) {
        (None, State::Pending) => SnapshotPhase::Pending,
        (None, State::Running) => SnapshotPhase::Running,
        (Some(operation::Result::Response(any)), State::Succeeded) => {
            let number = String::decode(any.value.as_slice()).unwrap();
            SnapshotPhase::Done(TerminalOutcome::Response(number.parse().unwrap()))
        }
        (Some(operation::Result::Error(error)), State::Cancelled) => {
            assert_eq!(error.code, Code::Cancelled as i32);
            SnapshotPhase::Done(TerminalOutcome::Cancelled)
        }
        (Some(operation::Result::Error(error)), State::Failed) if error.details.is_empty() => {
            SnapshotPhase::Done(TerminalOutcome::Failure(error.message.parse().unwrap()))
        }
        (Some(operation::Result::Error(error)), State::Failed) => {
            assert_eq!(error_reason(error), "WORKER_LOST");
            SnapshotPhase::Done(TerminalOutcome::WorkerLost)
        }
        _ => panic!("expected a result that matches the state: {operation:?}"),
    };
    OperationSnapshot {
        phase,
        attempt: metadata.attempt.try_into().unwrap(),
        is_cancel_requested: metadata.cancel_requested,
        units: metadata.progress.map_or(0, |progress| progress.done_units),
    }
}
