//! The clients of a server that is killed: each goes on until an answer is lost.
//! Those that only look at what others make are in `lookers`.

use std::sync::Arc;

use longrunning::{
    Progress,
    proto::{
        google::longrunning::operation,
        google::rpc,
        longrunning::v1::{
            CreateOperationRequest, CreateOperationResponse, Lease, LeaseReport,
            create_operation_request::{Execution, Queued, SelfExecuted},
            finish_operation_request::Outcome,
            operation_worker_client::OperationWorkerClient,
        },
    },
};
use prost::Message;
use prost_types::Any;
use tonic::{Code, transport::Channel};

use super::world::{Checkpoints, Held, Requested, World, input, priority};
use crate::support::{
    Client,
    dice::Dice,
    ledger::{Effect, KEY, units},
    shop::{Kind, attempts, beat, failure, finish, look, release, retryable, seconds, sign},
    stored::{Fail, Serving},
    text,
};

/// The queue that workers take from.
pub(super) const WORK: &str = "work";
/// The queue that nobody takes from before the server was killed.
pub(super) const ORDER: &str = "order";

/// One client, with connections of its own.
pub(super) struct Hand {
    pub(super) number: u64,
    pub(super) world: Arc<World>,
    pub(super) dice: Dice,
    pub(super) client: Client,
    pub(super) worker: OperationWorkerClient<Channel>,
}

// === impl Hand ===

impl Hand {
    pub(super) fn new(number: u64, world: &Arc<World>, dice: Dice, serving: &Serving) -> Self {
        Self {
            number,
            world: world.clone(),
            dice,
            client: serving.client(),
            worker: serving.worker(),
        }
    }

    /// Does what its number says until an answer is lost.
    pub(super) async fn run(mut self) {
        loop {
            let done = match self.number % 8 {
                0 | 1 => self.execute().await,
                2 => self.create(WORK).await,
                3 | 4 => self.take().await,
                5 => self.create(ORDER).await,
                6 => self.disturb().await,
                _ => self.read().await,
            };
            match done {
                Ok(()) => {}
                // A server that was asked to end.
                Err(Fail::Lost(_) | Fail::Refused(Code::Unavailable, _)) => return,
                Err(refused) => panic!("{refused:?}"),
            }
        }
    }

    /// Creates an operation and executes it, or goes on with one.
    async fn execute(&mut self) -> Result<(), Fail> {
        let held = self.world.held.lock().pop();
        let held = match held {
            Some(held) if !self.dice.once_in(3) => held,
            other => {
                self.world.held.lock().extend(other);
                let key = self.world.new_key();
                let is_own = self.dice.once_in(3);
                let execution = Execution::SelfExecuted(SelfExecuted {
                    worker_id: format!("w{}", self.number),
                });
                let mut request = self.request(&key, execution, is_own);
                request.metadata = is_own.then(|| units(0));
                let requested = self.ask(request).await?;
                Held {
                    name: requested.name,
                    token: requested.token.expect("its creator holds it"),
                    is_own,
                    queue: String::new(),
                }
            }
        };
        self.work(held).await
    }

    /// Creates a queued operation.
    pub(super) async fn create(&mut self, queue: &str) -> Result<(), Fail> {
        let key = self.world.new_key();
        let queued = Queued {
            queue: queue.into(),
            input: input(&key),
            priority: priority(&key),
            not_before: None,
        };
        let mut request = self.request(&key, Execution::Queued(queued), false);
        request.retry_policy = attempts(1000);
        self.ask(request).await.map(drop)
    }

