//! The domain: what an operation is and how it may change. Values in, values
//! out; no runtime, no IO, no log. Storing and publishing live in `store`.

pub(crate) mod attempt_result;
pub(crate) mod encoded;
pub(crate) mod labels;
pub(crate) mod lease;
mod metadata;
pub(crate) mod name;
pub(crate) mod operation;
pub(crate) mod options;
pub(crate) mod outcome;
pub(crate) mod payload;
pub(crate) mod progress;
#[cfg(feature = "record")]
pub(crate) mod record;
pub(crate) mod retry;
pub(crate) mod spec;
pub(crate) mod trace;
pub(crate) mod transition;
