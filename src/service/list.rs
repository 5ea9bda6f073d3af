//! Lists: one page of the operations of a scope (AIP-158, AIP-159) of which a
//! filter is true (AIP-160). What order they stand in is decided by the store's
//! index, what a filter means by `query`.

use std::{sync::Arc, time::Duration};

use tokio::task::yield_now;
use tracing::debug;

use crate::{
    clock::{Clock, Timestamp},
    error::{Error, Result},
    operation::Operation,
    proto::google::longrunning::ListOperationsRequest,
    query::{
        eval::CompiledFilter,
        page_token::{PageSize, PageToken},
        plan::Plan,
        scope::Scope,
    },
    store::{index::Scan, state::Store, view::View},
    tasks::{BLOCKING_THRESHOLD_BYTES, spawn_blocking_if_large},
    types::TypeRegistry,
};

/// A page ends before it holds more bytes of operations than this, because
/// clients refuse messages over 4 MiB.
const MAX_PAGE_BYTES: usize = 3 << 20;

/// How many operations a list looks at for one page, and for how long, but for
/// the last of them; then the page is short, which AIP-158 allows, and the next
/// one goes on from there.
const MAX_EXAMINED: usize = 100_000;
const MAX_SCAN_TIME: Duration = Duration::from_millis(100);

/// How many of them in one go; writers wait no longer than it takes to copy
/// their handles.
const BATCH_SIZE: usize = 1024;
/// How many of them if each is asked whether a filter is true of it.
const FILTERED_BATCH_SIZE: usize = 64;

/// How many of them are read from the journal in one go.
const EVICTED_BATCH_SIZE: usize = 256;

/// How long a list works before it lets other tasks of its thread have a turn.
const YIELD_INTERVAL: Duration = Duration::from_micros(200);
/// How many bytes are decoded for a filter between two looks at the clock, which
/// happen after each stretch anyway.
const CLOCK_CHECK_BYTES: usize = 16 * 1024;

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
struct ListQuery {
    scope: Scope,
    query: Option<Arc<CompiledFilter>>,
    page_size: usize,
    /// The page begins below this number.
    before_number: u64,
}

/// A page as it fills.
struct PageBuilder {
    operations: Vec<Arc<Operation>>,
    bytes: usize,
    examined: usize,
    /// The next page begins below this number.
    before_number: u64,
}

/// What time a list takes.
struct TimeBudget {
    clock: Clock,
    started_at: Timestamp,
    /// Since when no other task had a turn.
    last_yield_at: Timestamp,
    /// Bytes that were decoded since the clock was looked at.
    decoded_bytes: usize,
}

/// The page that a request asks for.
pub(crate) async fn list_page(
    view: &View,
    shared_store: Option<&Store>,
    is_up_to_date: bool,
    types: &TypeRegistry,
    clock: Clock,
    request: &ListOperationsRequest,
) -> Result<Page> {
    let list_query = ListQuery::parse(request, types)?;
    let plan = match &list_query.query {
        Some(query) => Plan::from_filter(query),
        None => Plan::EVERYTHING,
    };
    let mut builder = PageBuilder {
        operations: Vec::with_capacity(list_query.page_size.min(100)),
        bytes: 0,
        examined: 0,
        before_number: list_query.before_number,
    };
    let mut budget = TimeBudget::new(clock);
    let number_of = |name: &str| view.get_visible(name).map(|operation| operation.number());
    let scan = view.index.scan(&list_query.scope, &plan, number_of);
    let is_partial =
        !is_up_to_date || shared_store.is_some_and(|store| store.write_error().is_some());
    let evicted_store = shared_store.filter(|_| plan.candidates.can_be_done());
    let mut is_complete = list_query
        .fill_from_view(
            &mut builder,
            view,
            &scan,
            &mut budget,
            evicted_store.is_some(),
        )
        .await;
    // Of what is older, the view has only some.
    let mut unreachable = Vec::new();
    let unreachable_name = if request.name.is_empty() {
        "-"
    } else {
        &request.name
    };
    if let Some(evicted_store) = evicted_store
        && 0 < view.eviction.evicted_below()
        && is_complete
    {
        is_complete = match list_query
            .fill_from_storage(&mut builder, evicted_store, &mut budget)
            .await
        {
            Err(_) if request.return_partial_success => {
                unreachable.push(unreachable_name.to_owned());
                true
            }
            result => result?,
        };
    }
    if request.return_partial_success && is_partial && unreachable.is_empty() {
        unreachable.push(unreachable_name.to_owned());
    }
    if list_query.query.is_some() {
        debug!(
            list.name = request.name,
            list.filter = request.filter,
            list.plan = %scan,
            list.examined = builder.examined,
            list.found = builder.operations.len(),
            list.complete = is_complete,
            "listed operations by a filter"
        );
    }
    let next_page_token = if is_complete {
        String::new()
    } else {
        PageToken(builder.before_number).encode(&request.name, &request.filter)
    };
    Ok(Page {
        operations: builder.operations,
        next_page_token,
        unreachable,
    })
}

