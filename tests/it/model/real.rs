//! The real service, called through its generated clients; what it answers is
//! put into the words of the model. Nothing is decided here.

use std::{cell::RefCell, collections::HashMap};

use longrunning::{
    Progress,
    proto::{
        google::{
            longrunning::{
                CancelOperationRequest, DeleteOperationRequest, ListOperationsRequest, Operation,
                WaitOperationRequest, operation::Result as Wired,
            },
            rpc,
        },
        longrunning::v1::{
            CreateOperationRequest, Directive as WireDirective, FinishOperationRequest,
            Lease as WireLease, LeaseReport, OperationMetadata, RetryPolicy,
            create_operation_request::{Execution, Queued, SelfExecuted},
            finish_operation_request::{Failure, Outcome as Ending, Release},
        },
    },
};
use prost::{Message, Name};
use tonic::Status;

use super::{
    answers::{Answer, Directive, Lease, Metadata, Outcome, Proof, Shown},
    steps::{End, Report, Spec},
};
use crate::support::{
    get, own_metadata,
    problem::Problem,
    shop::{Shop, beat, look},
    text,
};

/// Nanoseconds of a millisecond.
const MILLI: i64 = 1_000_000;

/// The service.
pub(super) struct Real {
    shop: Shop,
    pub(super) wall: i64,
    tokens: RefCell<Vec<Vec<u8>>>,
}

/// A call of FinishOperation.
#[derive(Clone, Debug)]
pub(super) struct Finish {
    pub(super) name: String,
    pub(super) proof: Proof,
    pub(super) end: End,
    pub(super) metadata: Option<u8>,
}

// === impl Real ===

impl Real {
    pub(super) async fn open() -> Self {
        let shop = Shop::open().await;
        let wall = shop.operations.clock().now().nanos();
        Self {
            shop,
            wall,
            tokens: RefCell::default(),
        }
    }

    pub(super) async fn create(&self, spec: &Spec) -> Answer {
        match self.shop.create(self.creation(spec)).await {
            Ok(created) => Answer::Created {
                operation: self.shown(&created.operation.unwrap()),
                lease: created.lease.map(|lease| self.lease_of(lease)),
                reused: created.reused,
            },
            Err(status) => refused(&status),
        }
    }

    pub(super) async fn lease(&self, queues: &[&str], most: i32) -> Answer {
        match self.shop.lease(look(queues, "w", most)).await {
            Ok(leases) => Answer::Leases(leases.into_iter().map(|it| self.lease_of(it)).collect()),
            Err(status) => refused(&status),
        }
    }

    pub(super) async fn heartbeat(&self, reports: &[(String, Proof, Report)]) -> Answer {
        let wire = reports.iter().map(|(name, proof, report)| LeaseReport {
            name: name.clone(),
            lease_token: self.token(*proof),
            progress: report.progress.map(progress),
            metadata: report.metadata.map(own_metadata),
            checkpoint: report.checkpoint.map(own_metadata),
            detail: report.detail.map(own_metadata),
        });
        let answer = self.shop.heartbeat(beat("w", wire)).await.unwrap();
        let directives = reports.iter().zip(&answer.directives);
        assert_eq!(directives.len(), answer.directives.len(), "one for one");
        Answer::Directives {
            directives: directives
                .map(|((name, proof, _), directive)| self.directive(name, *proof, directive))
                .collect(),
            next: nanos(answer.next_heartbeat.unwrap()),
        }
    }

    pub(super) async fn finish(&self, finish: &Finish) -> Answer {
        let outcome = match finish.end {
            End::Response(n) => Ending::Response(text(&n.to_string())),
            End::Failure {
                code,
                message,
                retryable,
                retry_after,
            } => Ending::Failure(Failure {
                error: Some(rpc::Status {
                    code,
                    message: message.to_string(),
                    details: Vec::new(),
                }),
                retryable,
                retry_after: retry_after.map(duration),
            }),
            End::Release => Ending::Release(Release {}),
        };
        let request = FinishOperationRequest {
            name: finish.name.clone(),
            lease_token: self.token(finish.proof),
            outcome: Some(outcome),
            metadata: finish.metadata.map(own_metadata),
        };
        self.operation(self.shop.end(request).await)
    }

    pub(super) async fn cancel(&self, name: &str) -> Answer {
        let name = name.to_owned();
        let mut client = self.shop.client.clone();
        let request = CancelOperationRequest { name };
        nothing(client.cancel_operation(request).await.map(drop))
    }

    pub(super) async fn delete(&self, name: &str) -> Answer {
        let name = name.to_owned();
        let mut client = self.shop.client.clone();
        let request = DeleteOperationRequest { name };
        nothing(client.delete_operation(request).await.map(drop))
    }

