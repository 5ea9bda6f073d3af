//! The codec of the services: responses are already encoded, because an operation is
//! encoded once per change and not once per request.

use std::{marker::PhantomData, sync::Arc};

use bytes::{BufMut, Bytes};
use futures_util::stream::BoxStream;
use prost::Message;
use tonic::{
    Response, Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::status;
use crate::{operation::Operation, store::lease_delivery::UndeliveredLease};

/// Initial buffer sizes. tonic's 8 KiB each took a third of the time to wake 10 000
/// waits (measured).
const RESPONSE_BUFFER_BYTES: usize = 512;
const REQUEST_BUFFER_BYTES: usize = 256;
/// Number of bytes of a stream that are buffered before they are sent; tonic's default.
const YIELD_THRESHOLD_BYTES: usize = 32 * 1024;

/// An encoded response message.
#[derive(Debug)]
pub enum EncodedMessage {
    /// A `google.longrunning.Operation`.
    Operation(Arc<Operation>),
    /// A `LeaseOperationsResponse`. If it is dropped before it is sent, its leases are revoked.
    Leases {
        /// The encoded response.
        response: Bytes,
        /// The leases in it.
        leases: Vec<UndeliveredLease>,
    },
    /// Any other message.
    Bytes(Bytes),
}

/// The result of a unary method.
pub(crate) type UnaryResult = Result<Response<EncodedMessage>, Status>;
/// The responses of a streaming method.
pub(crate) type ResponseStream = BoxStream<'static, Result<EncodedMessage, Status>>;

/// Copies [`EncodedMessage`] responses and decodes prost requests. A malformed request
/// is an INVALID_ARGUMENT error.
#[derive(Debug)]
pub(crate) struct EncodedCodec<M>(PhantomData<M>);

// === impl EncodedMessage ===

impl EncodedMessage {
    /// `google.protobuf.Empty`.
    pub(crate) const EMPTY: Self = Self::Bytes(Bytes::new());

    /// Encodes a message as a response.
    pub(crate) fn encode(message: &impl Message) -> Response<Self> {
        Response::new(Self::Bytes(message.encode_to_vec().into()))
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Operation(operation) => operation.bytes(),
            Self::Bytes(bytes)
            | Self::Leases {
                response: bytes, ..
            } => bytes,
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
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<M> Encoder for EncodedCodec<M> {
    type Item = EncodedMessage;
    type Error = Status;

    fn encode(&mut self, item: EncodedMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let bytes = item.as_bytes();
        buffer.reserve(bytes.len());
        buffer.put_slice(bytes);
        // The connection takes a message only for a stream that its client has not reset.
        if let EncodedMessage::Leases { leases, .. } = item {
            for lease in leases {
                lease.deliver();
            }
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(RESPONSE_BUFFER_BYTES, YIELD_THRESHOLD_BYTES)
    }
}

impl<M: Message + Default> Decoder for EncodedCodec<M> {
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
