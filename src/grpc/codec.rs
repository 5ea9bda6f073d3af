//! A codec whose messages are protobuf already: Get, Wait and List answer with
//! bytes that were encoded when the operation changed.

use std::{marker::PhantomData, sync::Arc};

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::status;
use crate::operation::Operation;

/// The first room for an answer and for a request, in bytes; larger ones get
/// more. tonic's own 8 KiB each way cost a third of waking ten thousand waits.
const RESPONSE_BUFFER_BYTES: usize = 512;
const REQUEST_BUFFER_BYTES: usize = 256;
/// So many bytes of a stream are gathered before they are sent; tonic's value.
const YIELD_THRESHOLD_BYTES: usize = 32 * 1024;

/// A response that is encoded.
#[derive(Clone, Debug)]
pub enum EncodedMessage {
    /// A `google.longrunning.Operation`.
    Operation(Arc<Operation>),
    /// Any other message.
    Bytes(Bytes),
}

/// Writes [`Encoded`], reads prost messages.
#[derive(Debug)]
pub(crate) struct EncodedCodec<M>(PhantomData<M>);

/// Writes encoded bytes as they are.
#[derive(Debug, Default)]
pub(crate) struct EncodedEncoder;

/// Reads a prost message; a damaged one is the caller's fault.
#[derive(Debug)]
pub(crate) struct MessageDecoder<M>(PhantomData<M>);

// === impl Encoded ===

impl EncodedMessage {
    /// `google.protobuf.Empty`.
    pub(crate) const EMPTY: Self = Self::Bytes(Bytes::new());

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Operation(operation) => operation.bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

// === impl EncodedCodec ===

impl<M> Default for EncodedCodec<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + Default + Send + 'static> Codec for EncodedCodec<M> {
    type Encode = EncodedMessage;
    type Decode = M;
    type Encoder = EncodedEncoder;
    type Decoder = MessageDecoder<M>;

    fn encoder(&mut self) -> EncodedEncoder {
        EncodedEncoder
    }

    fn decoder(&mut self) -> MessageDecoder<M> {
        MessageDecoder(PhantomData)
    }
}

impl Encoder for EncodedEncoder {
    type Item = EncodedMessage;
    type Error = Status;

    fn encode(&mut self, item: EncodedMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let bytes = item.as_bytes();
        buffer.reserve(bytes.len());
        buffer.put_slice(bytes);
        Ok(())
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(RESPONSE_BUFFER_BYTES, YIELD_THRESHOLD_BYTES)
    }
}

impl<M: Message + Default> Decoder for MessageDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        M::decode(buffer)
            .map(Some)
            .map_err(|error| status::malformed_request(&error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(REQUEST_BUFFER_BYTES, YIELD_THRESHOLD_BYTES)
    }
}
