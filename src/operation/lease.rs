//! Leases: the right of one worker to execute one operation for a while. When
//! a lease may be taken or lost is decided in `stage`.

use std::{fmt, sync::Arc};

use uuid::Uuid;

use crate::clock::Timestamp;

/// Proves that a worker holds the current lease: opaque, new at every
/// acquisition, the same over renewals.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseToken(Uuid);

/// Who works, in the words of the worker: for people, not a proof of anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(Arc<str>);

/// A worker has no proper id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a worker_id has 1 to 255 bytes and no control characters; use one that no other worker has, such as host-7/4711"
)]
pub struct InvalidWorkerId;

/// A lease that is held.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Must come with everything that the holder says.
    pub token: LeaseToken,
    /// Who holds it.
    pub holder: WorkerId,
    /// When it is over, unless renewed.
    pub expires_at: Timestamp,
    /// When the attempt is over, however often the lease is renewed.
    pub(super) attempt_deadline: Option<Timestamp>,
    /// When a cancellation that was asked for is closed by the server.
    pub(super) cancel_deadline: Option<Timestamp>,
}

// === impl Lease ===

impl Lease {
    /// Whether the holder has been silent too long.
    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }

    /// The first moment at which something becomes due.
    pub(crate) fn next_deadline(&self) -> Timestamp {
        let deadlines = [self.attempt_deadline, self.cancel_deadline];
        deadlines
            .into_iter()
            .flatten()
            .fold(self.expires_at, Timestamp::min)
    }

    /// When the attempt is over, however often the lease is renewed; none for
    /// no limit.
    pub fn attempt_deadline(&self) -> Option<Timestamp> {
        self.attempt_deadline
    }

    /// When the server closes an operation that was cancelled; none while it
    /// was not, and where it waits for the worker.
    pub fn cancel_deadline(&self) -> Option<Timestamp> {
        self.cancel_deadline
    }
}

// === impl LeaseToken ===

impl LeaseToken {
    /// A token that nobody had before and nobody can guess.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The token as it goes over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The token that came over the wire; none if it cannot be one of ours.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }

    /// A number in 0.0..1.0 that is different for every lease: the source of
    /// jitter, so that the state machine draws no random numbers.
    pub(crate) fn jitter_fraction(self) -> f64 {
        let high = self.0.as_u64_pair().0 >> 32;
        f64::from(u32::try_from(high).unwrap_or(u32::MAX)) / (f64::from(u32::MAX) + 1.0)
    }
}

impl fmt::Debug for LeaseToken {
    /// Tokens are secrets between the server and one worker.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseToken(…)")
    }
}

// === impl WorkerId ===

impl WorkerId {
    /// Any text that helps people to find the worker; at most 255 bytes are kept.
    pub fn new(text: &str) -> Self {
        Self(text[..text.floor_char_boundary(255)].into())
    }

    /// The id of a worker elsewhere.
    ///
    /// # Errors
    /// [`InvalidWorkerId`] unless it has 1 to 255 bytes and no control
    /// characters, which would be lines of their own in logs and tables.
    pub fn parse(text: &str) -> Result<Self, InvalidWorkerId> {
        if (1..=255).contains(&text.len()) && !text.contains(char::is_control) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidWorkerId)
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
