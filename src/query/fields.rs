//! The fields of an operation that a filter can name: those of
//! `google.longrunning.Operation` and of the server.

use super::literal::{FieldValue, ScalarType};
use crate::{
    clock::Timestamp, operation::Operation, proto::longrunning::v1::operation_metadata::State,
};

/// The names of all fields, for error messages.
pub(crate) const FIELD_NAMES: &str = "name, done, error, response, metadata, state, queue, method, \
     create_time, start_time, update_time, end_time, expire_time, attempt, cancel_requested, labels";

/// A top-level field of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Scalar(ScalarField),
    Labels,
    Error,
    Response,
    Metadata,
}

/// A field with a scalar value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScalarField {
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
    /// Returns the field with this name in `snake_case` or `camelCase`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(Self::Scalar(match name {
            "name" => ScalarField::Name,
            "done" => ScalarField::Done,
            "state" => ScalarField::State,
            "queue" => ScalarField::Queue,
            "method" => ScalarField::Method,
            "create_time" | "createTime" => ScalarField::CreateTime,
            "start_time" | "startTime" => ScalarField::StartTime,
            "update_time" | "updateTime" => ScalarField::UpdateTime,
            "end_time" | "endTime" => ScalarField::EndTime,
            "expire_time" | "expireTime" => ScalarField::ExpireTime,
            "attempt" => ScalarField::Attempt,
            "cancel_requested" | "cancelRequested" => ScalarField::CancelRequested,
            "labels" => return Some(Self::Labels),
            "error" => return Some(Self::Error),
            "response" => return Some(Self::Response),
            "metadata" => return Some(Self::Metadata),
            _ => return None,
        }))
    }

    /// Returns a condition on this field, for the error about a field without one.
    pub(crate) fn example_condition(self, name: &str) -> String {
        let comparison = match self {
            Self::Scalar(field) => match field.scalar_type() {
                ScalarType::Bool => " = true",
                ScalarType::Enum(_) => " = RUNNING",
                ScalarType::Time => " > 2026-11-21T15:04:05Z",
                ScalarType::Integer => " > 0",
                _ => ":TEXT",
            },
            Self::Labels => ".KEY = VALUE",
            Self::Error | Self::Response | Self::Metadata => ":*",
        };
        format!("{name}{comparison}")
    }
}

// === impl ScalarField ===

impl ScalarField {
    /// Returns the type of the values.
    pub(crate) fn scalar_type(self) -> ScalarType {
        match self {
            Self::Name | Self::Queue | Self::Method => ScalarType::Text,
            Self::Done | Self::CancelRequested => ScalarType::Bool,
            Self::State => {
                ScalarType::Enum(STATES.map(|state| state.as_str_name().to_owned()).into())
            }
            Self::CreateTime
            | Self::StartTime
            | Self::UpdateTime
            | Self::EndTime
            | Self::ExpireTime => ScalarType::Time,
            Self::Attempt => ScalarType::Integer,
        }
    }

    /// Returns the value, or `None` if it is not set (yet).
    pub(crate) fn value(self, operation: &Operation) -> Option<FieldValue<'_>> {
        let time = |time: Timestamp| FieldValue::Time(time.nanos().into());
        Some(match self {
            Self::Name => FieldValue::Text(operation.name()),
            Self::Done | Self::State => self.value_in_state(operation.state())?,
            Self::Queue => FieldValue::Text(operation.queue().map_or("", |queue| queue.as_str())),
            Self::Method => FieldValue::Text(operation.method()),
            Self::CreateTime => time(operation.create_time()),
            Self::StartTime => time(operation.start_time()?),
            Self::UpdateTime => time(operation.update_time()),
            Self::EndTime => time(operation.end_time()?),
            Self::ExpireTime => time(operation.end_time()? + operation.options().retention),
            Self::Attempt => FieldValue::Integer(operation.attempt().into()),
            Self::CancelRequested => FieldValue::Bool(operation.cancel_requested()),
        })
    }

    /// Returns the value in a state, or `None` if the value depends on more than the state.
    pub(crate) fn value_in_state(self, state: State) -> Option<FieldValue<'static>> {
        match self {
            Self::Done => {
                let is_done = !matches!(state, State::Pending | State::Running);
                Some(FieldValue::Bool(is_done))
            }
            Self::State => Some(FieldValue::Enum(state.as_str_name())),
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
