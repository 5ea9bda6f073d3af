//! The fields of an operation that a filter can name: those of
//! google.longrunning.Operation and the server's own. What is inside messages
//! is in `inside`.

use super::literal::{Held, Scalar};
use crate::{
    clock::Timestamp, operation::operation::Operation,
    proto::longrunning::v1::operation_metadata::State,
};

/// The names of all fields, for errors.
pub(crate) const NAMES: &str = "name, done, error, response, metadata, state, queue, method, \
     create_time, start_time, update_time, end_time, expire_time, attempt, cancel_requested, labels";

/// A field of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// One with a value of its own.
    Own(Own),
    /// `map<string, string>`.
    Labels,
    Error,
    Response,
    Metadata,
}

/// A field with a value of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    Name,
    Done,
    State,
    Queue,
    Method,
    CreateTime,
    StartTime,
    UpdateTime,
    EndTime,
    ExpireTime,
    Attempt,
    CancelRequested,
}

// === impl Field ===

impl Field {
    /// The field with this name, which may also be written as in JSON.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(Self::Own(match name {
            "name" => Own::Name,
            "done" => Own::Done,
            "state" => Own::State,
            "queue" => Own::Queue,
            "method" => Own::Method,
            "create_time" | "createTime" => Own::CreateTime,
            "start_time" | "startTime" => Own::StartTime,
            "update_time" | "updateTime" => Own::UpdateTime,
            "end_time" | "endTime" => Own::EndTime,
            "expire_time" | "expireTime" => Own::ExpireTime,
            "attempt" => Own::Attempt,
            "cancel_requested" | "cancelRequested" => Own::CancelRequested,
            "labels" => return Some(Self::Labels),
            "error" => return Some(Self::Error),
            "response" => return Some(Self::Response),
            "metadata" => return Some(Self::Metadata),
            _ => return None,
        }))
    }
}

// === impl Own ===

impl Own {
    /// The type of its values.
    pub(crate) fn scalar(self) -> Scalar {
        match self {
            Self::Name | Self::Queue | Self::Method => Scalar::Text,
            Self::Done | Self::CancelRequested => Scalar::Bool,
            Self::State => Scalar::Enum(
                STATES
                    .iter()
                    .map(|state| state.as_str_name().to_owned())
                    .collect(),
            ),
            Self::CreateTime
            | Self::StartTime
            | Self::UpdateTime
            | Self::EndTime
            | Self::ExpireTime => Scalar::Time,
            Self::Attempt => Scalar::Integer,
        }
    }

    /// Its value; none if it is not there (yet).
    pub(crate) fn held(self, operation: &Operation) -> Option<Held<'_>> {
        let time = |time: Timestamp| Held::Time(time.nanos().into());
        Some(match self {
            Self::Name => Held::Text(operation.name()),
            Self::Done | Self::State => self.held_in(operation.state())?,
            Self::Queue => Held::Text(operation.queue().map_or("", |queue| queue.as_str())),
            Self::Method => Held::Text(operation.method()),
            Self::CreateTime => time(operation.create_time()),
            Self::StartTime => time(operation.start_time()?),
            Self::UpdateTime => time(operation.update_time()),
            Self::EndTime => time(operation.end_time()?),
            Self::ExpireTime => time(operation.end_time()? + operation.terms().retention),
            Self::Attempt => Held::Integer(operation.attempt().into()),
            Self::CancelRequested => Held::Bool(operation.cancel_requested()),
        })
    }

    /// The value that it has in a state, if nothing else matters for it.
    pub(crate) fn held_in(self, state: State) -> Option<Held<'static>> {
        match self {
            Self::Done => Some(Held::Bool(!matches!(
                state,
                State::Pending | State::Running
            ))),
            Self::State => Some(Held::Enum(state.as_str_name())),
            _ => None,
        }
    }
}

/// The states that an operation can have.
pub(crate) const STATES: [State; 5] = [
    State::Pending,
    State::Running,
    State::Succeeded,
    State::Failed,
    State::Cancelled,
];
