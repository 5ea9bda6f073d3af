//! What all clients know, and the record of what they asked and were told.

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
    calls::{Answer, Ask, Call, End, NEVER, Name, Outcome, Reads, Shown, Stage, Time, Token},
    replicas::{Process, Replicas},
};
use crate::support::{metadata, reason, shop::attempts};

/// The label by which operations are told apart, and the queue of all.
pub(super) const KEY: &str = "key";
pub(super) const QUEUE: &str = "jobs";

/// How many ids there are, and how many requests.
const IDS: u64 = 4;
const REQUESTS: u64 = 3;

/// What is at stake for one id or one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Id(u64),
    Request(u64),
}

/// What all clients share.
pub(super) struct World {
    pub(super) replicas: Arc<Replicas>,
    pub(super) reads: Reads,
    pub(super) lease: Time,
    pub(super) record: Mutex<Record>,
    pub(super) is_over: watch::Sender<bool>,
}

#[derive(Default)]
pub(super) struct Record {
    pub(super) calls: Vec<(Key, Call)>,
    pub(super) names: HashMap<String, (Key, Name)>,
    pub(super) latest: HashMap<Key, Vec<String>>,
    pub(super) leases: Vec<Held>,
    pub(super) tokens: Token,
    pub(super) numbers: i64,
}

/// A lease that somebody got; others may use it too.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) token: Token,
    pub(super) bytes: Vec<u8>,
    /// How its holder said it ended, when the answer was lost.
    pub(super) end: Option<End>,
}

/// A call that is under way.
pub(super) struct Begun {
    pub(super) at: Time,
    pub(super) process: usize,
    pub(super) since: Time,
}

// === impl Key ===

impl Key {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let requests = (0..REQUESTS).map(Self::Request);
        (0..IDS).map(Self::Id).chain(requests)
    }

    pub(super) fn is_named(self) -> bool {
        matches!(self, Self::Id(_))
    }

    /// Some lose their work for ever.
    pub(super) fn attempts(self) -> Option<u32> {
        match self {
            Self::Id(0) | Self::Request(0) => Some(3),
            Self::Id(_) | Self::Request(_) => None,
        }
    }

    pub(super) fn text(self) -> String {
        match self {
            Self::Id(number) => format!("id-{number}"),
            Self::Request(number) => format!("request-{number}"),
        }
    }

    pub(super) fn of(text: &str) -> Option<Self> {
        Self::all().find(|key| key.text() == text)
    }

    pub(super) fn request(self) -> CreateOperationRequest {
        let mut request = CreateOperationRequest {
            labels: [(KEY.to_owned(), self.text())].into(),
            execution: Some(Execution::Queued(Queued {
                queue: QUEUE.to_owned(),
                ..Queued::default()
            })),
            retry_policy: attempts(self.attempts().map_or(1_000_000, u32::cast_signed)).map(
                |policy| RetryPolicy {
                    initial_backoff: Some(Duration::from_millis(10).try_into().unwrap()),
                    max_backoff: Some(Duration::from_millis(10).try_into().unwrap()),
                    ..policy
                },
            ),
            ..CreateOperationRequest::default()
        };
        match self {
            Self::Id(_) => request.operation_id = self.text(),
            Self::Request(_) => request.request_id = self.text(),
        }
        request
    }
}

// === impl World ===

impl World {
    pub(super) fn new(replicas: Arc<Replicas>, reads: Reads, lease: Time) -> Self {
        Self {
            replicas,
            reads,
            lease,
            record: Mutex::default(),
            is_over: watch::Sender::new(false),
        }
    }

    /// Clients end with what they are about.
    pub(super) fn end(&self) {
        self.is_over.send_replace(true);
    }

    /// What was recorded, by what was at stake, in the order of the beginnings.
    pub(super) fn histories(&self) -> Vec<(Key, Vec<Call>)> {
        let record = self.record.lock();
        let of = |key| {
            let calls = record.calls.iter().filter(|(of, _)| *of == key);
            let mut calls: Vec<Call> = calls.map(|(_, call)| call.clone()).collect();
            calls.sort_by_key(|call| call.begun);
            (key, calls)
        };
        Key::all().map(of).collect()
    }

    /// All names that there ever were.
    pub(super) fn names(&self) -> Vec<String> {
        self.record.lock().names.keys().cloned().collect()
    }

    /// The name of an operation, of which nobody may have heard.
    pub(super) fn meet(&self, operation: &longrunning::Operation) {
        let key = operation.labels().get(KEY).and_then(Key::of);
        self.name(key.expect("all have a key"), operation.name());
    }

    /// What the database holds in the end, as if somebody had read it.
    pub(super) fn read(&self, name: &str, begun: Time, operation: Option<&Operation>) {
        let begun = Begun {
            at: begun,
            process: 0,
            since: begun,
        };
        let (key, number) = self.known(name);
        let answer = operation.map_or(Answer::Missing, |operation| Answer::Shown(shown(operation)));
        self.put(&begun, key, Ask::Get(number, Reads::Fresh), answer);
    }

    pub(super) fn begin(&self, process: &Process) -> Begun {
        Begun {
            at: self.replicas.now(),
            process: process.number,
            since: process.since,
        }
    }

    pub(super) fn put(&self, begun: &Begun, key: Key, ask: Ask, answer: Answer) {
        let ended = match answer {
            Answer::Lost => NEVER,
            _ => self.replicas.now(),
        };
        let call = Call {
            begun: begun.at,
            ended,
            process: begun.process,
            since: begun.since,
            ask,
            answer,
        };
        self.record.lock().calls.push((key, call));
    }

    /// Notes a name. An id has only one; those of a request are numbered.
    pub(super) fn name(&self, key: Key, name: &str) -> Name {
        let mut record = self.record.lock();
        if let Some((_, number)) = record.names.get(name) {
            return *number;
        }
        let latest = record.latest.entry(key).or_default();
        latest.push(name.to_owned());
        let number = latest.len() - 1;
        record.names.insert(name.to_owned(), (key, number));
        number
    }

    pub(super) fn known(&self, name: &str) -> (Key, Name) {
        self.record.lock().names[name]
    }
}

/// What an operation shows.
pub(super) fn shown(operation: &Operation) -> Shown {
    let ours = metadata(operation);
    let stage = match (&operation.result, ours.state()) {
        (None, State::Pending) => Stage::Waiting,
        (None, State::Running) => Stage::Held,
        (Some(operation::Result::Response(any)), State::Succeeded) => {
            let number = String::decode(any.value.as_slice()).unwrap();
            Stage::Done(Outcome::Response(number.parse().unwrap()))
        }
        (Some(operation::Result::Error(error)), State::Cancelled) => {
            assert_eq!(error.code, Code::Cancelled as i32);
            Stage::Done(Outcome::Cancelled)
        }
        (Some(operation::Result::Error(error)), State::Failed) if error.details.is_empty() => {
            Stage::Done(Outcome::Failure(error.message.parse().unwrap()))
        }
        (Some(operation::Result::Error(error)), State::Failed) => {
            assert_eq!(reason(error), "WORKER_LOST");
            Stage::Done(Outcome::WorkerLost)
        }
        _ => panic!("its result is not that of its state: {operation:?}"),
    };
    Shown {
        stage,
        attempt: ours.attempt.try_into().unwrap(),
        is_cancelled: ours.cancel_requested,
        units: ours.progress.map_or(0, |progress| progress.done_units),
    }
}