    pub(super) async fn wait(&self, name: &str) -> Answer {
        let request = WaitOperationRequest {
            name: name.to_owned(),
            timeout: Some(duration(0)),
        };
        let mut client = self.shop.client.clone();
        let answer = client.wait_operation(request).await;
        self.operation(answer.map(tonic::Response::into_inner))
    }

    pub(super) async fn get(&self, name: &str) -> Answer {
        let mut client = self.shop.client.clone();
        let answer = client.get_operation(get(name)).await;
        self.operation(answer.map(tonic::Response::into_inner))
    }

    pub(super) async fn list(&self, parent: &str) -> Vec<Shown> {
        let slash = if parent.is_empty() { "" } else { "/" };
        let request = ListOperationsRequest {
            name: format!("{parent}{slash}operations"),
            page_size: 1000,
            ..ListOperationsRequest::default()
        };
        let mut client = self.shop.client.clone();
        let page = client.list_operations(request).await.unwrap().into_inner();
        assert_eq!(page.next_page_token, "", "one page is enough");
        page.operations.iter().map(|one| self.shown(one)).collect()
    }

    fn operation(&self, answer: Result<Operation, Status>) -> Answer {
        match answer {
            Ok(operation) => Answer::Operation(self.shown(&operation)),
            Err(status) => refused(&status),
        }
    }

    fn creation(&self, spec: &Spec) -> CreateOperationRequest {
        let execution = match spec.queue {
            Some(queue) => Execution::Queued(Queued {
                queue: queue.to_owned(),
                input: Some(text(&spec.id())),
                priority: spec.priority,
                not_before: spec.not_before.map(|at| self.wall_time(at)),
            }),
            None => Execution::SelfExecuted(SelfExecuted {
                worker_id: spec.worker.to_owned(),
            }),
        };
        let (first, longest, times) = spec.backoff;
        let policy = RetryPolicy {
            max_attempts: i32::try_from(spec.attempts).unwrap(),
            initial_backoff: Some(duration(first)),
            max_backoff: Some(duration(longest)),
            multiplier: Some(f64::from(i32::try_from(times).unwrap())),
            jitter: Some(0.0),
        };
        let altered = spec.altered.then(|| ("altered".to_owned(), String::new()));
        CreateOperationRequest {
            parent: spec.parent.to_owned(),
            operation_id: spec.id(),
            request_id: spec.request.map_or_else(String::new, |n| format!("r{n}")),
            metadata: spec.metadata.map(own_metadata),
            labels: HashMap::from_iter(altered),
            execution: Some(execution),
            total_timeout: spec.total_timeout.map(duration),
            attempt_timeout: spec.attempt_timeout.map(duration),
            lease_duration: spec.lease.map(duration),
            retry_policy: spec.queue.map(|_| policy),
            retention: Some(duration(spec.retention)),
            cancel_grace: spec.grace.map(duration),
            ..CreateOperationRequest::default()
        }
    }

    fn token(&self, proof: Proof) -> Vec<u8> {
        match proof {
            Proof::Grant(grant) => self.tokens.borrow()[grant].clone(),
            Proof::Unknown => vec![7; 16],
            Proof::Malformed => vec![7; 3],
            Proof::Empty => Vec::new(),
        }
    }

    /// The number of a lease; a token that was never seen begins a new one.
    fn grant(&self, token: Vec<u8>) -> usize {
        let mut tokens = self.tokens.borrow_mut();
        let known = tokens.iter().position(|known| *known == token);
        known.unwrap_or_else(|| {
            tokens.push(token);
            tokens.len() - 1
        })
    }

    fn lease_of(&self, lease: WireLease) -> Lease {
        let id = lease.name.rsplit('/').next().unwrap();
        let input = (!lease.queue.is_empty()).then(|| text(id));
        assert_eq!(lease.input, input, "the input is the creator's");
        Lease {
            grant: self.grant(lease.lease_token),
            attempt: lease.attempt,
            remaining: millis(lease.lease_remaining.unwrap()),
            attempt_remaining: lease.attempt_remaining.map(millis),
            checkpoint: lease.checkpoint.as_ref().map(own),
            asked: lease.cancel_requested,
            queue: lease.queue,
            grace: lease.cancel_grace.map(millis),
            name: lease.name,
        }
    }

    fn directive(&self, name: &str, proof: Proof, directive: &WireDirective) -> Directive {
        assert_eq!(directive.name, name);
        assert_eq!(directive.lease_token, self.token(proof));
        let error = directive.error.as_ref().map(|error| {
            let (code, details) = (error.code.into(), error.encode_to_vec().into());
            let status = Status::with_details(code, &error.message, details);
            known(&Problem::of(&status).reason)
        });
        Directive {
            kind: known(directive.kind().as_str_name()),
            remaining: directive.lease_remaining.map(millis),
            grace_remaining: directive.cancel_grace_remaining.map(millis),
            error,
        }
    }

