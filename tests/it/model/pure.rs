//! The server, said again as data: a map of operations, plain states, times in
//! milliseconds. Written from BEHAVIOUR §§3 to 5 and `worker.proto`, without a
//! line of the server's. When time is looked at is in `looks`.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    answers::{Answer, Directive, Lease, Outcome, Proof, Refused, Shown},
    operation::{At, LEASE, Operation},
    steps::{End, Report, Spec},
};

/// The server.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// The wall time at its start, in nanoseconds.
    pub(super) wall: i64,
    /// Milliseconds since its start.
    pub(super) now: i64,
    /// By number, which only grows.
    pub(super) operations: BTreeMap<u64, Operation>,
    next_number: u64,
    /// How many leases there ever were. A lease is known by its number.
    pub(super) grants: usize,
    /// What came of requests with an id.
    requests: BTreeMap<(String, u8), u64>,
}

// === impl Model ===

impl Model {
    pub(super) fn new(wall: i64) -> Self {
        Self {
            wall,
            now: 0,
            operations: BTreeMap::new(),
            next_number: 0,
            grants: 0,
            requests: BTreeMap::new(),
        }
    }

    /// The operation of a name, also if clients do not see it.
    pub(super) fn find(&self, name: &str) -> Option<u64> {
        let mut found = (self.operations.iter()).filter(|(_, one)| one.spec.name() == name);
        found.next().map(|(number, _)| *number)
    }

    fn visible(&self, name: &str) -> Result<u64, Refused> {
        self.find(name)
            .filter(|number| !self.operations[number].hidden)
            .ok_or("OPERATION_NOT_FOUND")
    }

    /// What Get says, and Wait that does not wait.
    pub(super) fn get(&self, name: &str) -> Result<Answer, Refused> {
        let number = self.visible(name)?;
        Ok(Answer::Operation(self.operations[&number].shown()))
    }

    /// All that clients see of a collection, newest first.
    pub(super) fn list(&self, parent: &str) -> Vec<Shown> {
        let newest = self.operations.values().rev();
        let listed = newest.filter(|one| !one.hidden && one.spec.parent == parent);
        listed.map(Operation::shown).collect()
    }

    pub(super) fn create(&mut self, spec: &Spec) -> Result<Answer, Refused> {
        let key = spec.request.map(|id| (spec.parent.to_owned(), id));
        if let Some(number) = key.as_ref().and_then(|key| self.requests.get(key)) {
            let first = &self.operations[number];
            if !first.spec.is_same(spec) {
                return Err("REQUEST_ID_REUSED");
            }
            let is_live = |at: &At| matches!(at, At::Held { until, .. } if self.now < *until);
            // Another instance of the creator does not get it.
            let is_its = spec.queue.is_none() && spec.worker == first.spec.worker;
            let has_lease = is_its && is_live(&first.at);
            return Ok(Answer::Created {
                operation: first.shown(),
                lease: has_lease.then(|| first.lease(self.now)),
                reused: true,
            });
        }
        if self.find(&spec.name()).is_some() {
            return Err("OPERATION_EXISTS");
        }
        let number = self.next_number;
        self.next_number += 1;
        if let Some(key) = key {
            self.requests.insert(key, number);
        }
        let ready = spec.not_before.unwrap_or(self.now).max(self.now);
        let mut operation = Operation {
            spec: spec.clone(),
            created: self.now,
            started: None,
            updated: self.now,
            attempt: 0,
            counted: 0,
            asked: false,
            hidden: false,
            at: At::Waiting { ready },
            offered: ready <= self.now,
            report: Report {
                metadata: spec.metadata,
                ..Report::default()
            },
            looks: BTreeSet::new(),
        };
        if spec.queue.is_none() {
            operation.hold(self.grants, self.now);
            self.grants += 1;
        }
        let answer = Answer::Created {
            operation: operation.shown(),
            lease: spec.queue.is_none().then(|| operation.lease(self.now)),
            reused: false,
        };
        self.operations.insert(number, operation);
        self.arm(number, None);
        Ok(answer)
    }

    pub(super) fn lease(&mut self, queues: &[&str], most: usize) -> Vec<Lease> {
        let mut leased = Vec::new();
        // Those whose time was over when they were taken are no leases.
        while leased.is_empty() {
            let mut ready: Vec<_> = (self.operations.iter())
                .filter(|(_, one)| one.offered && one.spec.is_in(queues))
                .map(|(number, one)| (-one.spec.priority, *number))
                .collect();
            ready.sort_unstable();
            if ready.is_empty() {
                break;
            }
            for (_, number) in ready.into_iter().take(most.max(1)) {
                let (grant, now) = (self.grants, self.now);
                let lease = self.change(number, |one| {
                    if one.is_too_late(now) {
                        one.end(Outcome::Server(4, "TOTAL_TIMEOUT"), now);
                        return None;
                    }
                    one.hold(grant, now);
                    Some(one.lease(now))
                });
                self.grants += usize::from(lease.is_some());
                leased.extend(lease);
            }
        }
        leased
    }

