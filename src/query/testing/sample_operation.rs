//! Operations for tests that are described by plain values.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::built_in_types;
use crate::{
    clock::Timestamp,
    operation::{
        Operation, OperationUpdate,
        labels::Labels,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        options::{ExecutionOptions, QueueName},
        outcome::{Outcome, status_with_reason},
        payload::Payload,
        spec::{Attributes, InitialLease, OperationSpec},
        trace::TraceContext,
        transition::{Event, Report},
    },
    proto::{google::rpc::Code, longrunning::v1::Progress},
};

/// The earliest creation time, in seconds since 1970.
pub(super) const START_SECS: i64 = 1_790_000_000;

/// The plain values from which a test operation is built.
#[derive(Clone, Debug)]
pub(crate) struct SampleOperation {
    pub(crate) parent: &'static str,
    pub(crate) id: String,
    pub(crate) state: SampleState,
    pub(crate) queue: Option<&'static str>,
    pub(crate) env: Option<&'static str>,
    pub(crate) team: Option<&'static str>,
    /// Creation time, in seconds after `START_SECS`.
    pub(crate) created_after_secs: i64,
    pub(crate) metadata: SampleMetadata,
}

/// The state of a test operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SampleState {
    Pending,
    Running,
    Cancelling,
    Succeeded,
    Failed(Code),
    Cancelled,
}

/// The metadata of a test operation.
#[derive(Clone, Debug)]
pub(crate) enum SampleMetadata {
    /// The server's own metadata, with the `done_units` and `stage` of its progress.
    Server(Option<(i64, &'static str)>),
    /// A `Struct` with the fields `size` and `tag`.
    Struct(i64, &'static str),
    /// A `Struct` with a list of this many numbers, 15 bytes each.
    Numbers(u16),
    /// A message of an unregistered type.
    UnknownType,
}

// === impl SampleOperation ===

impl SampleOperation {
    pub(crate) fn name(&self) -> String {
        match self.parent {
            "" => format!("operations/{}", self.id),
            parent => format!("{parent}/operations/{}", self.id),
        }
    }

    /// Returns the state; an operation without a queue is never pending, because its
    /// creator executes it.
    pub(super) fn effective_state(&self) -> SampleState {
        match self.state {
            SampleState::Pending if self.queue.is_none() => SampleState::Running,
            state => state,
        }
    }

    /// Builds the operation with the events that lead to its state.
    pub(crate) fn to_operation(&self, number: u64) -> Operation {
        let time_at = |seconds: i64| {
            Timestamp::from_nanos((START_SECS + self.created_after_secs + seconds) * 1_000_000_000)
        };
        let labels = [("env", self.env), ("team", self.team)];
        let labels: BTreeMap<_, _> = labels
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect();
        let token = LeaseToken::random();
        let worker = WorkerId::new("w");
        let spec = OperationSpec {
            name: OperationName::parse(self.name()).unwrap(),
            number,
            options: Arc::new(ExecutionOptions {
                queue: self.queue.map(|queue| QueueName::parse(queue).unwrap()),
                lease_duration: Duration::from_secs(60),
                ..ExecutionOptions::default()
            }),
            attributes: Some(Arc::new(Attributes {
                labels: Labels::new(labels).unwrap(),
                idempotency_key: None,
                method: "".into(),
                trace_context: TraceContext::default(),
            })),
            input: None,
            metadata: self.metadata.payload(),
            not_before: None,
            initial_lease: self.queue.is_none().then(|| InitialLease {
                token,
                worker: worker.clone(),
            }),
        };
        let created = Operation::new(spec, time_at(0));
        let report = Report {
            progress: match self.metadata {
                SampleMetadata::Server(Some((done_units, stage))) => Some(Progress {
                    done_units,
                    stage: stage.into(),
                    ..Progress::default()
                }),
                _ => None,
            },
            ..Report::default()
        };
        let mut events = Vec::new();
        if self.effective_state() != SampleState::Pending {
            if self.queue.is_some() {
                let confirm_within = None;
                events.push((
                    0,
                    Event::AcquireLease {
                        token,
                        worker,
                        confirm_within,
                    },
                ));
            }
            events.push((0, Event::Report(token, report)));
        }
        match self.effective_state() {
            SampleState::Pending | SampleState::Running => {}
            SampleState::Cancelling => events.push((2, Event::RequestCancel)),
            SampleState::Succeeded => {
                let outcome = Outcome::Response(Payload::empty());
                events.push((2, Event::Finish(token, outcome, Report::default())));
            }
            SampleState::Failed(code) => {
                let mut error = status_with_reason(code, "TEST", "disk full");
                if code == Code::Internal {
                    error.details.insert(0, any_of_unknown_type());
                }
                let outcome = Outcome::Error(Box::new(error));
                events.push((2, Event::Finish(token, outcome, Report::default())));
            }
            SampleState::Cancelled => {
                events.push((2, Event::RequestCancel));
                let outcome = Outcome::cancelled();
                events.push((2, Event::Finish(token, outcome, Report::default())));
            }
        }
        events
            .into_iter()
            .fold(created, |operation, (after, event)| {
                match operation.apply(&event, time_at(after)).unwrap() {
                    OperationUpdate::Put(next) | OperationUpdate::RenewLease(next) => next,
                    OperationUpdate::Unchanged => operation,
                    OperationUpdate::Remove(_) => panic!("no event removes the operation"),
                }
            })
    }

    pub(super) fn is_done(&self) -> bool {
        !matches!(
            self.effective_state(),
            SampleState::Pending | SampleState::Running | SampleState::Cancelling
        )
    }

    pub(super) fn error(&self) -> Option<(i64, &'static str)> {
        match self.effective_state() {
            SampleState::Failed(code) => Some((i64::from(i32::from(code)), "disk full")),
            SampleState::Cancelled => Some((1, "the operation was cancelled")),
            _ => None,
        }
    }

    pub(super) fn state_name(&self) -> &'static str {
        match self.effective_state() {
            SampleState::Pending => "PENDING",
            SampleState::Running | SampleState::Cancelling => "RUNNING",
            SampleState::Succeeded => "SUCCEEDED",
            SampleState::Failed(Code::Cancelled) | SampleState::Cancelled => "CANCELLED",
            SampleState::Failed(_) => "FAILED",
        }
    }
}

// === impl SampleMetadata ===

impl SampleMetadata {
    fn payload(&self) -> Option<Payload> {
        match self {
            Self::Server(_) => None,
            Self::Struct(size, tag) => {
                let json = serde_json::json!({ "size": size, "tag": tag });
                let any = built_in_types().pack("google.protobuf.Struct", &json);
                Some(Payload::new(any.unwrap()).unwrap())
            }
            Self::Numbers(count) => {
                let numbers: Vec<u16> = (0..*count).collect();
                let json = serde_json::json!({ "numbers": numbers });
                let any = built_in_types().pack("google.protobuf.Struct", &json);
                Some(Payload::new(any.unwrap()).unwrap())
            }
            Self::UnknownType => Some(Payload::new(any_of_unknown_type()).unwrap()),
        }
    }
}

fn any_of_unknown_type() -> prost_types::Any {
    prost_types::Any {
        type_url: "example.com/x/Own".into(),
        value: vec![0xff],
    }
}
