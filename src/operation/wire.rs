//! The bytes of `google.longrunning.Operation`, encoded once when an operation
//! changes and served as they are from then on. What goes into them is decided
//! in `operation`.

use prost::{Message, encoding};

use super::{name::OperationName, outcome::Outcome, payload::Payload};

const NAME: u32 = 1;
const METADATA: u32 = 2;
const DONE: u32 = 3;
const ERROR: u32 = 4;
const RESPONSE: u32 = 5;

/// An encoded operation. Knows where its name and its result stand, so that
/// neither is kept a second time.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Wire {
    bytes: Box<[u8]>,
    name_at: u8,
    name_len: u16,
    result_at: u32,
}

// === impl Wire ===

impl Wire {
    /// Encodes the fields in the order of their numbers.
    pub(crate) fn encode(name: &str, metadata: &Payload, outcome: Option<&Outcome>) -> Self {
        let room = name.len() + metadata.size() + outcome.map_or(0, Outcome::size) + 32;
        let mut bytes = Vec::with_capacity(room);
        encoding::encode_key(NAME, encoding::WireType::LengthDelimited, &mut bytes);
        encoding::encode_varint(name.len() as u64, &mut bytes);
        let name_at = bytes.len();
        bytes.extend_from_slice(name.as_bytes());
        encoding::message::encode(METADATA, metadata.any(), &mut bytes);
        if outcome.is_some() {
            encoding::bool::encode(DONE, &true, &mut bytes);
        }
        let result_at = bytes.len();
        if let Some(outcome) = outcome {
            bytes.extend_from_slice(&encode_outcome(outcome));
        }
        Self {
            bytes: bytes.into_boxed_slice(),
            name_at: u8::try_from(name_at)
                .expect("a key and a length of at most 1024 take 3 bytes"),
            name_len: u16::try_from(name.len()).expect("a name has at most 1024 bytes and an id"),
            result_at: u32::try_from(result_at).expect("the limit on metadata is far below 4 GiB"),
        }
    }

    /// The whole operation.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name.
    pub(crate) fn name(&self) -> &str {
        let start = usize::from(self.name_at);
        let name = &self.bytes[start..start + usize::from(self.name_len)];
        std::str::from_utf8(name).expect("it was encoded from a str")
    }

    /// Whether the result is this outcome, to the byte.
    pub(crate) fn ends_with(&self, outcome: &Outcome) -> bool {
        self.bytes[self.result_at as usize..] == *encode_outcome(outcome)
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.name(), self.bytes.len())
    }
}

fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
    let mut bytes = Vec::new();
    match outcome {
        Outcome::Error(error) => encoding::message::encode(ERROR, &**error, &mut bytes),
        Outcome::Response(response) => {
            encoding::message::encode(RESPONSE, response.any(), &mut bytes)
        }
    }
    bytes
}

/// Splices encoded operations into a `google.longrunning.ListOperationsResponse`.
pub(crate) fn encode_list<'a>(
    operations: impl Iterator<Item = &'a [u8]>,
    next_page_token: &str,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32 * 1024);
    for operation in operations {
        encoding::encode_key(1, encoding::WireType::LengthDelimited, &mut bytes);
        encoding::encode_varint(operation.len() as u64, &mut bytes);
        bytes.extend_from_slice(operation);
    }
    if !next_page_token.is_empty() {
        encoding::string::encode(2, &next_page_token.to_owned(), &mut bytes);
    }
    bytes
}

/// Decodes an operation, for those who want to look inside.
pub(crate) fn decode(bytes: &[u8]) -> crate::proto::google::longrunning::Operation {
    Message::decode(bytes).expect("the bytes were encoded by this file")
}

/// Parses a name that was taken from encoded bytes.
pub(crate) fn owned_name(wire: &Wire) -> OperationName {
    OperationName::parse(wire.name()).expect("only parsed names are encoded")
}
