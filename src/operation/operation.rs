//! The record of one operation: immutable, a new one for each change, with its
//! bytes encoded. How it may change is `stage`'s table; where it is kept is the
//! store's affair.

use std::{sync::Arc, time::Duration};

use prost_types::Any;

use super::{
    birth::{Birth, Request, Tags},
    labels::Labels,
    lease::Lease,
    metadata,
    name::OperationName,
    outcome::Outcome,
    payload::Payload,
    stage::{self, Ending, Event, Facts, Next, Refusal, Report, Stage},
    terms::{QueueName, Terms},
    trace::TraceContext,
    wire::{self, AnyRef, Wire},
};
use crate::{
    clock::Timestamp,
    proto::{
        google,
        longrunning::v1::{Progress, operation_metadata::State},
    },
};

/// One operation at one moment.
#[derive(Clone, Debug)]
pub struct Operation {
    pub(super) number: u64,
    pub(super) revision: u32,
    pub(super) attempt: u32,
    /// Attempts that were given back and do not count.
    pub(super) released: u32,
    pub(super) cancel_requested: bool,
    pub(super) hidden: bool,
    pub(super) create_time: Timestamp,
    pub(super) start_time: Option<Timestamp>,
    pub(super) update_time: Timestamp,
    pub(super) stage: Stage,
    pub(super) terms: Arc<Terms>,
    pub(super) tags: Option<Arc<Tags>>,
    pub(super) work: Option<Arc<Work>>,
    pub(super) wire: Wire,
}

/// Which record of an operation. Others of it are of another version, also those of a
/// database that lost what it had kept, and went on from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    revision: u32,
    update_time: Timestamp,
}

/// What is needed only until the operation is done; most have nothing of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Work {
    pub(super) input: Option<Payload>,
    pub(super) latest: Option<Box<Report>>,
}

/// What an event makes of an operation.
#[derive(Debug)]
pub(crate) enum Change {
    /// Nothing.
    Unchanged,
    /// This new record.
    Put(Operation),
    /// This new record, whose lease lasts longer and which is otherwise the same.
    Renew(Operation),
    /// The record goes away; this is how it ended, if it did so just now.
    Forget(Option<Operation>),
}

// === impl Work ===

impl Work {
    pub(super) fn shared(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}

// === impl Operation ===

impl Operation {
    pub(crate) fn new(birth: Birth, now: Timestamp) -> Self {
        let pending = Stage::Pending {
            ready: birth.not_before.unwrap_or(now).max(now),
        };
        let report = Report {
            metadata: birth.metadata,
            ..Report::default()
        };
        let mut operation = Self {
            number: birth.number,
            revision: 0,
            attempt: 0,
            released: 0,
            cancel_requested: false,
            hidden: false,
            create_time: now,
            start_time: None,
            update_time: now,
            stage: pending,
            terms: birth.terms,
            tags: birth.tags,
            work: Work {
                input: birth.input,
                latest: (report != Report::default()).then(|| Box::new(report)),
            }
            .shared(),
            wire: Wire::default(),
        };
        if let Some((token, worker)) = birth.holder {
            let facts = operation.facts(now, false);
            let claim = Event::Claim { token, worker };
            if let Ok(Next::To(stage)) = stage::next(&Stage::Pending { ready: now }, &claim, facts)
            {
                operation.enter(stage, now);
            }
        }
        operation.encode(birth.name.as_str(), None);
        operation
    }

    /// What `event` makes of this operation.
    pub(crate) fn apply(&self, event: &Event, now: Timestamp) -> Result<Change, Refusal> {
        let now = now.max(self.update_time);
        if *event == Event::Lapse && self.is_abandoned(now) {
            return Ok(Change::Forget(None));
        }
        let next = stage::next(&self.stage, event, self.facts(now, self.is_ended_by(event)))?;
        let mut changed = match next {
            Next::Same => return Ok(Change::Unchanged),
            Next::Forget => return Ok(Change::Forget(None)),
            Next::To(_) | Next::Note | Next::Done(_) => self.successor(now),
        };
        if let Event::RequestCancel = event {
            changed.cancel_requested = true;
        }
        if let Event::Release(..) = event {
            changed.released += 1;
        }
        // To say again what is known already is no news.
        let is_news = |report: &&Report| {
            let latest = self.latest();
            !latest.map_or_else(|| report.is_empty(), |latest| latest.knows(report))
        };
        let report = event.report().filter(is_news);
        if let Some(report) = report {
            changed.note(report);
        }
        match next {
            Next::To(stage) => changed.enter(stage, now),
            Next::Done(outcome) => return Ok(changed.end(self.name(), &outcome)),
            Next::Same | Next::Note | Next::Forget => {}
        }
        if matches!(event, Event::Renew(..)) && report.is_none() {
            // A sign of life changes nothing that clients see.
            changed.update_time = self.update_time;
            changed.wire = self.wire.clone();
            return Ok(Change::Renew(changed));
        }
        changed.encode(self.name(), None);
        Ok(Change::Put(changed))
    }

