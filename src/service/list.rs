//! ListOperations: pages (AIP-158) of the operations of a scope (AIP-159) that
//! match a filter (AIP-160), newest first.

use std::{sync::Arc, time::Duration};

use tokio::task::yield_now;
use tracing::debug;

use crate::{
    clock::{Clock, Timestamp},
    error::{Error, Result},
    operation::Operation,
    proto::google::longrunning::ListOperationsRequest,
    query::{
        compile::CompiledFilter,
        page_token::{decode_page_token, encode_page_token, parse_page_size},
        plan::Plan,
        scope::Scope,
    },
    store::{index::Scan, state::Store, view::View},
    tasks::{BLOCKING_THRESHOLD_BYTES, spawn_blocking_if_large},
    types::TypeRegistry,
};

/// The maximum size of a page in bytes, unless one operation is larger. Clients
/// reject messages over 4 MiB by default.
const MAX_PAGE_BYTES: usize = 3 << 20;

/// The maximum number of operations that are examined for one page. The page may
/// be short then, which AIP-158 allows.
const MAX_EXAMINED: usize = 100_000;
/// The maximum time for one page. An evaluation that has begun is completed.
const MAX_SCAN_TIME: Duration = Duration::from_millis(100);

/// The number of operations that are copied under one lock of the index, which
/// blocks writers.
const BATCH_SIZE: usize = 1024;
/// The same with a filter, which is evaluated per operation.
const FILTERED_BATCH_SIZE: usize = 64;

/// The number of operations that are read from the storage at a time.
const EVICTED_BATCH_SIZE: usize = 256;

/// The maximum time between two yields to other tasks of the thread.
const YIELD_INTERVAL: Duration = Duration::from_micros(200);
/// The number of bytes that filters decode between two checks of the time budget,
/// which is also checked after each batch.
const CLOCK_CHECK_BYTES: usize = 16 * 1024;

/// One page of a list.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page {
    /// The operations, newest first.
    pub operations: Vec<Arc<Operation>>,
    /// The token of the next page; empty on the last page.
    pub next_page_token: String,
    /// The name of the request if `return_partial_success` is set and the storage
    /// could not be read, else empty.
    pub unreachable: Vec<String>,
}

/// The data that lists read.
#[derive(Clone, Copy)]
pub(super) struct ListSource<'a> {
    pub(super) view: &'a View,
    /// The store, if its storage is shared and may have operations that are not in
    /// the view.
    pub(super) shared_store: Option<&'a Store>,
    /// `false` if the view could not be brought up to date with the storage.
    pub(super) is_up_to_date: bool,
    pub(super) types: &'a TypeRegistry,
    pub(super) clock: Clock,
}

/// A parsed request.
struct ListQuery {
    scope: Scope,
    filter: Option<Arc<CompiledFilter>>,
    show_deleted: bool,
    page_size: usize,
    /// The page begins below this number.
    before_number: u64,
}

/// A page under construction.
struct PageBuilder {
    operations: Vec<Arc<Operation>>,
    bytes: usize,
    examined: usize,
    /// The next page begins below this number.
    before_number: u64,
}

/// The time budget of one page.
struct TimeBudget {
    clock: Clock,
    started_at: Timestamp,
    last_yield_at: Timestamp,
    /// Bytes decoded since the last check of the clock.
    decoded_bytes: usize,
}

// === impl ListSource ===

