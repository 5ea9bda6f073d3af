//! Questions to the store: scopes, pages and filters (AIP-160). Answering them
//! is the store's affair.

mod check;
pub(crate) mod eval;
pub(crate) mod fields;
pub(crate) mod filter;
mod inside;
pub(crate) mod literal;
pub(crate) mod page;
pub(crate) mod parse;
pub(crate) mod plan;
#[cfg(test)]
pub(crate) mod samples;
mod scan;
pub(crate) mod scope;
mod subject;
mod words;
