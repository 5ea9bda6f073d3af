//! Questions to the store: scopes, pages and filters (AIP-160). Answering them
//! is the store's affair.

mod check;
mod decoded;
pub(crate) mod eval;
pub(crate) mod fields;
pub(crate) mod filter;
mod full_text;
mod lexer;
pub(crate) mod literal;
mod message_eval;
pub(crate) mod page_token;
pub(crate) mod parse;
pub(crate) mod plan;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod scope;
