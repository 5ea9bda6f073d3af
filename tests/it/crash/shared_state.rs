//! State shared by all clients across restarts: expected operations, leases, and calls
//! to repeat.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use longrunning::proto::{
    google::longrunning::Operation,
    longrunning::v1::{CreateOperationRequest, FinishOperationRequest, Lease},
};
use parking_lot::Mutex;
use prost_types::Any;
use tokio::sync::watch;
use tonic::{Response, Status};

use crate::support::{
    expected_state::{Effect, ExpectedState, KEY_LABEL, KnownState, TrackedCall},
    persistent_server::RpcError,
    rng::TestRng,
};

/// What the clients know. Outlives the servers.
#[derive(Default)]
pub(super) struct CrashTestState {
    pub(super) expected: Mutex<ExpectedState>,
    pub(super) leases: Mutex<Vec<WorkerLease>>,
    /// Acknowledged creations with a request id.
    pub(super) created_requests: Mutex<Vec<CreatedRequest>>,
    /// Creations without a response, with the name if the client chose it.
    pub(super) unanswered_creates: Mutex<Vec<(CreateOperationRequest, Option<String>)>>,
    /// Finishes without a response.
    pub(super) unanswered_finishes: Mutex<Vec<(FinishOperationRequest, Effect)>>,
    pub(super) checkpoints: Mutex<BTreeMap<String, Checkpoints>>,
    /// Names in the order of creation, by client number.
    pub(super) creation_order: Mutex<BTreeMap<usize, Vec<String>>>,
    next_key: AtomicU64,
    last_units: AtomicI64,
    pub(super) response_count: watch::Sender<u64>,
}

/// An acknowledged creation.
#[derive(Clone)]
pub(super) struct CreatedRequest {
    pub(super) request: CreateOperationRequest,
    pub(super) name: String,
    pub(super) lease_token: Option<Vec<u8>>,
}

/// A lease that a client holds, also across restarts.
#[derive(Clone, Debug)]
pub(super) struct WorkerLease {
    pub(super) name: String,
    pub(super) lease_token: Vec<u8>,
    /// Whether progress is reported as custom metadata.
    pub(super) has_custom_metadata: bool,
    /// The queue of the operation; empty if it is self-executed.
    pub(super) queue: String,
}

/// The checkpoints that an operation may have.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    pub(super) acknowledged: Option<Any>,
    pub(super) unacknowledged: Vec<Any>,
}

// === impl CrashTestState ===

impl CrashTestState {
    pub(super) fn new_key(&self) -> String {
        format!("k{}", self.next_key.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns a higher number of units than any reported before.
    pub(super) fn next_units(&self) -> i64 {
        self.last_units.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Makes a call with an effect and records the result.
    pub(super) async fn call<T>(
        &self,
        name: &str,
        effect: Effect,
        response: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        let pending_call: TrackedCall = self.expected.lock().begin_call(name, effect);
        match response.await.map_err(RpcError::from) {
            Ok(response) => {
                self.expected.lock().acknowledge(&pending_call);
                self.count_response();
                Ok(response.into_inner())
            }
            Err(RpcError::Rejected(code, reason)) => {
                self.expected.lock().reject(&pending_call);
                Err(RpcError::Rejected(code, reason))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn count_response(&self) {
        self.response_count.send_modify(|count| *count += 1);
    }

    pub(super) fn known_state(&self, name: &str) -> KnownState {
        self.expected.lock().known(name)
    }

    pub(super) fn observe(&self, before: &KnownState, operation: &Operation) {
        let mut expected = self.expected.lock();
        expected.observe(&operation.name, before, Some(operation));
    }

    /// Returns the name of a random existing operation.
    pub(super) fn choose_existing(&self, rng: &mut TestRng) -> Option<String> {
        self.expected.lock().choose_existing(rng).map(str::to_owned)
    }

    /// Records a granted lease; panics unless its input and checkpoint are the stored ones.
    pub(super) fn check_lease(&self, lease: &Lease) -> WorkerLease {
        let key = &lease.labels[KEY_LABEL];
        let is_same = lease.input == input(key);
        assert!(
            is_same,
            "{}: expected the input of the creation",
            lease.name
        );
        let checkpoints = self.checkpoints.lock();
        let none = Checkpoints::default();
        let expected = checkpoints.get(&lease.name).unwrap_or(&none);
        let is_known = lease.checkpoint == expected.acknowledged
            || (lease.checkpoint.as_ref())
                .is_some_and(|checkpoint| expected.unacknowledged.contains(checkpoint));
        assert!(
            is_known,
            "{}: expected a checkpoint of {expected:?} in {lease:?}",
            lease.name
        );
        self.expected
            .lock()
            .record_lease(&lease.name, lease.attempt, Some(key));
        WorkerLease::from(lease.clone())
    }
}

// === impl WorkerLease ===

impl From<Lease> for WorkerLease {
    fn from(lease: Lease) -> Self {
        Self {
            has_custom_metadata: false,
            queue: lease.queue,
            name: lease.name,
            lease_token: lease.lease_token,
        }
    }
}

/// Returns the priority of a queued operation, derived from its key.
pub(super) fn priority(key: &str) -> i32 {
    i32::from(key.as_bytes()[key.len() - 1] % 3) - 1
}

/// Returns the input of a queued operation, derived from its key.
pub(super) fn input(key: &str) -> Option<Any> {
    const SIZES: [usize; 7] = [0, 20, 980, 1100, 5000, 60_000, 300_000];
    let seed = key
        .bytes()
        .fold(7, |seed, byte| seed * 31 + u64::from(byte));
    let mut rng = TestRng::new(seed);
    let size_count = if rng.one_in(40) { SIZES.len() } else { 6 };
    let size = SIZES[..size_count][usize::try_from(rng.next_u64() % size_count as u64).unwrap()];
    // Fast to generate and unique per key.
    let mut value = rng.next_u64().to_le_bytes().repeat(size / 8);
    value.extend_from_slice(key.as_bytes());
    (size != 0).then(|| Any {
        type_url: "type.googleapis.com/acme.v1.Input".into(),
        value,
    })
}
