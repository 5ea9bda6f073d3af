//! What workers get to see: leases and directives, made from operations. When
//! they get them is decided in `worker`.

use crate::{
    clock::{Timestamp, proto_duration},
    error::Error,
    operation::{self, lease::LeaseToken, operation::Operation, payload::Payload},
    proto::longrunning::v1::{Directive, Lease, directive::Kind},
    store::directives::{News, Notice},
};

/// The lease of an operation, for its holder; none if nobody has one, or it is
/// over.
pub(super) fn lease_of(operation: &Operation, now: Timestamp) -> Option<Lease> {
    let lease = operation.lease().filter(|lease| now < lease.until)?;
    let any = |payload: Option<&Payload>| payload.map(|payload| payload.any().clone());
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Some(Lease {
        name: operation.name().to_owned(),
        lease_token: lease.token.as_bytes().to_vec(),
        attempt: i32::try_from(operation.attempt()).unwrap_or(i32::MAX),
        lease_remaining: Some(proto_duration(lease.until.since(now))),
        attempt_remaining: lease
            .attempt_until()
            .map(|at| proto_duration(at.since(now))),
        input: any(operation.input()),
        checkpoint: any(operation.checkpoint()),
        cancel_requested: operation.cancel_requested(),
        labels: operation.labels().iter().map(owned).collect(),
        queue: operation
            .queue()
            .map_or_else(String::new, ToString::to_string),
        method: operation.method().to_owned(),
        trace_context: operation.trace_context().iter().map(owned).collect(),
        cancel_grace: operation.terms().cancel_grace.map(proto_duration),
    })
}

/// What the holder of a lease that was renewed should do.
pub(super) fn renewed(operation: &Operation, now: Timestamp) -> Directive {
    let kind = if operation.cancel_requested() {
        Kind::CancelRequested
    } else if operation.is_hidden() {
        Kind::OperationDeleted
    } else {
        Kind::Continue
    };
    let token = operation.lease().map(|lease| lease.token);
    directive(operation, token, kind, now)
}

/// A lease that is not held any more.
pub(super) fn lost(name: String, lease_token: Vec<u8>, error: Error) -> Directive {
    Directive {
        name,
        lease_token,
        kind: Kind::LeaseLost.into(),
        error: Some(error.into()),
        ..Directive::default()
    }
}

/// A message that concerns the whole worker.
pub(super) fn to_worker(kind: Kind) -> Directive {
    Directive {
        kind: kind.into(),
        ..Directive::default()
    }
}

/// The directive that a notice becomes.
pub(super) fn noticed(notice: &Notice, now: Timestamp) -> Directive {
    let kind = match notice.news {
        News::CancelRequested => Kind::CancelRequested,
        News::Deleted => Kind::OperationDeleted,
        News::Lost => Kind::LeaseLost,
    };
    directive(&notice.operation, Some(notice.token), kind, now)
}

fn directive(
    operation: &Operation,
    token: Option<LeaseToken>,
    kind: Kind,
    now: Timestamp,
) -> Directive {
    let lease = operation.lease().filter(|lease| Some(lease.token) == token);
    let cancel_until = lease.and_then(operation::lease::Lease::cancel_until);
    Directive {
        name: operation.name().to_owned(),
        lease_token: token.map_or_else(Vec::new, |token| token.as_bytes().to_vec()),
        kind: kind.into(),
        lease_remaining: lease.map(|lease| proto_duration(lease.until.since(now))),
        cancel_grace_remaining: cancel_until.map(|at| proto_duration(at.since(now))),
        error: None,
    }
}
