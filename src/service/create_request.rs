//! Conversions between `longrunning.v1.CreateOperationRequest` and [`NewOperation`].

use std::time::{Duration, SystemTime};

use super::{
    new_operation::{Execution, NewOperation},
    request_params::parse_duration_field,
};
use crate::{
    clock::{is_valid_timestamp, to_proto_duration},
    error::{Error, Result},
    operation::{lease::WorkerId, retry::RetryPolicy},
    proto::longrunning::v1::{
        self, CreateOperationRequest,
        create_operation_request::{self as request, Queued, SelfExecuted},
    },
};

impl TryFrom<CreateOperationRequest> for NewOperation {
    type Error = Error;

    fn try_from(request: CreateOperationRequest) -> Result<Self> {
        let (execution, priority) = parse_execution(request.execution)?;
        if let (Execution::SelfExecuted { .. }, Some(_)) = (&execution, &request.retry_policy) {
            return Err(invalid_retry_policy(
                "a self-executed operation has one attempt; leave retry_policy unset",
            ));
        }
        let parse_duration = |field, time| parse_duration_field(field, "INVALID_DURATION", time);
        let non_empty = |text: String| (!text.is_empty()).then_some(text);
        Ok(Self {
            parent: request.parent,
            id: non_empty(request.operation_id),
            request_id: non_empty(request.request_id),
            metadata: request.metadata,
            method: request.method,
            labels: request.labels.into_iter().collect(),
            trace_context: request.trace_context.into_iter().collect(),
            priority,
            total_timeout: parse_duration("total_timeout", request.total_timeout)?,
            attempt_timeout: parse_duration("attempt_timeout", request.attempt_timeout)?,
            lease_duration: parse_duration("lease_duration", request.lease_duration)?,
            retry_policy: request.retry_policy.map(parse_retry_policy).transpose()?,
            retention: parse_duration("retention", request.retention)?,
            cancel_grace_period: parse_duration(
                "cancel_grace_period",
                request.cancel_grace_period,
            )?,
            ..Self::new(execution)
        })
    }
}

impl From<NewOperation> for CreateOperationRequest {
    fn from(operation: NewOperation) -> Self {
        let optional_duration = |time: Option<Duration>| time.map(to_proto_duration);
        let execution = match operation.execution {
            Execution::SelfExecuted { worker_id } => {
                request::Execution::SelfExecuted(SelfExecuted { worker_id })
            }
            Execution::Queued {
                queue,
                input,
                not_before,
            } => request::Execution::Queued(Queued {
                queue,
                input,
                priority: operation.priority.unwrap_or_default(),
                not_before: not_before.map(Into::into),
            }),
        };
        Self {
            parent: operation.parent,
            operation_id: operation.id.unwrap_or_default(),
            request_id: operation.request_id.unwrap_or_default(),
            metadata: operation.metadata,
            method: operation.method,
            labels: operation.labels.into_iter().collect(),
            execution: Some(execution),
            total_timeout: optional_duration(operation.total_timeout),
            attempt_timeout: optional_duration(operation.attempt_timeout),
            lease_duration: optional_duration(operation.lease_duration),
            retry_policy: operation.retry_policy.map(|policy| v1::RetryPolicy {
                max_attempts: i32::try_from(policy.max_attempts).unwrap_or(i32::MAX),
                initial_backoff: Some(to_proto_duration(policy.initial_backoff)),
                max_backoff: Some(to_proto_duration(policy.max_backoff)),
                multiplier: Some(policy.multiplier),
                jitter: Some(policy.jitter),
                max_worker_losses: Some(
                    i32::try_from(policy.max_worker_losses).unwrap_or(i32::MAX),
                ),
            }),
            retention: optional_duration(operation.retention),
            cancel_grace_period: optional_duration(operation.cancel_grace_period),
            trace_context: operation.trace_context.into_iter().collect(),
        }
    }
}

fn parse_execution(execution: Option<request::Execution>) -> Result<(Execution, Option<i32>)> {
    match execution {
        Some(request::Execution::SelfExecuted(SelfExecuted { worker_id })) => {
            WorkerId::parse(&worker_id)?;
            Ok((Execution::SelfExecuted { worker_id }, None))
        }
        Some(request::Execution::Queued(queued)) => {
            let execution = Execution::Queued {
                queue: queued.queue,
                input: queued.input,
                not_before: queued.not_before.map(parse_not_before).transpose()?,
            };
            Ok((execution, (queued.priority != 0).then_some(queued.priority)))
        }
        None => {
            let message = "no execution is set; set self_executed or queued";
            Err(Error::invalid("execution", "INVALID_EXECUTION", message))
        }
    }
}

fn parse_not_before(time: prost_types::Timestamp) -> Result<SystemTime> {
    let message = "must be in the years 1 to 9999";
    let invalid = || Error::invalid("not_before", "INVALID_TIME", message);
    if !is_valid_timestamp(&time) {
        return Err(invalid());
    }
    time.try_into().map_err(|_| invalid())
}

fn parse_retry_policy(policy: v1::RetryPolicy) -> Result<RetryPolicy> {
    let defaults = RetryPolicy::default();
    let max_attempts = match u32::try_from(policy.max_attempts) {
        Ok(0) => defaults.max_attempts,
        Ok(attempts) => attempts,
        Err(_) => return Err(invalid_retry_policy("max_attempts must be at least 1")),
    };
    let max_worker_losses = match policy.max_worker_losses.map(u32::try_from) {
        None => defaults.max_worker_losses,
        Some(Ok(losses)) => losses,
        Some(Err(_)) => {
            return Err(invalid_retry_policy(
                "max_worker_losses must not be negative; 0 means never",
            ));
        }
    };
    let parse_backoff = |time| parse_duration_field("retry_policy", "INVALID_DURATION", time);
    let initial_backoff =
        parse_backoff(policy.initial_backoff)?.unwrap_or(defaults.initial_backoff);
    Ok(RetryPolicy {
        max_attempts,
        initial_backoff,
        // A long initial backoff alone raises the default maximum.
        max_backoff: parse_backoff(policy.max_backoff)?
            .unwrap_or_else(|| defaults.max_backoff.max(initial_backoff)),
        multiplier: policy.multiplier.unwrap_or(defaults.multiplier),
        jitter: policy.jitter.unwrap_or(defaults.jitter),
        max_worker_losses,
    })
}

fn invalid_retry_policy(message: &str) -> Error {
    Error::invalid("retry_policy", "INVALID_EXECUTION_OPTIONS", message)
}