// === impl Listing ===

impl ListQuery {
    fn parse(request: &ListOperationsRequest, types: &TypeRegistry) -> Result<Self> {
        let scope = Scope::parse(&request.name)
            .map_err(|error| Error::invalid("name", "INVALID_NAME", error))?;
        if request.return_partial_success && is_single_parent(&scope) {
            let message = "needs a wildcard or a whole collection as name; one parent is never partly reachable";
            return Err(Error::invalid(
                "return_partial_success",
                "INVALID_PARTIAL_SUCCESS",
                message,
            ));
        }
        let size = PageSize::parse(request.page_size)?.get();
        let cursor = PageToken::decode(&request.page_token, &request.name, &request.filter)?;
        let is_blank = request.filter.trim().is_empty();
        let query =
            (!is_blank).then(|| CompiledFilter::parse(&request.filter, types).map(Arc::new));
        Ok(Self {
            scope,
            query: query.transpose()?,
            page_size: size,
            before_number: cursor.map_or(u64::MAX, |PageToken(number)| number),
        })
    }

    /// Fills a page; tells whether nothing is left for another one.
    ///
    /// What is below the floor of the view may not be all that there is, and is left
    /// out if the journal has the rest.
    async fn fill_from_view(
        &self,
        page: &mut PageBuilder,
        view: &View,
        scan: &Scan<'_>,
        budget: &mut TimeBudget,
        has_older: bool,
    ) -> bool {
        let batch_size = match (&self.query, &self.scope) {
            (Some(_), _) => FILTERED_BATCH_SIZE,
            (None, Scope::ParentPattern(_)) => BATCH_SIZE,
            // All of them are shown, and one more tells whether another page follows.
            (None, Scope::Everything | Scope::Parent(_)) => self.page_size + 1,
        };
        loop {
            let mut batch = view.index.scan_batch(scan, page.before_number, batch_size);
            // Looked at after the stretch: whatever was let go of before is below it.
            let floor = if has_older {
                view.eviction.evicted_below()
            } else {
                0
            };
            let is_in_view = |operation: &Arc<Operation>| floor <= operation.number();
            let in_view_count = batch.operations.partition_point(is_in_view);
            if in_view_count < batch.operations.len() {
                batch.operations.truncate(in_view_count);
                batch.resume_before = None;
            }
            if !self.add_matching(page, batch.operations, budget).await {
                return false;
            }
            let Some(rest) = batch.resume_before.filter(|rest| floor < *rest) else {
                page.before_number = page.before_number.min(floor);
                return true;
            };
            page.before_number = rest;
            let is_full = page.operations.len() == self.page_size;
            if is_full || MAX_EXAMINED <= page.examined || budget.check_exhausted().await {
                return false;
            }
        }
    }