    fn request(
        &mut self,
        key: &str,
        execution: Execution,
        is_named: bool,
    ) -> CreateOperationRequest {
        let operation_id = (is_named || !self.dice.once_in(4)).then(|| key.to_owned());
        let parent = if self.dice.once_in(3) {
            "projects/p"
        } else {
            ""
        };
        let request_id = self.dice.once_in(2).then(|| format!("request of {key}"));
        CreateOperationRequest {
            parent: parent.into(),
            operation_id: operation_id.unwrap_or_default(),
            request_id: request_id.unwrap_or_default(),
            labels: [(KEY.to_owned(), key.to_owned())].into(),
            execution: Some(execution),
            // Longer than a round takes on the slowest machine.
            lease_duration: seconds(3600),
            ..CreateOperationRequest::default()
        }
    }

    async fn ask(&mut self, request: CreateOperationRequest) -> Result<Requested, Fail> {
        let name = match (&*request.parent, &*request.operation_id) {
            (_, "") => None,
            ("", id) => Some(format!("operations/{id}")),
            (parent, id) => Some(format!("{parent}/operations/{id}")),
        };
        let created = match self.ask_again(request.clone(), name.as_deref()).await {
            Ok(created) => created,
            Err(fail) => {
                self.world.creations.lock().push((request, name));
                return Err(fail);
            }
        };
        assert!(!created.reused, "{request:?}");
        let created_name = created.operation.unwrap().name;
        let mut ages = self.world.ages.lock();
        ages.entry(self.number)
            .or_default()
            .push(created_name.clone());
        let requested = Requested {
            request,
            name: created_name,
            token: created.lease.map(|lease| lease.lease_token),
        };
        if !requested.request.request_id.is_empty() {
            self.world.requests.lock().push(requested.clone());
        }
        Ok(requested)
    }

    /// Asks for an operation, maybe not for the first time.
    pub(super) async fn ask_again(
        &mut self,
        request: CreateOperationRequest,
        name: Option<&str>,
    ) -> Result<CreateOperationResponse, Fail> {
        let before = self.world.known(name.unwrap_or_default());
        let key = request.labels[KEY].clone();
        let answer = self.worker.create_operation(request);
        let created = if let Some(name) = name {
            self.world.call(name, Effect::Create, answer).await?
        } else {
            self.world.ledger.lock().expect_key(&key);
            let created = answer.await?.into_inner();
            self.world.answered();
            created
        };
        let operation = created.operation.as_ref().expect("it is in the answer");
        assert!(name.is_none_or(|name| name == operation.name));
        self.world.saw(&before, operation);
        Ok(created)
    }

    /// Takes operations from the queue and works on them.
    async fn take(&mut self) -> Result<(), Fail> {
        let most = i32::try_from(self.dice.within(1..4)).unwrap();
        let request = look(&[WORK], &format!("w{}", self.number), most);
        let leases = match self.worker.lease_operations(request).await {
            Ok(answer) => answer.into_inner().leases,
            Err(status) => {
                let most = usize::try_from(most).unwrap();
                self.world.ledger.lock().claims_lost(most);
                return Err(status.into());
            }
        };
        let held: Vec<_> = leases
            .iter()
            .map(|lease| self.world.check_lease(lease))
            .collect();
        self.world.answered();
        self.world.held.lock().extend(held);
        let held = self.world.held.lock().pop();
        match held {
            Some(held) => self.work(held).await,
            None => self.create(WORK).await,
        }
    }

    /// Goes on with an operation, to its end or not.
    pub(super) async fn work(&mut self, held: Held) -> Result<(), Fail> {
        for _ in 0..self.dice.within(0..4) {
            match self.report(&held).await {
                Ok(Kind::CancelRequested) if self.dice.once_in(2) => {
                    return self.end(held, failure(1, "stopped"), None).await;
                }
                Ok(Kind::Continue | Kind::CancelRequested | Kind::OperationDeleted) => {}
                Ok(other) => panic!("{other:?} for {held:?}"),
                Err(fail) => {
                    self.world.held.lock().push(held);
                    return Err(fail);
                }
            }
        }
        match self.dice.within(0..8) {
            0 => {
                self.world.held.lock().push(held);
                Ok(())
            }
            1 => self.end(held, failure(13, "broken"), None).await,
            2 if !held.queue.is_empty() => self.end(held, release(), Some(Effect::Return)).await,
            // There is a pause before the next attempt, which the order would show.
            3 if held.queue == WORK => {
                let again = retryable(14, "once more");
                self.end(held, again, Some(Effect::Return)).await
            }
            n => {
                let size = if n == 4 { 5000 } else { 5 };
                let response = text(&held.name.repeat(size / held.name.len() + 1));
                self.end(held, Outcome::Response(response), None).await
            }
        }
    }