    /// Hides the operation from clients; it goes on, and is forgotten when done.
    pub(crate) fn delete(&self, now: Timestamp) -> Change {
        if self.is_done() {
            return Change::Forget(None);
        }
        Change::Put(Self {
            hidden: true,
            wire: self.wire.clone(),
            ..self.successor(now.max(self.update_time))
        })
    }

    /// The lease was renewed, which is all that is new in this revision.
    pub(crate) fn renew(&mut self, revision: u32, until: Timestamp) {
        self.revision = revision;
        if let Stage::Running(lease) | Stage::Cancelling(lease) = &mut self.stage {
            lease.until = until;
        }
    }

    /// Goes on after a restart: a lease gets its full time again, because its
    /// holder could not reach the server.
    pub(crate) fn resume(&mut self, now: Timestamp) {
        let until = now + self.terms.lease_duration;
        if let Stage::Running(lease) | Stage::Cancelling(lease) = &mut self.stage {
            lease.until = lease.until.max(until);
        }
    }

    /// The next moment, seen from `now`, at which time alone may change the
    /// operation or make it ready.
    pub(crate) fn deadline(&self, now: Timestamp) -> Timestamp {
        let total = self
            .terms
            .total_timeout
            .map(|timeout| self.create_time + timeout);
        let stage = match &self.stage {
            Stage::Pending { ready } if now < *ready => Some(*ready),
            Stage::Pending { .. } => None,
            Stage::Running(lease) | Stage::Cancelling(lease) => Some(lease.deadline()),
            Stage::Done(_) => return self.update_time + self.terms.retention,
        };
        let is_pending = matches!(self.stage, Stage::Pending { .. });
        let abandoned =
            (self.hidden && is_pending).then(|| self.update_time + self.terms.retention);
        let due = [stage, total, abandoned].into_iter().flatten();
        due.min().unwrap_or(Timestamp::from_nanos(i64::MAX))
    }

    /// Whether it was deleted, and no worker took it up in the time for which
    /// anybody would have kept its result.
    fn is_abandoned(&self, now: Timestamp) -> bool {
        let is_pending = matches!(self.stage, Stage::Pending { .. });
        self.hidden && is_pending && self.update_time + self.terms.retention <= now
    }

    /// Whether a worker may take it now.
    pub(crate) fn is_ready(&self, now: Timestamp) -> bool {
        matches!(self.stage, Stage::Pending { ready } if ready <= now)
    }

    fn facts(&self, now: Timestamp, same_outcome: bool) -> Facts<'_> {
        Facts {
            now,
            terms: &self.terms,
            create_time: self.create_time,
            update_time: self.update_time,
            attempts: self.attempt - self.released,
            same_outcome,
        }
    }

    fn is_ended_by(&self, event: &Event) -> bool {
        match event {
            _ if !self.is_done() => false,
            Event::Finish(_, outcome, _) => self.wire.ends_with(outcome),
            Event::Fail { error, .. } => self.wire.ends_with(&Outcome::Error(error.clone())),
            _ => false,
        }
    }

    fn successor(&self, now: Timestamp) -> Self {
        Self {
            number: self.number,
            revision: self.revision + 1,
            attempt: self.attempt,
            released: self.released,
            cancel_requested: self.cancel_requested,
            hidden: self.hidden,
            create_time: self.create_time,
            start_time: self.start_time,
            update_time: now,
            stage: self.stage.clone(),
            terms: self.terms.clone(),
            tags: self.tags.clone(),
            work: self.work.clone(),
            // Whoever asks for a successor fills it in.
            wire: Wire::default(),
        }
    }

    /// Enters a stage. A token that was not there before begins an attempt.
    fn enter(&mut self, stage: Stage, now: Timestamp) {
        let token = |stage: &Stage| stage.lease().map(|lease| lease.token);
        if token(&stage).is_some_and(|new| token(&self.stage) != Some(new)) {
            self.attempt += 1;
            self.start_time = self.start_time.or(Some(now));
        }
        self.stage = stage;
    }

    fn end(mut self, name: &str, outcome: &Outcome) -> Change {
        self.stage = Stage::Done(Ending::from(outcome));
        self.encode(name, Some(outcome));
        self.work = None;
        if self.hidden {
            Change::Forget(Some(self))
        } else {
            Change::Put(self)
        }
    }

    /// Takes over what a report says; what it leaves out stays.
    fn note(&mut self, report: &Report) {
        let mut work = self.work.as_deref().cloned().unwrap_or_default();
        work.latest.get_or_insert_default().update(report);
        self.work = work.shared();
    }

    fn encode(&mut self, name: &str, outcome: Option<&Outcome>) {
        let own = self.latest().and_then(|latest| latest.metadata.as_ref());
        self.wire = match own {
            Some(own) => {
                let Any { type_url, value } = own.any();
                Wire::encode(name, AnyRef { type_url, value }, outcome)
            }
            None => {
                let (type_url, value) = (metadata::TYPE_URL, &*metadata::encode(self));
                Wire::encode(name, AnyRef { type_url, value }, outcome)
            }
        };
    }

