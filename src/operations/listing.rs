//! Lists: one page of the operations of a scope (AIP-158, AIP-159) of which a
//! filter is true (AIP-160). What order they stand in is decided by the store's
//! index, what a filter means by `query`.

use std::{sync::Arc, time::Duration};

use tokio::task::yield_now;
use tracing::debug;

use crate::{
    clock::{Clock, Timestamp},
    error::{Error, Result},
    operation::operation::Operation,
    proto::google::longrunning::ListOperationsRequest,
    query::{
        eval::Query,
        page::{Cursor, PageSize},
        plan::Plan,
        scope::Scope,
    },
    store::{index::Walk, store::Store, view::View},
    tasks::{LARGE, aside},
    types::Types,
};

/// A page ends before it holds more bytes of operations than this, because
/// clients refuse messages over 4 MiB.
const PAGE_BYTES: usize = 3 << 20;

/// How many operations a list looks at for one page, and for how long, but for
/// the last of them; then the page is short, which AIP-158 allows, and the next
/// one goes on from there.
const SCAN: usize = 100_000;
const SCAN_TIME: Duration = Duration::from_millis(100);

/// How many of them in one go; writers wait no longer than it takes to copy
/// their handles.
const STRETCH: usize = 1024;
/// How many of them if each is asked whether a filter is true of it.
const FILTERED_STRETCH: usize = 64;

/// How many of them are read from the journal in one go.
const OLDER_STRETCH: usize = 256;

/// How long a list works before it lets other tasks of its thread have a turn.
const TURN: Duration = Duration::from_micros(200);
/// How many bytes are decoded for a filter between two looks at the clock, which
/// happen after each stretch anyway.
const GLANCE_BYTES: usize = 16 * 1024;

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// The operations, newest first.
    pub operations: Vec<Arc<Operation>>,
    /// Leads to the next page; empty if this is the last one.
    pub next_page_token: String,
    /// The name of the request, if what the journal has beyond this could not be
    /// read and the request takes what there is; else empty.
    pub unreachable: Vec<String>,
}

/// What a request asks for.
struct Listing {
    scope: Scope,
    query: Option<Arc<Query>>,
    size: usize,
    /// The page begins below this number.
    before: u64,
}

/// A page as it fills.
struct Filling {
    operations: Vec<Arc<Operation>>,
    bytes: usize,
    examined: usize,
    /// The next page begins below this number.
    before: u64,
}

/// What time a list takes.
struct Pace {
    clock: Clock,
    begun: Timestamp,
    /// Since when no other task had a turn.
    turn: Timestamp,
    /// Bytes that were decoded since the clock was looked at.
    bytes: usize,
}

/// The page that a request asks for.
pub(crate) async fn page(
    view: &View,
    older: Option<&Store>,
    is_fresh: bool,
    types: &Types,
    clock: Clock,
    request: &ListOperationsRequest,
) -> Result<Page> {
    let listing = Listing::parse(request, types)?;
    let plan = match &listing.query {
        Some(query) => Plan::of(query),
        None => Plan::EVERYTHING,
    };
    let mut filling = Filling {
        operations: Vec::with_capacity(listing.size.min(100)),
        bytes: 0,
        examined: 0,
        before: listing.before,
    };
    let mut pace = Pace::new(clock);
    let named = |name: &str| view.get(name).map(|operation| operation.number());
    let walk = view.index.walk(&listing.scope, &plan, named);
    let is_cut_off = !is_fresh || older.is_some_and(|store| store.trouble().is_some());
    let older = older.filter(|_| plan.among.may_be_done());
    let mut is_complete = listing
        .fill(&mut filling, view, &walk, &mut pace, older.is_some())
        .await;
    // Of what is older, the view has only some.
    let mut unreachable = Vec::new();
    let place = if request.name.is_empty() {
        "-"
    } else {
        &request.name
    };
    if let Some(store) = older
        && 0 < view.older.floor()
        && is_complete
    {
        is_complete = match listing
            .fill_with_older(&mut filling, store, &mut pace)
            .await
        {
            Err(_) if request.return_partial_success => {
                unreachable.push(place.to_owned());
                true
            }
            filled => filled?,
        };
    }
    if request.return_partial_success && is_cut_off && unreachable.is_empty() {
        unreachable.push(place.to_owned());
    }
    if listing.query.is_some() {
        debug!(
            list.name = request.name,
            list.filter = request.filter,
            list.plan = %walk,
            list.examined = filling.examined,
            list.found = filling.operations.len(),
            list.complete = is_complete,
            "listed operations by a filter"
        );
    }
    let next_page_token = if is_complete {
        String::new()
    } else {
        Cursor(filling.before).seal(&request.name, &request.filter)
    };
    Ok(Page {
        operations: filling.operations,
        next_page_token,
        unreachable,
    })
}

// === impl Listing ===

impl Listing {
    fn parse(request: &ListOperationsRequest, types: &Types) -> Result<Self> {
        let scope = Scope::parse(&request.name)
            .map_err(|error| Error::invalid("name", "INVALID_NAME", error))?;
        if request.return_partial_success && is_one_parent(&scope) {
            let rule = "needs a wildcard or a whole collection as name; one parent is never partly reachable";
            return Err(Error::invalid(
                "return_partial_success",
                "INVALID_PARTIAL_SUCCESS",
                rule,
            ));
        }
        let size = PageSize::parse(request.page_size)?.get();
        let cursor = Cursor::open(&request.page_token, &request.name, &request.filter)?;
        let is_blank = request.filter.trim().is_empty();
        let query = (!is_blank).then(|| Query::parse(&request.filter, types).map(Arc::new));
        Ok(Self {
            scope,
            query: query.transpose()?,
            size,
            before: cursor.map_or(u64::MAX, |Cursor(number)| number),
        })
    }

