//! List queries: scopes, pages (AIP-158) and filters (AIP-160).

mod check;
pub(crate) mod compile;
mod decoded;
mod eval;
pub(crate) mod fields;
pub(crate) mod filter;
mod full_text;
mod lexer;
mod literal;
mod message_eval;
pub(crate) mod page_token;
pub(crate) mod parse;
pub(crate) mod plan;
pub(crate) mod scope;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
