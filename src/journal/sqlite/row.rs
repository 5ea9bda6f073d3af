//! What is written for a change.

use crate::{
    clock::Timestamp,
    journal::journal::Entry,
    operation::{
        operation::Operation,
        record::{encode, encode_input, encode_with_input},
    },
};

/// An input of more bytes is not written again with each change.
const SMALL_INPUT: usize = 1024;

/// A change as it is written.
#[derive(Clone, Debug)]
pub(super) enum Row {
    Put {
        number: i64,
        record: Vec<u8>,
        input: Input,
        /// The latest that the operation bears.
        time: Timestamp,
    },
    Forget {
        number: i64,
    },
}

/// What becomes of an input that is kept beside the record.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// It stays as it is, or there is none.
    Same,
    New(Vec<u8>),
    /// Nobody needs it any more.
    Gone,
}

// === impl Row ===

impl Row {
    pub(super) fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Put(operation) | Entry::Renew(operation) => Self::put(operation),
            Entry::Forget(operation) => Self::Forget {
                number: key(operation),
            },
        }
    }

    fn put(operation: &Operation) -> Self {
        let large = operation.input().filter(|input| SMALL_INPUT < input.size());
        let (record, input) = match large {
            None => (
                encode_with_input(operation),
                if operation.is_done() {
                    Input::Gone
                } else {
                    Input::Same
                },
            ),
            Some(input) if operation.revision() == 0 => (
                encode(operation),
                Input::New(encode_input(operation.number(), input.any())),
            ),
            Some(_) => (encode(operation), Input::Same),
        };
        Self::Put {
            number: key(operation),
            record,
            input,
            time: operation.update_time(),
        }
    }

    /// How many bytes it holds.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Put {
                record,
                input: Input::New(input),
                ..
            } => record.len() + input.len(),
            Self::Put { record, .. } => record.len(),
            Self::Forget { .. } => 0,
        }
    }
}

/// Numbers are handed out one by one, from 1: they fit.
fn key(operation: &Operation) -> i64 {
    i64::try_from(operation.number()).unwrap_or(i64::MAX)
}
