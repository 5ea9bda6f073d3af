//! Storage without durability: operations live as long as the process.

use std::future::ready;

use super::{Completion, LoadSink, Storage, Write, error::StorageError};
use futures_util::future::BoxFuture;

/// Storage that discards all writes: operations live in the view only.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryStorage;

impl Storage for MemoryStorage {
    fn load(&self, _: LoadSink) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(ready(Ok(())))
    }

    fn write(&self, _: Write, completion: Completion) {
        completion.complete(Ok(()));
    }
}
