//! Those who call the servers, each any server at any time, about a few operations
//! that all of them know.

use std::{sync::Arc, time::Duration};

use longrunning::{
    Progress,
    proto::{
        google::longrunning::{CancelOperationRequest, DeleteOperationRequest},
        google::rpc::{self, Code},
        longrunning::v1::{
            FinishOperationRequest, LeaseReport, directive::Kind,
            finish_operation_request::Outcome as Ended,
        },
    },
};
use prost::{Message, Name as _};
use tokio::time::{sleep, timeout};
use tonic::{Response, Status};

use super::{
    calls::{Answer, Ask, End, Go, Reads},
    replicas::Process,
    world::{Held, KEY, Key, QUEUE, World, shown},
};
use crate::support::{
    dice::Dice,
    get,
    shop::{beat, failure, look, poll, release, retryable},
    stored::Fail,
    text,
};

/// How long a client waits for an answer. Shorter than most faults.
const PATIENCE: Duration = Duration::from_millis(900);

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
        let mut unanswered = 0;
        while !*over.borrow_and_update() {
            let open = self.world.replicas.open();
            let was_answered = match self.dice.one_of(&open) {
                Some(process) => self.call(process.clone()).await,
                None => false,
            };
            // Who hears nothing asks less and less often, as clients do: what has no
            // answer makes a history hard to judge.
            unanswered = if was_answered {
                0
            } else {
                4.min(unanswered + 1)
            };
            let pause = match unanswered {
                0 => 1..8,
                times => 10 << times..40 << times,
            };
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