impl ListSource<'_> {
    /// Returns the requested page.
    pub(super) async fn list_page(
        &self,
        request: &ListOperationsRequest,
        show_deleted: bool,
    ) -> Result<Page> {
        let Self {
            view, shared_store, ..
        } = *self;
        let query = ListQuery::parse(request, show_deleted, self.types)?;
        let plan = match &query.filter {
            Some(filter) => Plan::from_filter(filter),
            None => Plan::EVERYTHING,
        };
        let mut builder = PageBuilder {
            operations: Vec::with_capacity(query.page_size.min(100)),
            bytes: 0,
            examined: 0,
            before_number: query.before_number,
        };
        let mut budget = TimeBudget::new(self.clock);
        let number_of = |name: &str| view.get_any(name).map(|operation| operation.number());
        let scan = view.index.scan(&query.scope, &plan, number_of);
        let mut is_partial =
            !self.is_up_to_date || shared_store.is_some_and(|store| store.write_error().is_some());
        let evicted_store = shared_store.filter(|_| plan.candidates.can_be_done());
        let has_evicted = evicted_store.is_some();
        let filled = query.fill_from_view(&mut builder, view, &scan, &mut budget, has_evicted);
        let mut is_complete = filled.await;
        if let Some(store) = evicted_store
            && view.eviction.evicted_below() > 0
            && is_complete
        {
            let filled = query.fill_from_storage(&mut builder, store, &mut budget);
            match filled.await {
                Err(_) if request.return_partial_success => is_partial = true,
                result => is_complete = result?,
            }
        }
        let unreachable = if request.return_partial_success && is_partial {
            let name = if request.name.is_empty() {
                "-"
            } else {
                &request.name
            };
            vec![name.to_owned()]
        } else {
            Vec::new()
        };
        if query.filter.is_some() {
            debug!(
                list.name = request.name,
                list.filter = request.filter,
                list.plan = %scan,
                list.examined = builder.examined,
                list.found = builder.operations.len(),
                list.complete = is_complete,
                "listed operations with a filter"
            );
        }
        let next_page_token = if is_complete {
            String::new()
        } else {
            encode_page_token(builder.before_number, &request.name, &request.filter)
        };
        Ok(Page {
            operations: builder.operations,
            next_page_token,
            unreachable,
        })
    }
}

// === impl ListQuery ===

impl ListQuery {
    fn parse(
        request: &ListOperationsRequest,
        show_deleted: bool,
        types: &TypeRegistry,
    ) -> Result<Self> {
        let scope = Scope::parse(&request.name)
            .map_err(|error| Error::invalid("name", "INVALID_NAME", error))?;
        let is_single_parent =
            matches!(&scope, Scope::Parent(parent) if !parent.as_str().is_empty());
        if request.return_partial_success && is_single_parent {
            let field = "return_partial_success";
            let message = "requires a wildcard or a whole collection as name; a single parent is never partially reachable";
            return Err(Error::invalid(field, "INVALID_PARTIAL_SUCCESS", message));
        }
        let page_size = parse_page_size(request.page_size)?;
        let before_number = decode_page_token(&request.page_token, &request.name, &request.filter)?;
        let is_blank = request.filter.trim().is_empty();
        let filter =
            (!is_blank).then(|| CompiledFilter::parse(&request.filter, types).map(Arc::new));
        Ok(Self {
            scope,
            filter: filter.transpose()?,
            show_deleted,
            page_size,
            before_number: before_number.unwrap_or(u64::MAX),
        })
    }

    /// Fills the page from the view. Returns `true` if the view has nothing for
    /// another page.
    ///
    /// With `has_evicted`, operations below the eviction floor are skipped, because
    /// the view may have only some of them.
    async fn fill_from_view(
        &self,
        page: &mut PageBuilder,
        view: &View,
        scan: &Scan<'_>,
        budget: &mut TimeBudget,
        has_evicted: bool,
    ) -> bool {
        let batch_size = match (&self.filter, &self.scope) {
            (Some(_), _) => FILTERED_BATCH_SIZE,
            (None, Scope::ParentPattern(_)) => BATCH_SIZE,
            // All of them match; one more indicates a next page.
            (None, Scope::Everything | Scope::Parent(_)) => self.page_size + 1,
        };
        loop {
            let mut batch = view.index.scan_batch(scan, page.before_number, batch_size);
            // Read after the scan, so that everything evicted before is below the floor.
            let floor = has_evicted.then(|| view.eviction.evicted_below());
            let floor = floor.unwrap_or(0);
            let is_in_view = |operation: &Arc<Operation>| operation.number() >= floor;
            let in_view_count = batch.operations.partition_point(is_in_view);
            if in_view_count < batch.operations.len() {
                batch.operations.truncate(in_view_count);
                batch.resume_before = None;
            }
            if !self.add_matching(page, batch.operations, budget).await {
                return false;
            }
            let Some(rest) = batch.resume_before.filter(|rest| *rest > floor) else {
                page.before_number = page.before_number.min(floor);
                return true;
            };
            page.before_number = rest;
            let is_full = page.operations.len() == self.page_size;
            if is_full || page.examined >= MAX_EXAMINED || budget.is_exhausted() {
                return false;
            }
            budget.yield_if_due().await;
        }
    }

