//! Encodes writes as rows.

use crate::{
    clock::Timestamp,
    operation::{
        Operation,
        record::{encode, encode_input, encode_with_input},
    },
    storage::Write,
};

/// Larger inputs are stored in a table of their own, so that they are not written again with each change.
const MAX_INLINE_INPUT_BYTES: usize = 1024;

/// A write as rows.
#[derive(Clone, Debug)]
pub(super) enum RowWrite {
    Put {
        number: i64,
        record: Vec<u8>,
        input: InputWrite,
        /// The update time of the operation.
        update_time: Timestamp,
    },
    Delete {
        number: i64,
    },
}

/// How the separate input of an operation changes.
#[derive(Clone, Debug)]
pub(super) enum InputWrite {
    /// Not at all, or the operation has none.
    Unchanged,
    Insert(Vec<u8>),
    /// The operation is done: no worker needs it any more.
    Delete,
}

// === impl RowWrite ===

impl RowWrite {
    pub(super) fn encode(write: &Write) -> Self {
        match write {
            Write::Put(operation) | Write::RenewLease(operation) => Self::encode_put(operation),
            Write::Remove(operation) => Self::Delete {
                number: number_as_i64(operation),
            },
        }
    }

    fn encode_put(operation: &Operation) -> Self {
        let separate_input = operation
            .input()
            .filter(|input| input.size() > MAX_INLINE_INPUT_BYTES);
        let (record, input) = match separate_input {
            None if operation.is_done() => (encode_with_input(operation), InputWrite::Delete),
            None => (encode_with_input(operation), InputWrite::Unchanged),
            Some(input) if operation.revision() == 0 => (
                encode(operation),
                InputWrite::Insert(encode_input(operation.number(), input.any())),
            ),
            Some(_) => (encode(operation), InputWrite::Unchanged),
        };
        Self::Put {
            number: number_as_i64(operation),
            record,
            input,
            update_time: operation.update_time(),
        }
    }

    /// Returns the size of the encoded data.
    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Put {
                record,
                input: InputWrite::Insert(input),
                ..
            } => record.len() + input.len(),
            Self::Put { record, .. } => record.len(),
            Self::Delete { .. } => 0,
        }
    }
}

/// Numbers are assigned one by one, from 1: they fit.
fn number_as_i64(operation: &Operation) -> i64 {
    i64::try_from(operation.number()).unwrap_or(i64::MAX)
}