    /// Whether the one who speaks holds the lease.
    fn held(&self, name: &str, proof: Proof) -> Result<u64, Refused> {
        match proof {
            Proof::Empty => return Err("INVALID_LEASE_TOKEN"),
            Proof::Malformed => return Err("LEASE_LOST"),
            Proof::Grant(_) | Proof::Unknown => {}
        }
        let number = self.find(name).ok_or("OPERATION_NOT_FOUND")?;
        match (&self.operations[&number].at, proof) {
            (At::Done(_), _) => Err("OPERATION_DONE"),
            (At::Held { grant, until, .. }, Proof::Grant(proof))
                if *grant == proof && self.now < *until =>
            {
                Ok(number)
            }
            _ => Err("LEASE_LOST"),
        }
    }

    /// One report of a heartbeat; with it, how long leases of the operation last.
    pub(super) fn renew(
        &mut self,
        name: &str,
        proof: Proof,
        report: &Report,
    ) -> (Directive, Option<i64>) {
        let number = match self.held(name, proof) {
            Ok(number) => number,
            Err(reason) => {
                let lost = Directive {
                    kind: "LEASE_LOST",
                    remaining: None,
                    grace_remaining: None,
                    error: Some(reason),
                };
                return (lost, None);
            }
        };
        let now = self.now;
        self.change(number, |one| {
            // To say again what is known is no news.
            let before = one.report.clone();
            one.report.update(report);
            if one.report != before {
                one.updated = now;
            }
            let length = one.spec.lease.unwrap_or(LEASE);
            let mut grace_remaining = None;
            if let At::Held {
                until,
                cancel_until,
                ..
            } = &mut one.at
            {
                *until = now + length;
                grace_remaining = cancel_until.map(|at| (at - now).max(0));
            }
            let kind = match (one.asked, one.hidden) {
                (true, _) => "CANCEL_REQUESTED",
                (false, true) => "OPERATION_DELETED",
                (false, false) => "CONTINUE",
            };
            let directive = Directive {
                kind,
                remaining: Some(length),
                grace_remaining,
                error: None,
            };
            (directive, Some(length))
        })
    }

    pub(super) fn finish(
        &mut self,
        name: &str,
        proof: Proof,
        end: End,
        metadata: Option<u8>,
    ) -> Result<Answer, Refused> {
        let number = match self.held(name, proof) {
            // Saying the same again is fine, whoever says it.
            Err("OPERATION_DONE") if let Some(same) = self.same(name, end) => return Ok(same),
            held => held?,
        };
        let now = self.now;
        let shown = self.change(number, |one| {
            one.report.metadata = metadata.or(one.report.metadata);
            match end {
                End::Release
                | End::Failure {
                    retryable: true, ..
                } if one.asked => {
                    one.end(Outcome::Server(1, "OPERATION_CANCELLED"), now);
                }
                End::Response(text) => one.end(Outcome::Response(text), now),
                End::Failure {
                    code,
                    message,
                    retryable: false,
                    ..
                } => one.end(Outcome::Said { code, message }, now),
                End::Failure {
                    code,
                    message,
                    retry_after,
                    ..
                } => one.fail(Outcome::Said { code, message }, retry_after, now),
                End::Release if one.spec.queue.is_none() => {
                    one.end(Outcome::Server(14, "WORKER_LOST"), now);
                }
                End::Release => {
                    one.counted -= 1;
                    one.wait(now, now);
                }
            }
            one.shown()
        });
        Ok(Answer::Operation(shown))
    }

    fn same(&self, name: &str, end: End) -> Option<Answer> {
        let one = &self.operations[&self.find(name)?];
        let outcome = match end {
            End::Response(text) => Outcome::Response(text),
            End::Failure { code, message, .. } => Outcome::Said { code, message },
            End::Release => return None,
        };
        (one.at == At::Done(outcome)).then(|| Answer::Operation(one.shown()))
    }

    pub(super) fn cancel(&mut self, name: &str) -> Result<Answer, Refused> {
        let (number, now) = (self.visible(name)?, self.now);
        self.change(number, |one| {
            let grace = one.spec.grace;
            match &mut one.at {
                At::Waiting { .. } => {
                    one.asked = true;
                    one.end(Outcome::Server(1, "OPERATION_CANCELLED"), now);
                }
                At::Held { cancel_until, .. } if !one.asked => {
                    *cancel_until = grace.map(|grace| now + grace);
                    (one.asked, one.updated) = (true, now);
                }
                At::Held { .. } | At::Done(_) => {}
            }
        });
        Ok(Answer::Nothing)
    }

    pub(super) fn delete(&mut self, name: &str) -> Result<Answer, Refused> {
        let (number, now) = (self.visible(name)?, self.now);
        self.change(number, |one| (one.hidden, one.updated) = (true, now));
        Ok(Answer::Nothing)
    }

    /// Changes an operation, and keeps everything else in step with it.
    pub(super) fn change<T>(&mut self, number: u64, by: impl FnOnce(&mut Operation) -> T) -> T {
        let one = self.operations.get_mut(&number).expect("it is there");
        let due = one.due(self.now);
        let result = by(one);
        if one.hidden {
            self.requests.retain(|_, made| *made != number);
        }
        if one.hidden && matches!(one.at, At::Done(_)) {
            self.operations.remove(&number);
        } else {
            self.arm(number, Some(due));
        }
        result
    }

    pub(super) fn forget(&mut self, number: u64) {
        self.operations.remove(&number);
        self.requests.retain(|_, made| *made != number);
    }
}
