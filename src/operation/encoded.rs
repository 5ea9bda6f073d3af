//! The encoded `google.longrunning.Operation`: made once per change, served
//! without another encoding.

use prost::encoding;

#[cfg(feature = "record")]
use super::name::OperationName;
use super::outcome::Outcome;

const NAME_FIELD_NUMBER: u32 = 1;
const METADATA_FIELD_NUMBER: u32 = 2;
/// The field `done = true`, number 3.
const ENCODED_DONE_FIELD: &[u8] = &[3 << 3, 1];
const ERROR_FIELD_NUMBER: u32 = 4;
const RESPONSE_FIELD_NUMBER: u32 = 5;

/// An encoded operation. Its name and its result are read from the bytes, to hold
/// them in memory only once.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct EncodedOperation(Box<[u8]>);

// === impl EncodedOperation ===

impl EncodedOperation {
    /// Encodes the fields in the order of their numbers.
    pub(crate) fn encode(name: &str, metadata: AnyRef<'_>, outcome: Option<&Outcome>) -> Self {
        let outcome = outcome.map(encode_outcome);
        let done = outcome.as_ref().map_or(&[][..], |_| ENCODED_DONE_FIELD);
        let outcome = outcome.as_deref().unwrap_or_default();
        let fields_len = encoded_field_len(name.len()) + encoded_field_len(metadata.encoded_len());
        // The exact capacity: these bytes stay in memory.
        let mut bytes = Vec::with_capacity(fields_len + done.len() + outcome.len());
        put_field(NAME_FIELD_NUMBER, name.as_bytes(), &mut bytes);
        metadata.put(METADATA_FIELD_NUMBER, &mut bytes);
        bytes.extend_from_slice(done);
        bytes.extend_from_slice(outcome);
        debug_assert_eq!(bytes.len(), bytes.capacity());
        Self(bytes.into_boxed_slice())
    }

    /// Wraps encoded bytes. Returns `None` if they are not those of an operation.
    #[cfg(feature = "record")]
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        let mut rest = bytes.as_slice();
        let (NAME_FIELD_NUMBER, encoding::WireType::LengthDelimited) =
            encoding::decode_key(&mut rest).ok()?
        else {
            return None;
        };
        let name = find_field(&bytes, NAME_FIELD_NUMBER)?;
        OperationName::parse(std::str::from_utf8(name).ok()?).ok()?;
        find_field(&bytes, METADATA_FIELD_NUMBER)?;
        Some(Self(bytes.into_boxed_slice()))
    }

    /// Returns all bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the name.
    pub(crate) fn name(&self) -> &str {
        let (name, _) = split_first_field(&self.0);
        std::str::from_utf8(name).expect("the name was encoded from a str")
    }

    /// Returns the metadata, or `None` if there is none.
    pub(crate) fn metadata(&self) -> Option<AnyRef<'_>> {
        find_field(&self.0, METADATA_FIELD_NUMBER).map(AnyRef::decode)
    }

    /// Returns the response, or `None` if there is none.
    pub(crate) fn response(&self) -> Option<AnyRef<'_>> {
        find_field(&self.0, RESPONSE_FIELD_NUMBER).map(AnyRef::decode)
    }

    /// Returns the encoded `google.rpc.Status`, or `None` if there is no error.
    pub(crate) fn error(&self) -> Option<&[u8]> {
        find_field(&self.0, ERROR_FIELD_NUMBER)
    }

    /// Returns `true` if the operation is done with exactly the bytes of `outcome`.
    pub(crate) fn has_outcome(&self, outcome: &Outcome) -> bool {
        let (_, rest) = split_first_field(&self.0);
        let (_, result) = split_first_field(rest);
        result.strip_prefix(ENCODED_DONE_FIELD) == Some(&*encode_outcome(outcome))
    }
}

/// A `google.protobuf.Any` inside the bytes of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnyRef<'a> {
    pub(crate) type_url: &'a str,
    pub(crate) value: &'a [u8],
}

// === impl AnyRef ===