    /// Goes on with what the journal has; tells whether nothing is left for another
    /// page.
    async fn fill_from_storage(
        &self,
        page: &mut PageBuilder,
        store: &Store,
        budget: &mut TimeBudget,
    ) -> Result<bool> {
        let parent = match &self.scope {
            Scope::Parent(parent) => Some(parent),
            Scope::Everything | Scope::ParentPattern(_) => None,
        };
        loop {
            let limit = match self.query {
                Some(_) => EVICTED_BATCH_SIZE,
                None => (self.page_size + 1 - page.operations.len()).min(EVICTED_BATCH_SIZE),
            };
            let evicted = store
                .list_from_storage(parent, page.before_number, limit)
                .await?;
            if evicted.is_empty() {
                return Ok(true);
            }
            if !self.add_matching(page, evicted, budget).await {
                return Ok(false);
            }
            if MAX_EXAMINED <= page.examined || budget.check_exhausted().await {
                return Ok(false);
            }
        }
    }

    /// Adds those that belong to the list; tells whether there was room and time for
    /// all of them.
    async fn add_matching(
        &self,
        page: &mut PageBuilder,
        operations: Vec<Arc<Operation>>,
        budget: &mut TimeBudget,
    ) -> bool {
        for operation in operations {
            let is_match = self.matches(&operation, budget).await;
            if !self.push_if_fits(page, operation, is_match) {
                return false;
            }
            if CLOCK_CHECK_BYTES <= budget.decoded_bytes && budget.check_exhausted().await {
                return false;
            }
        }
        true
    }

    /// Whether an operation belongs to the list.
    async fn matches(&self, operation: &Arc<Operation>, budget: &mut TimeBudget) -> bool {
        // What is under one parent was found there, and its name need not be read.
        let is_in_scope = match &self.scope {
            Scope::Everything | Scope::Parent(_) => true,
            Scope::ParentPattern(_) => self.scope.contains(operation.name()),
        };
        if operation.is_deleted() || !is_in_scope {
            return false;
        }
        let Some(query) = &self.query else {
            return true;
        };
        let bytes = query.decode_cost(operation);
        budget.decoded_bytes += bytes;
        if bytes < BLOCKING_THRESHOLD_BYTES {
            return query.matches(operation);
        }
        let (query, operation) = (Arc::clone(query), Arc::clone(operation));
        spawn_blocking_if_large(bytes, move || query.matches(&operation)).await
    }

    /// Takes an operation into the page, if it is shown; tells whether there was
    /// room for it.
    fn push_if_fits(
        &self,
        page: &mut PageBuilder,
        operation: Arc<Operation>,
        is_match: bool,
    ) -> bool {
        page.examined += 1;
        if is_match {
            let bytes = page.bytes + operation.bytes().len();
            let is_empty = page.operations.is_empty();
            if page.operations.len() == self.page_size || (!is_empty && MAX_PAGE_BYTES < bytes) {
                return false;
            }
            page.bytes = bytes;
        }
        page.before_number = operation.number();
        if is_match {
            page.operations.push(operation);
        }
        true
    }
}

// === impl Pace ===

impl TimeBudget {
    fn new(clock: Clock) -> Self {
        let started_at = clock.now();
        Self {
            clock,
            started_at,
            last_yield_at: started_at,
            decoded_bytes: 0,
        }
    }

    /// Looks at the clock: whether the page has had its time. If not, others
    /// may have a turn now.
    async fn check_exhausted(&mut self) -> bool {
        self.decoded_bytes = 0;
        let now = self.clock.now();
        if MAX_SCAN_TIME <= now.since(self.started_at) {
            return true;
        }
        if YIELD_INTERVAL <= now.since(self.last_yield_at) {
            yield_now().await;
            self.last_yield_at = self.clock.now();
        }
        false
    }
}

fn is_single_parent(scope: &Scope) -> bool {
    matches!(scope, Scope::Parent(parent) if !parent.as_str().is_empty())
}

#[cfg(test)]
mod tests;
