//! Converts operations to the leases and directives that workers receive.

use crate::{
    clock::{Timestamp, to_proto_duration},
    error::Error,
    operation::{self, Operation, lease::LeaseToken, payload::Payload},
    proto::longrunning::v1::{Directive, Lease, directive::Kind},
    store::directives::{LeaseDirective, LeaseDirectiveKind},
};

/// Returns the current lease, or `None` if it expired or the operation is not leased.
pub(super) fn to_proto_lease(operation: &Operation, now: Timestamp) -> Option<Lease> {
    let lease = operation.lease().filter(|lease| !lease.is_expired(now))?;
    let to_any = |payload: Option<&Payload>| payload.map(|payload| payload.any().clone());
    let remaining = |at: Timestamp| to_proto_duration(at.since(now));
    let to_owned_pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let trace_context = operation.trace_context();
    let cancel_grace_period = operation.options().cancel_grace_period;
    Some(Lease {
        name: operation.name().to_owned(),
        lease_token: lease.token.as_bytes().to_vec(),
        attempt: i32::try_from(operation.attempt()).unwrap_or(i32::MAX),
        lease_remaining: Some(remaining(lease.expires_at)),
        attempt_remaining: match lease.attempt_deadline() {
            Some(deadline) => Some(remaining(deadline)),
            // The attempt begins when the worker confirms the lease.
            None => operation.options().attempt_timeout.map(to_proto_duration),
        },
        input: to_any(operation.input()),
        checkpoint: to_any(operation.checkpoint()),
        cancel_requested: operation.cancel_requested(),
        labels: operation.labels().iter().map(to_owned_pair).collect(),
        queue: operation
            .queue()
            .map(ToString::to_string)
            .unwrap_or_default(),
        method: operation.method().to_owned(),
        trace_context: trace_context.iter().map(to_owned_pair).collect(),
        cancel_grace_period: cancel_grace_period.map(to_proto_duration),
    })
}

/// Returns the directive for a renewed lease.
pub(super) fn renewed_directive(operation: &Operation, now: Timestamp) -> Directive {
    let kind = if operation.cancel_requested() {
        Kind::CancelRequested
    } else if operation.is_deleted() {
        Kind::OperationDeleted
    } else {
        Kind::Continue
    };
    let token = operation.lease().map(|lease| lease.token);
    build_directive(operation, token, kind, now)
}

/// Returns the directive for a lost lease.
pub(super) fn lease_lost_directive(name: String, lease_token: Vec<u8>, error: Error) -> Directive {
    Directive {
        name,
        lease_token,
        kind: Kind::LeaseLost.into(),
        error: Some(error.into()),
        ..Directive::default()
    }
}

/// Returns a directive for the whole worker, without a lease.
pub(super) fn worker_directive(kind: Kind) -> Directive {
    Directive {
        kind: kind.into(),
        ..Directive::default()
    }
}

pub(super) fn to_proto_directive(directive: &LeaseDirective, now: Timestamp) -> Directive {
    let kind = match directive.kind {
        LeaseDirectiveKind::CancelRequested => Kind::CancelRequested,
        LeaseDirectiveKind::Deleted => Kind::OperationDeleted,
        LeaseDirectiveKind::LeaseLost => Kind::LeaseLost,
    };
    build_directive(&directive.operation, Some(directive.token), kind, now)
}

fn build_directive(
    operation: &Operation,
    token: Option<LeaseToken>,
    kind: Kind,
    now: Timestamp,
) -> Directive {
    let lease = operation.lease().filter(|lease| Some(lease.token) == token);
    let cancel_deadline = lease.and_then(operation::lease::Lease::cancel_deadline);
    Directive {
        name: operation.name().to_owned(),
        lease_token: token.map_or_else(Vec::new, |token| token.as_bytes().to_vec()),
        kind: kind.into(),
        lease_remaining: lease.map(|lease| to_proto_duration(lease.expires_at.since(now))),
        cancel_grace_remaining: cancel_deadline.map(|at| to_proto_duration(at.since(now))),
        error: None,
    }
}