    fn latest(&self) -> Option<&Report> {
        self.work.as_ref()?.latest.as_deref()
    }

    // What everybody may ask.

    /// The full name.
    pub fn name(&self) -> &str {
        self.wire.name()
    }

    /// The full name, owned.
    pub fn owned_name(&self) -> OperationName {
        wire::owned_name(&self.wire)
    }

    /// The encoded `google.longrunning.Operation`.
    pub fn bytes(&self) -> &[u8] {
        self.wire.bytes()
    }

    /// The decoded `google.longrunning.Operation`.
    pub fn to_proto(&self) -> google::longrunning::Operation {
        wire::decode(self.bytes())
    }

    /// The parts of the encoded operation, for filters.
    pub(crate) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Whether it is over.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done(_))
    }

    /// Where it stands, as clients see it.
    pub fn state(&self) -> State {
        self.stage.state()
    }

    /// Where it stands, with the lease.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The lease, while somebody holds one.
    pub fn lease(&self) -> Option<&Lease> {
        self.stage.lease()
    }

    /// How often it changed.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Which record of the operation this is.
    pub fn version(&self) -> Version {
        Version {
            revision: self.revision,
            update_time: self.update_time,
        }
    }

    /// The number of the current or last attempt; 0 before the first. It only grows.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether somebody called CancelOperation before it was done.
    pub fn cancel_requested(&self) -> bool {
        self.cancel_requested
    }

    /// Timeouts, retries, retention.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The queue it waits in or came from.
    pub fn queue(&self) -> Option<&QueueName> {
        self.terms.queue.as_ref()
    }

    /// What its creator called it by.
    pub fn labels(&self) -> &Labels {
        static NONE: Labels = Labels::NONE;
        self.tags.as_ref().map_or(&NONE, |tags| &tags.labels)
    }

    /// When it was created.
    pub fn create_time(&self) -> Timestamp {
        self.create_time
    }

    /// When its first attempt began.
    pub fn start_time(&self) -> Option<Timestamp> {
        self.start_time
    }

    /// When it last changed.
    pub fn update_time(&self) -> Timestamp {
        self.update_time
    }

    /// When it was done.
    pub fn end_time(&self) -> Option<Timestamp> {
        self.is_done().then_some(self.update_time)
    }

    /// How long it can still be read at `now`; none while it is not done.
    pub fn expires_in(&self, now: Timestamp) -> Option<Duration> {
        Some((self.end_time()? + self.terms.retention).since(now))
    }

    /// What the worker gets to work on; none once it is done.
    pub fn input(&self) -> Option<&Payload> {
        self.work.as_ref()?.input.as_ref()
    }

    /// The latest progress; none once it is done, the metadata keeps it.
    pub fn progress(&self) -> Option<&Progress> {
        self.latest()?.progress.as_ref()
    }

    /// What the producer added to the metadata.
    pub(super) fn detail(&self) -> Option<&Payload> {
        self.latest()?.detail.as_ref()
    }

    /// The latest checkpoint; none once it is done.
    pub fn checkpoint(&self) -> Option<&Payload> {
        self.latest()?.checkpoint.as_ref()
    }

    /// The method that it belongs to, as its creator said; empty if it did not.
    pub fn method(&self) -> &str {
        self.tags.as_ref().map_or("", |tags| &tags.method)
    }

    /// The trace that it belongs to, as its creator said.
    pub fn trace_context(&self) -> &TraceContext {
        static NONE: TraceContext = TraceContext::NONE;
        self.tags.as_ref().map_or(&NONE, |tags| &tags.trace_context)
    }

    pub(crate) fn request(&self) -> Option<&Request> {
        self.tags.as_ref()?.request.as_ref()
    }

    /// The request id that its creator gave, by which it is found within its
    /// parent (AIP-155); none if it did not.
    pub fn request_id(&self) -> Option<&str> {
        self.request().map(|request| &*request.id)
    }

    /// Its place in the order of creation.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it was deleted and goes on unseen.
    pub fn is_hidden(&self) -> bool {
        self.hidden
    }

    /// How many bytes it is called by, besides its name.
    pub(crate) fn tags_size(&self) -> usize {
        self.tags.as_ref().map_or(0, |tags| tags.size())
    }

    /// How many bytes it holds that vary with what people put in.
    pub(crate) fn size(&self) -> usize {
        // What clients see is in the encoded bytes already.
        let unseen = self.work.as_ref().map_or(0, |work| {
            let input = work.input.as_ref().map_or(0, Payload::size);
            input
                + work
                    .latest
                    .as_ref()
                    .map_or(0, |latest| latest.unseen_size())
        });
        self.wire.bytes().len() + self.tags_size() + unseen
    }
}

#[cfg(test)]
mod tests;
