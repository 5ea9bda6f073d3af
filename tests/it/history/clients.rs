//! Those who call the servers, each any server at any time, about a few operations
//! that all of them know; and the record of what they asked and were told.

use std::{collections::HashMap, sync::Arc, time::Duration};

use longrunning::{
    Progress,
    proto::{
        google::longrunning::{
            CancelOperationRequest, DeleteOperationRequest, Operation, operation,
        },
        google::rpc::{self, Code},
        longrunning::v1::{
            CreateOperationRequest, FinishOperationRequest, LeaseReport, RetryPolicy,
            create_operation_request::{Execution, Queued},
            directive::Kind,
            finish_operation_request::Outcome as Ended,
            operation_metadata::State,
        },
    },
};
use parking_lot::Mutex;
use prost::{Message, Name as _};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Response, Status};

use super::{
    replicas::{Process, Replicas},
    spec::{Answer, Ask, Call, End, Go, NEVER, Name, Outcome, Reads, Shown, Stage, Time, Token},
};
use crate::support::{
    dice::Dice,
    get, metadata, reason,
    shop::{attempts, beat, failure, look, poll, release, retryable},
    stored::Fail,
    text,
};

/// The label by which operations are told apart, and the queue of all.
const KEY: &str = "key";
const QUEUE: &str = "jobs";

/// How many ids there are, and how many requests.
const IDS: u64 = 4;
const REQUESTS: u64 = 3;

/// How long a client waits for an answer. Shorter than most faults.
const PATIENCE: Duration = Duration::from_millis(900);

/// What is at stake for one id or one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Id(u64),
    Request(u64),
}

/// What all clients share.
pub(super) struct World {
    pub(super) replicas: Arc<Replicas>,
    reads: Reads,
    lease: Time,
    record: Mutex<Record>,
    is_over: watch::Sender<bool>,
}

#[derive(Default)]
struct Record {
    calls: Vec<(Key, Call)>,
    names: HashMap<String, (Key, Name)>,
    latest: HashMap<Key, Vec<String>>,
    leases: Vec<Held>,
    tokens: Token,
    numbers: i64,
}

/// A lease that somebody got; others may use it too.
#[derive(Clone, Debug)]
struct Held {
    name: String,
    token: Token,
    bytes: Vec<u8>,
    /// How its holder said it ended, when the answer was lost.
    end: Option<End>,
}

/// A call that is under way.
struct Begun {
    at: Time,
    process: usize,
    since: Time,
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

    fn text(self) -> String {
        match self {
            Self::Id(number) => format!("id-{number}"),
            Self::Request(number) => format!("request-{number}"),
        }
    }

    fn of(text: &str) -> Option<Self> {
        Self::all().find(|key| key.text() == text)
    }

