//! Loads message types from another server through gRPC reflection. Calls have no
//! timeout; the caller sets one.

use std::collections::{BTreeMap, VecDeque};

use futures_util::stream::poll_fn;
use http::uri::PathAndQuery;
use prost::Message;
use prost_types::FileDescriptorProto;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use crate::types::TypeRegistry;

/// The method paths of all reflection versions, newest first. Their messages are
/// identical.
const VERSION_PATHS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The maximum number of files; a server that sends more is faulty.
const MAX_FILES: usize = 10_000;
/// The maximum size of a response.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// A client of a server's reflection service.
#[derive(Debug)]
pub(crate) struct ReflectionClient {
    channel: Channel,
    versions: &'static [&'static str],
    session: Option<Session>,
}

/// An open reflection stream.
#[derive(Debug)]
struct Session {
    requests: mpsc::Sender<ServerReflectionRequest>,
    responses: Streaming<ServerReflectionResponse>,
}

// === impl ReflectionClient ===

impl ReflectionClient {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel,
            versions: &VERSION_PATHS,
            session: None,
        }
    }

    /// Returns the encoded files that define the server's services, with their
    /// imports, except those that `types` already has.
    ///
    /// # Errors
    /// UNIMPLEMENTED if the server has no reflection, or the status of a failed
    /// call.
    pub(crate) async fn fetch_all_files(
        &mut self,
        types: &TypeRegistry,
    ) -> Result<Vec<Vec<u8>>, Status> {
        let request = MessageRequest::ListServices(String::new());
        let services = match self.call(request).await? {
            Some(MessageResponse::ListServicesResponse(list)) => list.service,
            _ => Vec::new(),
        };
        let symbols = services.into_iter().map(|service| service.name);
        self.fetch_symbol_files(symbols, types).await
    }

    /// Returns the encoded files that define `symbols` (types or services), with
    /// their imports, except those that `types` already has. Symbols that the server
    /// does not know are skipped.
    ///
    /// # Errors
    /// As [`ReflectionClient::fetch_all_files`].
    pub(crate) async fn fetch_symbol_files(
        &mut self,
        symbols: impl IntoIterator<Item = String>,
        types: &TypeRegistry,
    ) -> Result<Vec<Vec<u8>>, Status> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let symbols = symbols.into_iter();
        let mut requests: VecDeque<_> = symbols.map(MessageRequest::FileContainingSymbol).collect();
        while let Some(request) = requests.pop_front() {
            if let MessageRequest::FileByFilename(name) = &request
                && (files.contains_key(name) || types.file(name).is_some())
            {
                continue;
            }
            let Some(MessageResponse::FileDescriptorResponse(files_response)) =
                self.call(request).await?
            else {
                continue;
            };
            for bytes in files_response.file_descriptor_proto {
                let file = FileDescriptorProto::decode(bytes.as_slice());
                let file = file.map_err(|error| Status::internal(error.to_string()))?;
                if types.file(file.name()).is_some() || files.contains_key(file.name()) {
                    continue;
                }
                if files.len() >= MAX_FILES {
                    return Err(Status::internal("reflection returned too many files"));
                }
                let imports = file.dependency.iter().cloned();
                requests.extend(imports.map(MessageRequest::FileByFilename));
                files.insert(file.name().to_owned(), bytes);
            }
        }
        Ok(files.into_values().collect())
    }

    /// Sends a request. Returns `None` if the server answers NOT_FOUND.
    async fn call(&mut self, request: MessageRequest) -> Result<Option<MessageResponse>, Status> {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let response = match self.round_trip(request).await {
            Ok(response) => response,
            // Some servers end the stream instead of sending an error response.
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status),
        };
        match response {
            Some(MessageResponse::ErrorResponse(error)) => match Code::from(error.error_code) {
                Code::NotFound => Ok(None),
                code => Err(Status::new(code, error.error_message)),
            },
            response => Ok(response),
        }
    }

    async fn round_trip(
        &mut self,
        request: ServerReflectionRequest,
    ) -> Result<Option<MessageResponse>, Status> {
        // The stream ends with an error, so the session is kept only on success.
        let mut session = match self.session.take() {
            Some(session) => {
                let sent = session.requests.send(request).await;
                sent.map_err(|_| Status::unavailable("reflection stream closed"))?;
                session
            }
            None => self.open_session(request).await?,
        };
        let response = session.responses.message().await?;
        let response = response.ok_or_else(|| Status::unavailable("reflection stream closed"))?;
        self.session = Some(session);
        Ok(response.message_response)
    }

    /// Opens a stream with its first request: some servers send nothing, not even
    /// UNIMPLEMENTED, before they receive one.
    async fn open_session(&mut self, request: ServerReflectionRequest) -> Result<Session, Status> {
        let mut grpc =
            Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_RESPONSE_BYTES);
        loop {
            let [version, older @ ..] = self.versions else {
                return Err(Status::unimplemented("server has no reflection service"));
            };
            let (requests, mut request_receiver) = mpsc::channel(1);
            let sent = requests.try_send(request.clone());
            sent.map_err(|error| Status::internal(error.to_string()))?;
            let ready = grpc.ready().await;
            ready.map_err(|error| Status::unavailable(error.to_string()))?;
            let stream = poll_fn(move |context| request_receiver.poll_recv(context));
            let stream = tonic::Request::new(stream);
            let path = PathAndQuery::from_static(version);
            let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
            match grpc.streaming(stream, path, codec).await {
                Ok(responses) => {
                    return Ok(Session {
                        requests,
                        responses: responses.into_inner(),
                    });
                }
                Err(status) if status.code() == Code::Unimplemented => self.versions = older,
                Err(status) => return Err(status),
            }
        }
    }
}
