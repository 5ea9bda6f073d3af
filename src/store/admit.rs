//! Admission: how an operation comes into the store, once for each request id
//! and only if there is room for it.

use std::sync::{Arc, atomic::Ordering};

use super::{
    store::{Lost, Store, TRIES, Told},
    turns::Turn,
    view::RequestKey,
};
use crate::{
    error::{Error, Result},
    journal::journal::Entry,
    operation::{
        birth::{Birth, Request},
        name::{OperationName, parent_of},
        operation::Operation,
        terms::QueueName,
    },
};

/// What came of a request to create an operation.
#[derive(Clone, Debug)]
pub struct Created {
    /// The operation: new, or the one that this request made before.
    pub operation: Arc<Operation>,
    /// Whether the same request had made it before.
    pub reused: bool,
}

/// The room that a new operation takes. Given back when dropped, but for what
/// the operation has for as long as it lives once it is shown.
struct Room {
    store: Arc<Store>,
    bytes: usize,
    /// Whether it counts among the operations.
    is_held: bool,
    /// Where it has a place.
    queue: Option<QueueName>,
}

// === impl Store ===

impl Store {
    /// Makes an operation. It can be read, from anywhere, when this returns.
    pub(crate) async fn create(self: &Arc<Self>, mut birth: Birth) -> Result<Created> {
        if self.tasks.stopping().is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        let mut tries = TRIES;
        loop {
            let again = self.others.as_ref().map(|_| birth.clone());
            match (self.try_to_create(birth).await, again) {
                (Ok(created), _) => return Ok(created),
                (Err(Lost::Error(error)), _) => return Err(error),
                (Err(Lost::Outrun(winner)), Some(again)) => {
                    self.meet(winner, &again.name, &mut tries).await?;
                    birth = again;
                }
                // Nobody can have been faster.
                (Err(Lost::Outrun(_)), None) => return Err(Error::StoreUnavailable),
            }
        }
    }

    async fn try_to_create(self: &Arc<Self>, birth: Birth) -> Result<Created, Lost> {
        let store = self.clone();
        let begin = async move {
            let request = birth.tags.as_ref().and_then(|tags| tags.request.clone());
            let request_turn = match &request {
                None => None,
                Some(request) => Some(store.request_turns.of(&request.id).await),
            };
            if let Some(name) = store.in_the_way(&birth, request.as_ref()) {
                store.ask(&name).await?;
            }
            if let Some(operation) = store.made_before(&birth, request.as_ref())? {
                return Ok(Told::Now(Created {
                    operation,
                    reused: true,
                }));
            }
            let turn = store.turns.of(birth.name.as_str()).await;
            store.admit((request_turn, turn), birth)
        };
        self.to_the_end("create", begin).await
    }

    /// The operation because of which this one may not be made, if another server
    /// may have let go of it by now.
    fn in_the_way(&self, birth: &Birth, request: Option<&Request>) -> Option<OperationName> {
        self.others.as_ref()?;
        let key = |request| RequestKey::new(parent_of(birth.name.as_str()), request);
        let before = request.and_then(|request| self.view.requested(&key(request)));
        match before {
            Some(before) => Some(before.name.clone()),
            None => self
                .view
                .find(birth.name.as_str())
                .map(|_| birth.name.clone()),
        }
    }

    /// The operation that the same request made before, if it is still there.
    fn made_before(
        &self,
        birth: &Birth,
        request: Option<&Request>,
    ) -> Result<Option<Arc<Operation>>> {
        let Some(request) = request else {
            return Ok(None);
        };
        let key = RequestKey::new(parent_of(birth.name.as_str()), request);
        let Some(before) = self.view.requested(&key) else {
            return Ok(None);
        };
        if before.request.digest != request.digest {
            return Err(Error::RequestIdReused {
                request_id: request.id.clone().into(),
            });
        }
        Ok(self.view.get(before.name.as_str()))
    }

    fn admit(
        self: &Arc<Self>,
        turns: (Option<Turn>, Turn),
        mut birth: Birth,
    ) -> Result<Told<Created>> {
        if self.view.find(birth.name.as_str()).is_some() {
            return Err(Error::OperationExists {
                name: birth.name.to_string(),
            });
        }
        birth.number = match self.journal.0.shared() {
            Some(shared) => shared.number(),
            None => self.numbers.fetch_add(1, Ordering::Relaxed),
        };
        let operation = Arc::new(Operation::new(birth, self.clock.now()));
        self.check_size("operation", &operation)?;
        let room = self.make_room(&operation)?;
        Ok(
            self.append(Entry::Put(operation.clone()), move |store, kept| {
                let _turns = turns;
                let room = room;
                kept?;
                store.view.publish(&operation);
                room.keep();
                store.forget_if_gone(&operation);
                Ok(Created {
                    operation,
                    reused: false,
                })
            }),
        )
    }

    fn make_room(self: &Arc<Self>, operation: &Operation) -> Result<Room> {
        let (bytes, limits) = (operation.size(), &self.limits);
        let full = |unit, limit| Err(Error::StoreFull { unit, limit });
        let more = |promised: usize| {
            (self.view.bytes() + promised + bytes <= limits.max_bytes).then(|| promised + bytes)
        };
        if self
            .promised
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_err()
        {
            return full("bytes", limits.max_bytes);
        }
        let mut room = Room {
            store: self.clone(),
            bytes,
            is_held: false,
            queue: None,
        };
        if let Some(name) = operation.queue() {
            let visit = self.view.ready.visit(name);
            if !visit.queue().reserve(limits.max_queue) {
                return Err(Error::QueueFull {
                    queue: name.to_string(),
                    limit: limits.max_queue,
                });
            }
            room.queue = Some(name.clone());
        }
        let more = |held| (held < limits.max_operations).then_some(held + 1);
        room.is_held = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok();
        if room.is_held {
            Ok(room)
        } else {
            full("operations", limits.max_operations)
        }
    }
}

// === impl Room ===

impl Room {
    /// The operation is shown, and keeps its place.
    fn keep(mut self) {
        self.is_held = false;
        self.queue = None;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let store = &self.store;
        store.promised.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.is_held {
            store.held.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(queue) = &self.queue {
            store.view.ready.visit(queue).queue().give_up();
        }
    }
}
