//! Questions to the store: scopes and pages today, filters later. Answering them is the
//! store's affair.

pub(crate) mod page;
pub(crate) mod scope;
