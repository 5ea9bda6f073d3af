//! Questions to the store: pages today, filters later. Answering them is the
//! store's affair.

pub(crate) mod page;