impl<'a> AnyRef<'a> {
    /// Returns the encoded size in bytes.
    fn encoded_len(&self) -> usize {
        non_empty_field_len(self.type_url.len()) + non_empty_field_len(self.value.len())
    }

    fn put(&self, number: u32, bytes: &mut Vec<u8>) {
        encoding::encode_key(number, encoding::WireType::LengthDelimited, bytes);
        encoding::encode_varint(self.encoded_len() as u64, bytes);
        put_non_empty_field(1, self.type_url.as_bytes(), bytes);
        put_non_empty_field(2, self.value, bytes);
    }

    fn decode(bytes: &'a [u8]) -> Self {
        let type_url = find_field(bytes, 1).unwrap_or_default();
        Self {
            type_url: std::str::from_utf8(type_url).unwrap_or_default(),
            value: find_field(bytes, 2).unwrap_or_default(),
        }
    }
}

/// Returns the first length-delimited field with this number, or `None`.
fn find_field(mut rest: &[u8], number: u32) -> Option<&[u8]> {
    while !rest.is_empty() {
        let (field_number, wire_type) = encoding::decode_key(&mut rest).ok()?;
        let length = encoding::decode_varint(&mut rest).ok()?;
        if wire_type != encoding::WireType::LengthDelimited {
            // All other fields are varints, whose value `length` has consumed.
            continue;
        }
        let (field, tail) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        if field_number == number {
            return Some(field);
        }
        rest = tail;
    }
    None
}

/// Splits the content of the first field, which is length-delimited, from the rest.
///
/// # Panics
/// If `bytes` do not begin with such a field.
fn split_first_field(bytes: &[u8]) -> (&[u8], &[u8]) {
    // The keys of fields 1 to 15 take one byte.
    let mut rest = &bytes[1..];
    let length = encoding::decode_varint(&mut rest).expect("the bytes are an encoded operation");
    rest.split_at(usize::try_from(length).expect("the length is at most that of the bytes"))
}

impl std::fmt::Debug for EncodedOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.name(), self.0.len())
    }
}

fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
    let mut bytes = Vec::new();
    match outcome {
        Outcome::Error(error) => {
            encoding::message::encode(ERROR_FIELD_NUMBER, &**error, &mut bytes);
        }
        Outcome::Response(response) => {
            encoding::message::encode(RESPONSE_FIELD_NUMBER, response.any(), &mut bytes);
        }
    }
    bytes
}

/// Encodes a message or a string as a field of another message.
pub(crate) fn put_field(number: u32, message: &[u8], bytes: &mut Vec<u8>) {
    encoding::encode_key(number, encoding::WireType::LengthDelimited, bytes);
    encoding::encode_varint(message.len() as u64, bytes);
    bytes.extend_from_slice(message);
}

/// Encodes a field, unless it is empty: proto3 omits empty fields.
pub(super) fn put_non_empty_field(number: u32, content: &[u8], bytes: &mut Vec<u8>) {
    if !content.is_empty() {
        put_field(number, content, bytes);
    }
}

/// Returns the number of bytes that [`put_non_empty_field`] appends, for a number below 16.
pub(super) fn non_empty_field_len(content_len: usize) -> usize {
    match content_len {
        0 => 0,
        _ => encoded_field_len(content_len),
    }
}

/// Returns the encoded size of a length-delimited field with a number below 16.
fn encoded_field_len(content_len: usize) -> usize {
    1 + encoding::encoded_len_varint(content_len as u64) + content_len
}

/// Encodes a `google.longrunning.ListOperationsResponse` of encoded operations, or the response of OperationAdmin of
/// the same shape: `names` are the unreachable ones, or those that were deleted.
pub(crate) fn encode_list_response<'a>(
    operations: impl Iterator<Item = &'a [u8]>,
    next_page_token: &str,
    names: &[String],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32 * 1024);
    for operation in operations {
        put_field(1, operation, &mut bytes);
    }
    if !next_page_token.is_empty() {
        encoding::string::encode(2, &next_page_token.to_owned(), &mut bytes);
    }
    encoding::string::encode_repeated(3, names, &mut bytes);
    bytes
}