    /// Fills a page; tells whether nothing is left for another one.
    ///
    /// What is below the floor of the view may not be all that there is, and is left
    /// out if the journal has the rest.
    async fn fill(
        &self,
        page: &mut Filling,
        view: &View,
        walk: &Walk<'_>,
        pace: &mut Pace,
        has_older: bool,
    ) -> bool {
        let stretch = match (&self.query, &self.scope) {
            (Some(_), _) => FILTERED_STRETCH,
            (None, Scope::Matching(_)) => STRETCH,
            // All of them are shown, and one more tells whether another page follows.
            (None, Scope::Everything | Scope::Under(_)) => self.size + 1,
        };
        loop {
            let mut next = view.index.stretch(walk, page.before, stretch);
            // Looked at after the stretch: whatever was let go of before is below it.
            let floor = if has_older { view.older.floor() } else { 0 };
            let is_above = |operation: &Arc<Operation>| floor <= operation.number();
            let above = next.operations.partition_point(is_above);
            if above < next.operations.len() {
                next.operations.truncate(above);
                next.rest = None;
            }
            if !self.add(page, next.operations, pace).await {
                return false;
            }
            let Some(rest) = next.rest.filter(|rest| floor < *rest) else {
                page.before = page.before.min(floor);
                return true;
            };
            page.before = rest;
            let is_full = page.operations.len() == self.size;
            if is_full || SCAN <= page.examined || pace.is_over().await {
                return false;
            }
        }
    }

    /// Goes on with what the journal has; tells whether nothing is left for another
    /// page.
    async fn fill_with_older(
        &self,
        page: &mut Filling,
        store: &Store,
        pace: &mut Pace,
    ) -> Result<bool> {
        let parent = match &self.scope {
            Scope::Under(parent) => Some(parent),
            Scope::Everything | Scope::Matching(_) => None,
        };
        loop {
            let wanted = match self.query {
                Some(_) => OLDER_STRETCH,
                None => (self.size + 1 - page.operations.len()).min(OLDER_STRETCH),
            };
            let older = store.older(parent, page.before, wanted).await?;
            if older.is_empty() {
                return Ok(true);
            }
            if !self.add(page, older, pace).await {
                return Ok(false);
            }
            if SCAN <= page.examined || pace.is_over().await {
                return Ok(false);
            }
        }
    }

    /// Adds those that belong to the list; tells whether there was room and time for
    /// all of them.
    async fn add(
        &self,
        page: &mut Filling,
        operations: Vec<Arc<Operation>>,
        pace: &mut Pace,
    ) -> bool {
        for operation in operations {
            let is_shown = self.shows(&operation, pace).await;
            if !self.take(page, operation, is_shown) {
                return false;
            }
            if GLANCE_BYTES <= pace.bytes && pace.is_over().await {
                return false;
            }
        }
        true
    }

    /// Whether an operation belongs to the list.
    async fn shows(&self, operation: &Arc<Operation>, pace: &mut Pace) -> bool {
        // What is under one parent was found there, and its name need not be read.
        let is_in_scope = match &self.scope {
            Scope::Everything | Scope::Under(_) => true,
            Scope::Matching(_) => self.scope.holds(operation.name()),
        };
        if operation.is_hidden() || !is_in_scope {
            return false;
        }
        let Some(query) = &self.query else {
            return true;
        };
        let bytes = query.work(operation);
        pace.bytes += bytes;
        if bytes < LARGE {
            return query.matches(operation);
        }
        let (query, operation) = (Arc::clone(query), Arc::clone(operation));
        aside(bytes, move || query.matches(&operation)).await
    }

    /// Takes an operation into the page, if it is shown; tells whether there was
    /// room for it.
    fn take(&self, page: &mut Filling, operation: Arc<Operation>, is_shown: bool) -> bool {
        page.examined += 1;
        if is_shown {
            let bytes = page.bytes + operation.bytes().len();
            let is_empty = page.operations.is_empty();
            if page.operations.len() == self.size || (!is_empty && PAGE_BYTES < bytes) {
                return false;
            }
            page.bytes = bytes;
        }
        page.before = operation.number();
        if is_shown {
            page.operations.push(operation);
        }
        true
    }
}

// === impl Pace ===

impl Pace {
    fn new(clock: Clock) -> Self {
        let begun = clock.now();
        Self {
            clock,
            begun,
            turn: begun,
            bytes: 0,
        }
    }

    /// Looks at the clock: whether the page has had its time. If not, others
    /// may have a turn now.
    async fn is_over(&mut self) -> bool {
        self.bytes = 0;
        let now = self.clock.now();
        if SCAN_TIME <= now.since(self.begun) {
            return true;
        }
        if TURN <= now.since(self.turn) {
            yield_now().await;
            self.turn = self.clock.now();
        }
        false
    }
}

fn is_one_parent(scope: &Scope) -> bool {
    matches!(scope, Scope::Under(parent) if !parent.as_str().is_empty())
}

#[cfg(test)]
mod tests;
