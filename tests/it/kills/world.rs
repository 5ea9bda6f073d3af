//! What all clients of a server that is killed share: the ledger, the leases
//! that they hold, and the calls that they will make again.

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
    dice::Dice,
    ledger::{Effect, KEY, Known, Ledger, Ticket},
    stored::Fail,
};

/// What the clients know. It outlives the servers.
#[derive(Default)]
pub(super) struct World {
    pub(super) ledger: Mutex<Ledger>,
    pub(super) held: Mutex<Vec<Held>>,
    /// Creations with a request id whose answer came, and their names.
    pub(super) requests: Mutex<Vec<Requested>>,
    /// Calls without an answer, to be made again.
    pub(super) creations: Mutex<Vec<(CreateOperationRequest, Option<String>)>>,
    pub(super) ends: Mutex<Vec<(FinishOperationRequest, Effect)>>,
    /// The checkpoint that was acknowledged, and those of which nobody knows.
    pub(super) checkpoints: Mutex<BTreeMap<String, Checkpoints>>,
    /// Names in the order in which each creator got them.
    pub(super) ages: Mutex<BTreeMap<u64, Vec<String>>>,
    keys: AtomicU64,
    units: AtomicI64,
    pub(super) answers: watch::Sender<u64>,
}

/// A creation that was answered.
#[derive(Clone)]
pub(super) struct Requested {
    pub(super) request: CreateOperationRequest,
    pub(super) name: String,
    pub(super) token: Option<Vec<u8>>,
}

/// A lease that a client holds, over the death of a server too.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) token: Vec<u8>,
    /// Whether its progress is metadata of its own type.
    pub(super) is_own: bool,
    /// Where it goes back to; empty if its creator executes it.
    pub(super) queue: String,
}

#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    pub(super) kept: Option<Any>,
    pub(super) lost: Vec<Any>,
}

// === impl World ===

impl World {
    pub(super) fn new_key(&self) -> String {
        format!("k{}", self.keys.fetch_add(1, Ordering::Relaxed))
    }

    /// More units than anybody has reported.
    pub(super) fn new_units(&self) -> i64 {
        self.units.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Makes a call that has an effect, and notes what comes of it.
    pub(super) async fn call<T>(
        &self,
        name: &str,
        effect: Effect,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Fail> {
        let ticket: Ticket = self.ledger.lock().begin(name, effect);
        match answer.await.map_err(Fail::from) {
            Ok(answer) => {
                self.ledger.lock().acknowledged(&ticket);
                self.answered();
                Ok(answer.into_inner())
            }
            Err(Fail::Refused(code, reason)) => {
                self.ledger.lock().refused(&ticket);
                Err(Fail::Refused(code, reason))
            }
            Err(lost) => Err(lost),
        }
    }

    pub(super) fn answered(&self) {
        self.answers.send_modify(|answers| *answers += 1);
    }

    pub(super) fn known(&self, name: &str) -> Known {
        self.ledger.lock().known(name)
    }

    pub(super) fn saw(&self, before: &Known, operation: &Operation) {
        let mut ledger = self.ledger.lock();
        ledger.saw(&operation.name, before, Some(operation));
    }

    /// The name of an operation that is there.
    pub(super) fn any(&self, dice: &mut Dice) -> Option<String> {
        self.ledger.lock().any(dice).map(str::to_owned)
    }

    /// A lease came: everything that it carries is what was kept.
    pub(super) fn check_lease(&self, lease: &Lease) -> Held {
        let key = &lease.labels[KEY];
        let is_same = lease.input == input(key);
        assert!(is_same, "{}: the input is another one", lease.name);
        let checkpoints = self.checkpoints.lock();
        let none = Checkpoints::default();
        let expected = checkpoints.get(&lease.name).unwrap_or(&none);
        let is_known = lease.checkpoint == expected.kept
            || (lease.checkpoint.as_ref()).is_some_and(|found| expected.lost.contains(found));
        assert!(is_known, "{}: {expected:?} {lease:?}", lease.name);
        self.ledger.lock().claimed(&lease.name, lease.attempt);
        Held::from(lease.clone())
    }
}

// === impl Held ===

impl From<Lease> for Held {
    fn from(lease: Lease) -> Self {
        Self {
            is_own: false,
            queue: lease.queue,
            name: lease.name,
            token: lease.lease_token,
        }
    }
}

/// The priority of a queued operation, which its key decides.
pub(super) fn priority(key: &str) -> i32 {
    i32::from(key.as_bytes()[key.len() - 1] % 3) - 1
}

/// What a queued operation is created with, which its key decides too.
pub(super) fn input(key: &str) -> Option<Any> {
    const SIZES: [usize; 7] = [0, 20, 980, 1100, 5000, 60_000, 300_000];
    let seed = key
        .bytes()
        .fold(7, |seed, byte| seed * 31 + u64::from(byte));
    let mut dice = Dice::new(seed);
    let most = if dice.once_in(40) { SIZES.len() } else { 6 };
    let size = SIZES[..most][usize::try_from(dice.next() % most as u64).unwrap()];
    // Quick to make, and unlike any other.
    let mut value = dice.next().to_le_bytes().repeat(size / 8);
    value.extend_from_slice(key.as_bytes());
    (size != 0).then(|| Any {
        type_url: "type.googleapis.com/acme.v1.Input".into(),
        value,
    })
}
