//! What must hold whatever the model says, seen from the answers of the real
//! service alone: one outcome that stays, attempts that grow, one lease at once.

use std::collections::{BTreeMap, BTreeSet};

use super::responses::{ModelLease, ModelMetadata, ModelResponse, ModelSnapshot};

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// By name: how it ended.
    done: BTreeMap<String, ModelSnapshot>,
    leases: BTreeSet<usize>,
    /// By name: the attempt of the latest lease, and until when it lasts.
    live: BTreeMap<String, (i32, i64)>,
}

// === impl Witness ===

impl Witness {
    /// What clients see never takes back an outcome.
    pub(super) fn see(&mut self, list: &[ModelSnapshot]) -> Result<(), String> {
        for shown in list {
            match self.done.get(&shown.name) {
                Some(done) if done != shown => {
                    return Err(format!("{done:?} changed to {shown:?}"));
                }
                Some(_) => {}
                None if shown.outcome.is_some() => {
                    self.live.remove(&shown.name);
                    self.done.insert(shown.name.clone(), shown.clone());
                }
                None => {}
            }
        }
        Ok(())
    }

    pub(super) fn hear(&mut self, answer: &ModelResponse, now: i64) -> Result<(), String> {
        match answer {
            ModelResponse::Leases(leases) => {
                leases.iter().try_for_each(|lease| self.granted(lease, now))
            }
            ModelResponse::Created {
                operation,
                lease,
                already_existed: false,
            } => {
                // The name may be that of one that is gone.
                self.live.remove(&operation.name);
                self.done.remove(&operation.name);
                let mut leases = lease.iter();
                leases.try_for_each(|lease| self.granted(lease, now))
            }
            // Whoever finished or gave back holds it no longer.
            ModelResponse::Operation(ModelSnapshot {
                name,
                metadata:
                    ModelMetadata::Standard {
                        state: "PENDING", ..
                    }
                    | ModelMetadata::Custom(_),
                ..
            }) => {
                self.live.remove(name);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn granted(&mut self, lease: &ModelLease, now: i64) -> Result<(), String> {
        if !self.leases.insert(lease.lease_id) {
            return Err(format!("a token was handed out twice: {lease:?}"));
        }
        let remaining = lease.attempt_remaining_ms.unwrap_or(i64::MAX);
        let until = now + remaining.min(lease.remaining_ms);
        match self.live.insert(lease.name.clone(), (lease.attempt, until)) {
            Some((attempt, _)) if lease.attempt <= attempt => {
                Err(format!("the attempts do not grow: {lease:?}"))
            }
            Some((_, until)) if now < until => Err(format!("two leases at once: {lease:?}")),
            _ => Ok(()),
        }
    }
}