    fn request(self) -> CreateOperationRequest {
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

    fn begin(&self, process: &Process) -> Begun {
        Begun {
            at: self.replicas.now(),
            process: process.number,
            since: process.since,
        }
    }

    fn put(&self, begun: &Begun, key: Key, ask: Ask, answer: Answer) {
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
    fn name(&self, key: Key, name: &str) -> Name {
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

    fn known(&self, name: &str) -> (Key, Name) {
        self.record.lock().names[name]
    }
}

/// What an operation shows.
fn shown(operation: &Operation) -> Shown {
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

/// What a refusal says; nothing if nobody knows what came of the call.
fn refusal(status: Status) -> Answer {
    match Fail::from(status) {
        Fail::Refused(_, reason) => match reason.as_str() {
            "OPERATION_NOT_FOUND" => Answer::Missing,
            "OPERATION_EXISTS" => Answer::Exists,
            "LEASE_LOST" => Answer::LeaseLost,
            "OPERATION_DONE" => Answer::Over,
            "STORE_UNAVAILABLE" => Answer::Lost,
            other => panic!("nobody may be refused because of {other}"),
        },
        Fail::Lost(_) => Answer::Lost,
    }
}

/// The answer of a call, or why there is none.
async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Answer> {
    match timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(refusal(status)),
        Err(_) => Err(Answer::Lost),
    }
}

/// One client.
pub(super) struct Client {
    world: Arc<World>,
    dice: Dice,
    id: String,
}

// === impl Client ===

impl Client {
    pub(super) fn new(world: &Arc<World>, dice: Dice, number: usize) -> Self {
        Self {
            world: world.clone(),
            dice,
            id: format!("w{number}"),
        }
    }

    /// Calls on and on, until it is over.
    pub(super) async fn run(mut self) {
        let mut over = self.world.is_over.subscribe();
        while !*over.borrow_and_update() {
            let open = self.world.replicas.open();
            let was_answered = match self.dice.one_of(&open) {
                Some(process) => self.call(process.clone()).await,
                None => false,
            };
            // Who hears nothing asks less often, as clients do: what has no answer
            // makes a history hard to judge.
            let pause = if was_answered { 1..8 } else { 20..80 };
            sleep(Duration::from_millis(self.dice.within(pause))).await;
        }
    }

    /// One call; whether it was answered.
    async fn call(&mut self, mut process: Process) -> bool {
        let keys: Vec<Key> = Key::all().collect();
        let key = *self.dice.one_of(&keys).unwrap();
        match self.dice.within(0..24) {
            0..3 => self.create(&mut process, key).await,
            3..7 => self.lease(&mut process).await,
            7..10 => self.beat(&mut process).await,
            10..14 => self.finish(&mut process).await,
            choice => {
                let latest = self.world.record.lock().latest.get(&key).cloned();
                let latest = latest.unwrap_or_default();
                // Mostly the newest.
                let old = usize::from(self.dice.once_in(6));
                let Some(name) = latest.iter().rev().nth(old).cloned() else {
                    return true;
                };
                match choice {
                    14 | 15 => self.cancel(&mut process, name).await,
                    16 | 17 => self.delete(&mut process, name).await,
                    _ => self.get(&mut process, &name).await,
                }
            }
        }
    }

    async fn create(&mut self, process: &mut Process, key: Key) -> bool {
        if key.is_named() {
            self.world.name(key, &format!("operations/{}", key.text()));
        }
        let begun = self.world.begin(process);
        let answered = match answer(process.worker.create_operation(key.request())).await {
            Ok(created) => {
                let operation = created.operation.unwrap();
                let name = self.world.name(key, &operation.name);
                if created.reused {
                    let ask = Ask::Get(name, Reads::Fresh);
                    let shown = Answer::Shown(shown(&operation));
                    self.world.put(&begun, key, ask, shown);
                }
                let reused = created.reused;
                Answer::Created { name, reused }
            }
            Err(other) => other,
        };
        let is_answered = answered != Answer::Lost;
        self.world.put(&begun, key, Ask::Create, answered);
        is_answered
    }

    async fn lease(&mut self, process: &mut Process) -> bool {
        let most = if self.dice.once_in(3) { 3 } else { 1 };
        let mut request = look(&[QUEUE], &self.id, most);
        if self.dice.once_in(3) {
            request = poll(&[QUEUE], &self.id, 1);
            request.wait = Duration::from_millis(300).try_into().ok();
        }
        let begun = self.world.begin(process);
        let answered = answer(process.worker.lease_operations(request)).await;
        let is_answered = answered.is_ok();
        let leases = answered.map_or_else(|_| Vec::new(), |answer| answer.leases);
        let most = usize::try_from(most).unwrap();
        let slow = self.world.lease - super::SLACK <= self.world.replicas.now() - begun.at;
        // An operation of which one lease of several could not be kept, or whose
        // lease was over before it could be answered, may be held by nobody.
        if !is_answered || (leases.len() < most && (most != 1 || slow)) {
            for key in Key::all() {
                self.world.put(&begun, key, Ask::Lease, Answer::Lost);
            }
        }
        for lease in leases {
            let key = Key::of(&lease.labels[KEY]).unwrap();
            let name = self.world.name(key, &lease.name);
            assert!(
                !lease.cancel_requested,
                "what waits is not to be stopped: {lease:?}"
            );
            let token = {
                let mut record = self.world.record.lock();
                record.tokens += 1;
                let token = record.tokens;
                record.leases.push(Held {
                    name: lease.name,
                    token,
                    bytes: lease.lease_token,
                    end: None,
                });
                token
            };
            let attempt = lease.attempt.try_into().unwrap();
            let leased = Answer::Leased {
                name,
                token,
                attempt,
            };
            self.world.put(&begun, key, Ask::Lease, leased);
        }
        is_answered
    }

    /// One of the leases that were got, mostly one of the latest.
    fn held(&mut self) -> Option<Held> {
        let leases = self.world.record.lock().leases.clone();
        let latest = &leases[leases.len().saturating_sub(6)..];
        self.dice.one_of(latest).cloned()
    }

    async fn beat(&mut self, process: &mut Process) -> bool {
        let Some(held) = self.held() else { return true };
        let (key, name) = self.world.known(&held.name);
        let units = (!self.dice.once_in(3)).then(|| self.number());
        let report = LeaseReport {
            name: held.name,
            lease_token: held.bytes,
            progress: units.map(|done_units| Progress {
                done_units,
                ..Progress::default()
            }),
            ..LeaseReport::default()
        };
        let begun = self.world.begin(process);
        let answered = match answer(process.worker.heartbeat(beat(&self.id, [report]))).await {
            Ok(answer) => {
                let directive = &answer.directives[0];
                match directive.kind() {
                    Kind::Continue => Answer::Go(Go::On),
                    Kind::CancelRequested => Answer::Go(Go::Stop),
                    Kind::OperationDeleted => Answer::Go(Go::Unseen),
                    Kind::LeaseLost => match why(directive.error.as_ref().unwrap()).as_str() {
                        "OPERATION_NOT_FOUND" => Answer::Missing,
                        "OPERATION_DONE" => Answer::Over,
                        "LEASE_LOST" => Answer::LeaseLost,
                        other => panic!("no lease is lost because of {other}"),
                    },
                    other => panic!("{other:?} is no answer to a report"),
                }
            }
            Err(other) => other,
        };
        let is_answered = answered != Answer::Lost;
        let ask = Ask::Beat(name, held.token, units);
        self.world.put(&begun, key, ask, answered);
        is_answered
    }

    async fn finish(&mut self, process: &mut Process) -> bool {
        let Some(held) = self.held() else { return true };
        let (key, name) = self.world.known(&held.name);
        let end = match held.end {
            Some(end) if self.dice.once_in(2) => end,
            _ => match self.dice.within(0..10) {
                0..5 => End::Response(self.number()),
                5 => End::Failure(self.number()),
                6 | 7 => End::Retryable(self.number()),
                _ => End::Release,
            },
        };
        let internal = Code::Internal as i32;
        let outcome = match end {
            End::Response(number) => Ended::Response(text(&number.to_string())),
            End::Failure(number) => failure(internal, &number.to_string()),
            End::Retryable(number) => retryable(internal, &number.to_string()),
            End::Release => release(),
        };
        let request = FinishOperationRequest {
            name: held.name,
            lease_token: held.bytes,
            outcome: Some(outcome),
            metadata: None,
        };
        let begun = self.world.begin(process);
        let answered = match answer(process.worker.finish_operation(request)).await {
            Ok(operation) => Answer::Shown(shown(&operation)),
            Err(other) => other,
        };
        let is_answered = answered != Answer::Lost;
        let keep = self.dice.once_in(3);
        let mut record = self.world.record.lock();
        if let Some(at) = record.leases.iter().position(|one| one.token == held.token) {
            if !is_answered {
                record.leases[at].end = Some(end);
            } else if !keep {
                record.leases.remove(at);
            }
        }
        drop(record);
        let ask = Ask::Finish(name, held.token, end);
        self.world.put(&begun, key, ask, answered);
        is_answered
    }

    async fn cancel(&mut self, process: &mut Process, name: String) -> bool {
        let (key, number) = self.world.known(&name);
        let begun = self.world.begin(process);
        let call = process
            .client
            .cancel_operation(CancelOperationRequest { name });
        let answered = answer(call)
            .await
            .map_or_else(|other| other, |()| Answer::Ok);
        let is_answered = answered != Answer::Lost;
        self.world.put(&begun, key, Ask::Cancel(number), answered);
        is_answered
    }

    async fn delete(&mut self, process: &mut Process, name: String) -> bool {
        let (key, number) = self.world.known(&name);
        let begun = self.world.begin(process);
        let call = process
            .client
            .delete_operation(DeleteOperationRequest { name });
        let answered = answer(call)
            .await
            .map_or_else(|other| other, |()| Answer::Ok);
        let is_answered = answered != Answer::Lost;
        self.world.put(&begun, key, Ask::Delete(number), answered);
        is_answered
    }

    async fn get(&mut self, process: &mut Process, name: &str) -> bool {
        let (key, number) = self.world.known(name);
        let begun = self.world.begin(process);
        let answered = match answer(process.client.get_operation(get(name))).await {
            Ok(operation) => Answer::Shown(shown(&operation)),
            Err(other) => other,
        };
        // A read without an answer says nothing.
        if answered == Answer::Lost {
            return false;
        }
        let ask = Ask::Get(number, self.world.reads);
        self.world.put(&begun, key, ask, answered);
        true
    }

    /// A number that nobody had before.
    fn number(&self) -> i64 {
        let mut record = self.world.record.lock();
        record.numbers += 1;
        record.numbers
    }
}

/// The reason in a status that came in a message.
fn why(status: &rpc::Status) -> String {
    let infos = status.details.iter();
    let mut infos = infos.filter(|detail| detail.type_url == rpc::ErrorInfo::type_url());
    let info = infos.next().expect("a refusal has a reason");
    rpc::ErrorInfo::decode(info.value.as_slice())
        .unwrap()
        .reason
}
