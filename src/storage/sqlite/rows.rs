//! What is written for a change.

use crate::{
    clock::Timestamp,
    operation::{
        Operation,
        record::{encode, encode_input, encode_with_input},
    },
    storage::Write,
};

/// An input of more bytes is not written again with each change.
const MAX_INLINE_INPUT_BYTES: usize = 1024;

/// A change as it is written.
#[derive(Clone, Debug)]
pub(super) enum RowWrite {
    Put {
        number: i64,
        record: Vec<u8>,
        input: InputWrite,
        /// The latest that the operation bears.
        update_time: Timestamp,
    },
    Delete {
        number: i64,
    },
}

/// What becomes of an input that is kept beside the record.
#[derive(Clone, Debug)]
pub(super) enum InputWrite {
    /// It stays as it is, or there is none.
    Unchanged,
    Insert(Vec<u8>),
    /// Nobody needs it any more.
    Delete,
}

// === impl Row ===

impl RowWrite {
    pub(super) fn encode(write: &Write) -> Self {
        match write {
            Write::Put(operation) | Write::RenewLease(operation) => Self::encode_put(operation),
            Write::Delete(operation) => Self::Delete {
                number: number_as_i64(operation),
            },
        }
    }

    fn encode_put(operation: &Operation) -> Self {
        let separate_input = operation
            .input()
            .filter(|input| MAX_INLINE_INPUT_BYTES < input.size());
        let (record, input) = match separate_input {
            None => (
                encode_with_input(operation),
                if operation.is_done() {
                    InputWrite::Delete
                } else {
                    InputWrite::Unchanged
                },
            ),
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

    /// How many bytes it holds.
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

/// Numbers are handed out one by one, from 1: they fit.
fn number_as_i64(operation: &Operation) -> i64 {
    i64::try_from(operation.number()).unwrap_or(i64::MAX)
}