    /// Continues the page with evicted operations. Returns `true` if the storage has
    /// nothing for another page.
    ///
    /// # Errors
    /// UNAVAILABLE if the storage cannot be read.
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
            let limit = match self.filter {
                Some(_) => EVICTED_BATCH_SIZE,
                None => (self.page_size + 1 - page.operations.len()).min(EVICTED_BATCH_SIZE),
            };
            let evicted = store.list_from_storage(parent, page.before_number, limit);
            let evicted = evicted.await?;
            if evicted.is_empty() {
                return Ok(true);
            }
            if !self.add_matching(page, evicted, budget).await
                || page.examined >= MAX_EXAMINED
                || budget.is_exhausted()
            {
                return Ok(false);
            }
            budget.yield_if_due().await;
        }
    }

    /// Adds the matching operations. Returns `false` if the page or the time budget
    /// was exhausted before the end.
    async fn add_matching(
        &self,
        page: &mut PageBuilder,
        operations: Vec<Arc<Operation>>,
        budget: &mut TimeBudget,
    ) -> bool {
        for operation in operations {
            page.examined += 1;
            let is_match = self.matches(&operation, budget).await;
            let number = operation.number();
            if is_match && !page.push_if_fits(self.page_size, operation) {
                return false;
            }
            page.before_number = number;
            if budget.decoded_bytes >= CLOCK_CHECK_BYTES {
                if budget.is_exhausted() {
                    return false;
                }
                budget.yield_if_due().await;
            }
        }
        true
    }

    /// Returns `true` if an operation is visible to this query, in scope and matches the filter.
    async fn matches(&self, operation: &Arc<Operation>, budget: &mut TimeBudget) -> bool {
        // The scan of a single parent yields only its operations.
        let is_in_scope = match &self.scope {
            Scope::Everything | Scope::Parent(_) => true,
            Scope::ParentPattern(_) => self.scope.contains(operation.name()),
        };
        let is_visible = self.show_deleted || !operation.is_deleted();
        if !is_visible || !is_in_scope {
            return false;
        }
        let Some(filter) = &self.filter else {
            return true;
        };
        let bytes = filter.decode_cost(operation);
        budget.decoded_bytes += bytes;
        if bytes < BLOCKING_THRESHOLD_BYTES {
            return filter.matches(operation);
        }
        let (filter, operation) = (Arc::clone(filter), Arc::clone(operation));
        spawn_blocking_if_large(bytes, move || filter.matches(&operation)).await
    }
}

// === impl PageBuilder ===

impl PageBuilder {
    /// Adds an operation. Returns `false` if the page has no room for it.
    fn push_if_fits(&mut self, page_size: usize, operation: Arc<Operation>) -> bool {
        let bytes = self.bytes + operation.bytes().len();
        let is_empty = self.operations.is_empty();
        if self.operations.len() == page_size || (!is_empty && bytes > MAX_PAGE_BYTES) {
            return false;
        }
        self.bytes = bytes;
        self.operations.push(operation);
        true
    }
}

// === impl TimeBudget ===

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

    /// Returns `true` if the time for the page is over.
    fn is_exhausted(&self) -> bool {
        self.clock.now().since(self.started_at) >= MAX_SCAN_TIME
    }

    /// Yields to other tasks if [`YIELD_INTERVAL`] has passed since the last yield.
    async fn yield_if_due(&mut self) {
        self.decoded_bytes = 0;
        if self.clock.now().since(self.last_yield_at) >= YIELD_INTERVAL {
            yield_now().await;
            self.last_yield_at = self.clock.now();
        }
    }
}

#[cfg(test)]
mod tests;