    /// Tells how far it is, and what to do if it gets lost.
    async fn report(&mut self, held: &Held) -> Result<Kind, Fail> {
        let made = self.world.new_units();
        let checkpoint =
            (!held.queue.is_empty() && self.dice.once_in(2)).then(|| checkpoint(held, made));
        let report = LeaseReport {
            name: held.name.clone(),
            lease_token: held.token.clone(),
            progress: (!held.is_own).then(|| Progress {
                done_units: made,
                ..Progress::default()
            }),
            metadata: held.is_own.then(|| units(made)),
            checkpoint: checkpoint.clone(),
            detail: None,
        };
        let known = |change: fn(&mut Checkpoints, Any)| {
            if let Some(checkpoint) = checkpoint.clone() {
                let mut all = self.world.checkpoints.lock();
                change(all.entry(held.name.clone()).or_default(), checkpoint);
            }
        };
        known(|all, checkpoint| all.lost.push(checkpoint));
        let mut worker = self.worker.clone();
        let answer = worker.heartbeat(beat(&format!("w{}", self.number), [report]));
        let effect = Effect::Units(made);
        let answer = self.world.call(&held.name, effect, answer).await?;
        known(|all, checkpoint| {
            all.lost.clear();
            all.kept = Some(checkpoint);
        });
        let directive = &answer.directives[0];
        assert_eq!(directive.error, None, "{held:?}");
        Ok(directive.kind())
    }

    async fn end(
        &mut self,
        held: Held,
        outcome: Outcome,
        effect: Option<Effect>,
    ) -> Result<(), Fail> {
        let effect = effect.unwrap_or_else(|| Effect::Finish(result(&outcome)));
        let lease = Lease {
            name: held.name.clone(),
            lease_token: held.token.clone(),
            ..Lease::default()
        };
        let request = finish(&lease, outcome);
        let before = self.world.known(&held.name);
        let mut worker = self.worker.clone();
        let answer = worker.finish_operation(request.clone());
        match self.world.call(&held.name, effect.clone(), answer).await {
            Ok(operation) => {
                // Of one that is deleted nobody else will hear.
                if !self.world.known(&held.name).gone {
                    self.world.saw(&before, &operation);
                }
                Ok(())
            }
            Err(fail) => {
                self.world.ends.lock().push((request, effect));
                Err(fail)
            }
        }
    }

    /// A sign of life for a lease that was held over a restart.
    pub(super) async fn sign(&mut self, held: &Held) -> Kind {
        let lease = Lease {
            name: held.name.clone(),
            lease_token: held.token.clone(),
            ..Lease::default()
        };
        let request = beat("w", [sign(&lease)]);
        let answer = self.worker.heartbeat(request).await.unwrap().into_inner();
        answer.directives[0].kind()
    }
}

/// What an operation that ends like this shows.
fn result(outcome: &Outcome) -> operation::Result {
    match outcome {
        Outcome::Response(response) => operation::Result::Response(response.clone()),
        Outcome::Failure(failure) => operation::Result::Error(failure.error.clone().unwrap()),
        Outcome::Release(_) => operation::Result::Error(rpc::Status::default()),
    }
}

fn checkpoint(held: &Held, units: i64) -> Any {
    let at = format!("{} at {units}", held.name);
    Any {
        type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
        value: at
            .repeat(usize::try_from(units % 3).unwrap() * 30 + 1)
            .encode_to_vec(),
    }
}