    fn shown(&self, operation: &Operation) -> Shown {
        let outcome = operation.result.as_ref().map(|result| match result {
            Wired::Response(any) => {
                let value = String::decode(any.value.as_slice()).unwrap();
                Outcome::Response(value.parse().unwrap())
            }
            Wired::Error(error) if error.details.is_empty() => Outcome::Said {
                code: error.code,
                message: error.message.parse().unwrap(),
            },
            Wired::Error(error) => {
                Outcome::Server(error.code, known(&crate::support::reason(error)))
            }
        });
        assert_eq!(
            operation.done,
            outcome.is_some(),
            "done and a result, or none"
        );
        let metadata = operation.metadata.as_ref().expect("it is always there");
        Shown {
            name: operation.name.clone(),
            metadata: if metadata.type_url == OperationMetadata::type_url() {
                self.ours(&OperationMetadata::decode(metadata.value.as_slice()).unwrap())
            } else {
                Metadata::Own(own(metadata))
            },
            outcome,
        }
    }

    fn ours(&self, metadata: &OperationMetadata) -> Metadata {
        let at = |time: &prost_types::Timestamp| {
            let nanos = time.seconds * 1_000_000_000 + i64::from(time.nanos) - self.wall;
            assert_eq!(nanos % MILLI, 0, "time moves by milliseconds");
            nanos / MILLI
        };
        let done_units = |progress: &Progress| u8::try_from(progress.done_units).unwrap();
        Metadata::Ours {
            state: known(metadata.state().as_str_name()),
            created: at(metadata.create_time.as_ref().unwrap()),
            started: metadata.start_time.as_ref().map(at),
            updated: at(metadata.update_time.as_ref().unwrap()),
            ended: metadata.end_time.as_ref().map(at),
            progress: metadata.progress.as_ref().map(done_units),
            detail: metadata.detail.as_ref().map(own),
            attempt: metadata.attempt,
            asked: metadata.cancel_requested,
            queue: metadata.queue.clone(),
        }
    }

    fn wall_time(&self, at: i64) -> prost_types::Timestamp {
        let nanos = self.wall + at * MILLI;
        prost_types::Timestamp {
            seconds: nanos.div_euclid(1_000_000_000),
            nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap(),
        }
    }
}

fn refused(status: &Status) -> Answer {
    let problem = Problem::of(status);
    assert_eq!(problem.code, code(&problem.reason), "{problem:?}");
    Answer::Refused(known(&problem.reason))
}

/// BEHAVIOUR §9: the code of each reason.
fn code(reason: &str) -> tonic::Code {
    match reason {
        "OPERATION_NOT_FOUND" => tonic::Code::NotFound,
        "OPERATION_EXISTS" | "REQUEST_ID_REUSED" => tonic::Code::AlreadyExists,
        "INVALID_LEASE_TOKEN" => tonic::Code::InvalidArgument,
        _ => tonic::Code::FailedPrecondition,
    }
}

/// The words that the model has, too.
fn known(word: &str) -> &'static str {
    let words = [
        "PENDING",
        "RUNNING",
        "SUCCEEDED",
        "FAILED",
        "CANCELLED",
        "CONTINUE",
        "CANCEL_REQUESTED",
        "OPERATION_DELETED",
        "LEASE_LOST",
        "OPERATION_DONE",
        "OPERATION_NOT_FOUND",
        "OPERATION_EXISTS",
        "REQUEST_ID_REUSED",
        "INVALID_LEASE_TOKEN",
        "TOTAL_TIMEOUT",
        "ATTEMPT_TIMEOUT",
        "WORKER_LOST",
        "OPERATION_CANCELLED",
    ];
    let found = words.into_iter().find(|known| *known == word);
    found.unwrap_or_else(|| panic!("the model does not know {word}"))
}

fn nothing(answer: Result<(), Status>) -> Answer {
    match answer {
        Ok(()) => Answer::Nothing,
        Err(status) => refused(&status),
    }
}

/// The number in what `own_metadata` made.
fn own(any: &longrunning::Any) -> u8 {
    assert_eq!(*any, own_metadata(any.value[1]), "byte for byte");
    any.value[1]
}

fn progress(n: u8) -> Progress {
    crate::support::progress(n.into())
}

fn duration(millis: i64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: millis / 1_000,
        nanos: i32::try_from(millis % 1_000 * MILLI).unwrap(),
    }
}

fn nanos(duration: prost_types::Duration) -> i64 {
    duration.seconds * 1_000_000_000 + i64::from(duration.nanos)
}

fn millis(duration: prost_types::Duration) -> i64 {
    let nanos = nanos(duration);
    assert_eq!(nanos % MILLI, 0, "time moves by milliseconds");
    nanos / MILLI
}
