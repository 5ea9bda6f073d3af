//! Lists: one page of the operations of a scope (AIP-158, AIP-159). What order
//! they stand in is decided by the store's index.

use std::sync::Arc;

use crate::{
    error::{Error, Result},
    operation::operation::Operation,
    proto::google::longrunning::ListOperationsRequest,
    query::{
        page::{Cursor, PageSize},
        scope::Scope,
    },
    store::index::Index,
};

/// A page ends before it holds more bytes of operations than this, because
/// clients refuse messages over 4 MiB.
const PAGE_BYTES: usize = 3 << 20;

/// How many operations of other parents a list with a wildcard looks at for
/// one page; then the page is short, which AIP-158 allows.
const SCAN: usize = 20_000;

/// How many of them in one go; writers wait that long at the most.
const CHUNK: usize = 1024;

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// The operations, newest first.
    pub operations: Vec<Arc<Operation>>,
    /// Leads to the next page; empty if this is the last one.
    pub next_page_token: String,
}

/// The page that a request asks for.
pub(crate) fn page(index: &Index, request: &ListOperationsRequest) -> Result<Page> {
    let scope = Scope::parse(&request.name)
        .map_err(|error| Error::invalid("name", "INVALID_NAME", error))?;
    if request.return_partial_success && is_one_parent(&scope) {
        let rule =
            "needs a wildcard or a whole collection as name; one parent is never partly reachable";
        return Err(Error::invalid(
            "return_partial_success",
            "INVALID_PARTIAL_SUCCESS",
            rule,
        ));
    }
    let size = PageSize::parse(request.page_size)?.get();
    let cursor = Cursor::open(&request.page_token, &request.name, &request.filter)?;
    if !request.filter.trim().is_empty() {
        return Err(Error::FilterUnsupported);
    }
    let mut page = Page {
        operations: Vec::with_capacity(size.min(100)),
        next_page_token: String::new(),
    };
    let (mut bytes, mut seen, mut last) = (0, 0, None);
    let mut before = cursor.map_or(u64::MAX, |Cursor(number)| number);
    let mut is_full = false;
    let complete = loop {
        let chunk = seen + CHUNK;
        let complete = index.scan(&scope, before, |operation| {
            let shown = !operation.is_hidden() && scope.holds(operation.name());
            is_full = page.operations.len() == size
                || (!page.operations.is_empty() && PAGE_BYTES < bytes + operation.bytes().len());
            is_full &= shown;
            if is_full || seen == chunk {
                return false;
            }
            seen += 1;
            last = Some(operation.number());
            if shown {
                bytes += operation.bytes().len();
                page.operations.push(operation.clone());
            }
            true
        });
        if complete || is_full || SCAN <= seen {
            break complete;
        }
        before = last.unwrap_or(before);
    };
    if !complete && let Some(last) = last {
        page.next_page_token = Cursor(last).seal(&request.name, &request.filter);
    }
    Ok(page)
}

fn is_one_parent(scope: &Scope) -> bool {
    matches!(scope, Scope::Under(parent) if !parent.as_str().is_empty())
}
