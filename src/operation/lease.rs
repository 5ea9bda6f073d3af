//! Leases: the exclusive right of one worker to execute one operation until an
//! expiry time.

use std::{fmt, sync::Arc, time::Duration};

use uuid::Uuid;

use crate::clock::Timestamp;

/// An opaque secret that identifies one lease. Each acquisition makes a new token;
/// renewals retain it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseToken(Uuid);

/// The self-chosen id of a worker, of at most 255 bytes. It appears in logs and
/// authenticates nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(Arc<str>);

/// An invalid worker id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "worker_id must have 1 to 255 bytes and no control characters; use a unique one, such as host-7/4711"
)]
pub struct InvalidWorkerId;

/// A worker's lease of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// The token, required with each call of the holder.
    pub token: LeaseToken,
    /// The worker that holds the lease.
    pub holder: WorkerId,
    /// The start of the attempt: the confirmation of the lease, or its grant if the first call of its holder ended the
    /// attempt. While the lease is unconfirmed: its grant.
    pub start_time: Timestamp,
    /// The time at which the lease expires unless renewed.
    pub expires_at: Timestamp,
    /// The time by which its holder must confirm the lease by a call, or `None` if it is confirmed.
    pub(super) confirm_by: Option<Timestamp>,
    pub(super) attempt_deadline: Option<Timestamp>,
    pub(super) cancel_deadline: Option<Timestamp>,
}

// === impl Lease ===

impl Lease {
    /// Returns `true` if the lease was not confirmed or renewed in time.
    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.end() <= now
    }

    /// Returns `true` if its holder has called the server since the grant. Always `true` for in-process holders.
    pub fn is_confirmed(&self) -> bool {
        self.confirm_by.is_none()
    }

    /// Returns when the lease ends without a call of its holder.
    fn end(&self) -> Timestamp {
        self.confirm_by.unwrap_or(self.expires_at)
    }

    /// Returns the earliest of the end, the attempt deadline and the cancel deadline.
    pub(crate) fn next_deadline(&self) -> Timestamp {
        let deadlines = [self.attempt_deadline(), self.cancel_deadline];
        deadlines
            .into_iter()
            .flatten()
            .fold(self.end(), Timestamp::min)
    }

    /// Returns the end of the attempt, regardless of renewals, or `None` if it has
    /// no timeout or has not begun, because the lease is unconfirmed.
    pub fn attempt_deadline(&self) -> Option<Timestamp> {
        self.attempt_deadline.filter(|_| self.is_confirmed())
    }

    /// Prolongs a lease whose holder can reach the server again since `now`.
    pub(super) fn restart(&mut self, now: Timestamp, duration: Duration) {
        self.expires_at = self.expires_at.max(now + duration);
        if let Some(confirm_by) = &mut self.confirm_by {
            let window = confirm_by.since(self.start_time);
            *confirm_by = (*confirm_by).max(now + window);
        }
    }

    /// Returns the time at which the server finishes the operation as cancelled, or
    /// `None` if no cancellation was requested or there is no grace period.
    pub fn cancel_deadline(&self) -> Option<Timestamp> {
        self.cancel_deadline
    }
}

// === impl LeaseToken ===

impl LeaseToken {
    /// Makes a unique token that cannot be guessed.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Returns the 16 bytes of the token.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Parses a token. Returns `None` unless `bytes` has 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }

    /// Returns a number in 0.0..1.0 that differs per lease: a source of jitter that
    /// keeps the state machine deterministic.
    pub(crate) fn jitter_fraction(self) -> f64 {
        let high = self.0.as_u64_pair().0 >> 32;
        f64::from(u32::try_from(high).unwrap_or(u32::MAX)) / (f64::from(u32::MAX) + 1.0)
    }
}

impl fmt::Debug for LeaseToken {
    /// Omits the token, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseToken(…)")
    }
}

// === impl WorkerId ===

impl WorkerId {
    /// Takes any text, truncated to 255 bytes.
    pub fn new(text: &str) -> Self {
        Self(text[..text.floor_char_boundary(255)].into())
    }

    /// Parses the id of a remote worker.
    ///
    /// # Errors
    /// [`InvalidWorkerId`] unless it has 1 to 255 bytes and no control characters,
    /// which could forge lines in logs and tables.
    pub fn parse(text: &str) -> Result<Self, InvalidWorkerId> {
        if (1..=255).contains(&text.len()) && !text.contains(char::is_control) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidWorkerId)
        }
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
