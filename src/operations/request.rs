//! longrunning.v1.CreateOperationRequest, read into a `NewOperation` and written
//! from one. Most values are checked later, where a creation is.

use std::time::{Duration, SystemTime};

use super::creation::{Execution, NewOperation};
use crate::{
    clock::{is_proper, parse_duration, proto_duration},
    error::{Error, Result},
    operation::{lease::WorkerId, retry::RetryPolicy},
    proto::longrunning::v1::{
        self, CreateOperationRequest,
        create_operation_request::{self as request, Queued, SelfExecuted},
    },
};

impl TryFrom<CreateOperationRequest> for NewOperation {
    type Error = Error;

    fn try_from(asked: CreateOperationRequest) -> Result<Self> {
        let (execution, priority) = execution(asked.execution)?;
        if let (Execution::Creator { .. }, Some(_)) = (&execution, &asked.retry_policy) {
            let rule = "a self-executed operation has one attempt; leave the policy out";
            return Err(Error::invalid("retry_policy", "INVALID_TERMS", rule));
        }
        let text = |text: String| (!text.is_empty()).then_some(text);
        Ok(Self {
            parent: asked.parent,
            id: text(asked.operation_id),
            request_id: text(asked.request_id),
            metadata: asked.metadata,
            method: asked.method,
            labels: asked.labels.into_iter().collect(),
            trace_context: asked.trace_context.into_iter().collect(),
            priority,
            total_timeout: duration("total_timeout", asked.total_timeout)?,
            attempt_timeout: duration("attempt_timeout", asked.attempt_timeout)?,
            lease_duration: duration("lease_duration", asked.lease_duration)?,
            retry: asked.retry_policy.map(retry).transpose()?,
            retention: duration("retention", asked.retention)?,
            cancel_grace: duration("cancel_grace", asked.cancel_grace)?,
            ..Self::new(execution)
        })
    }
}

impl From<NewOperation> for CreateOperationRequest {
    fn from(new: NewOperation) -> Self {
        let duration = |time: Option<Duration>| time.map(proto_duration);
        let execution = match new.execution {
            Execution::Creator { worker } => {
                request::Execution::SelfExecuted(SelfExecuted { worker_id: worker })
            }
            Execution::Queue {
                queue,
                input,
                not_before,
            } => request::Execution::Queued(Queued {
                queue,
                input,
                priority: new.priority.unwrap_or_default(),
                not_before: not_before.map(Into::into),
            }),
        };
        Self {
            parent: new.parent,
            operation_id: new.id.unwrap_or_default(),
            request_id: new.request_id.unwrap_or_default(),
            metadata: new.metadata,
            method: new.method,
            labels: new.labels.into_iter().collect(),
            execution: Some(execution),
            total_timeout: duration(new.total_timeout),
            attempt_timeout: duration(new.attempt_timeout),
            lease_duration: duration(new.lease_duration),
            retry_policy: new.retry.map(|policy| v1::RetryPolicy {
                max_attempts: i32::try_from(policy.max_attempts).unwrap_or(i32::MAX),
                initial_backoff: Some(proto_duration(policy.initial_backoff)),
                max_backoff: Some(proto_duration(policy.max_backoff)),
                multiplier: Some(policy.multiplier),
                jitter: Some(policy.jitter),
            }),
            retention: duration(new.retention),
            cancel_grace: duration(new.cancel_grace),
            trace_context: new.trace_context.into_iter().collect(),
        }
    }
}

fn execution(asked: Option<request::Execution>) -> Result<(Execution, Option<i32>)> {
    match asked {
        Some(request::Execution::SelfExecuted(SelfExecuted { worker_id })) => {
            WorkerId::parse(&worker_id)?;
            Ok((Execution::Creator { worker: worker_id }, None))
        }
        Some(request::Execution::Queued(queued)) => {
            let execution = Execution::Queue {
                queue: queued.queue,
                input: queued.input,
                not_before: queued.not_before.map(not_before).transpose()?,
            };
            Ok((execution, (queued.priority != 0).then_some(queued.priority)))
        }
        None => {
            let rule = "say who does the work: set self_executed or queued";
            Err(Error::invalid("execution", "INVALID_EXECUTION", rule))
        }
    }
}

fn not_before(time: prost_types::Timestamp) -> Result<SystemTime> {
    let time = is_proper(&time).then(|| SystemTime::try_from(time).ok());
    let time = time.flatten();
    time.ok_or_else(|| {
        let rule = "it is not a time between the years 1 and 9999";
        Error::invalid("not_before", "INVALID_TIME", rule)
    })
}

fn retry(asked: v1::RetryPolicy) -> Result<RetryPolicy> {
    let usual = RetryPolicy::default();
    let max_attempts = match u32::try_from(asked.max_attempts) {
        Ok(0) => usual.max_attempts,
        Ok(attempts) => attempts,
        Err(_) => {
            let rule = "max_attempts must be at least 1";
            return Err(Error::invalid("retry_policy", "INVALID_TERMS", rule));
        }
    };
    let pause = |time| duration("retry_policy", time);
    let initial_backoff = pause(asked.initial_backoff)?.unwrap_or(usual.initial_backoff);
    Ok(RetryPolicy {
        max_attempts,
        initial_backoff,
        // A long first pause alone is no contradiction.
        max_backoff: pause(asked.max_backoff)?
            .unwrap_or_else(|| usual.max_backoff.max(initial_backoff)),
        multiplier: asked.multiplier.unwrap_or(usual.multiplier),
        jitter: asked.jitter.unwrap_or(usual.jitter),
    })
}

fn duration(field: &'static str, time: Option<prost_types::Duration>) -> Result<Option<Duration>> {
    let invalid = |error| Error::invalid(field, "INVALID_DURATION", error);
    time.map(|time| parse_duration(time).map_err(invalid))
        .transpose()
}
