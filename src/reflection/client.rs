//! Asks another server for its types. Who wants them, and what happens if it is
//! away, is decided by the caller, who also sets a limit to the time.

use std::collections::{BTreeMap, VecDeque};

use futures_util::stream::poll_fn;
use http::uri::PathAndQuery;
use prost::Message;
use prost_types::FileDescriptorProto;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse,
    server_reflection_request::MessageRequest as Question,
    server_reflection_response::MessageResponse as Answer,
};

use crate::types::TypeRegistry;

/// The versions, newest first. Their messages are the same.
const VERSION_PATHS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// More files than any server has; who sends more has gone wrong.
const MAX_FILES: usize = 10_000;
/// The largest answer, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// The reflection of a server.
#[derive(Debug)]
pub(crate) struct ReflectionClient {
    channel: Channel,
    versions: &'static [&'static str],
    session: Option<Session>,
}

/// One stream of questions and answers.
#[derive(Debug)]
struct Session {
    requests: mpsc::Sender<ServerReflectionRequest>,
    responses: Streaming<ServerReflectionResponse>,
}

// === impl Reflector ===

impl ReflectionClient {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel,
            versions: &VERSION_PATHS,
            session: None,
        }
    }

    /// The encoded files of all services, with what they import, except those
    /// that `types` has already.
    ///
    /// # Errors
    /// UNIMPLEMENTED if the server has no reflection; otherwise the status of a
    /// call that did not succeed.
    pub(crate) async fn fetch_all_files(
        &mut self,
        types: &TypeRegistry,
    ) -> Result<Vec<Vec<u8>>, Status> {
        let services = match self.call(Question::ListServices(String::new())).await? {
            Some(Answer::ListServicesResponse(list)) => list.service,
            _ => Vec::new(),
        };
        let symbols: Vec<String> = services.into_iter().map(|service| service.name).collect();
        self.fetch_symbol_files(symbols, types).await
    }

    /// The encoded files that define these types or services, with what they
    /// import, except those that `types` has already. What the server does not
    /// know is left out.
    ///
    /// # Errors
    /// As of [`Reflector::all`].
    pub(crate) async fn fetch_symbol_files(
        &mut self,
        symbols: impl IntoIterator<Item = String>,
        types: &TypeRegistry,
    ) -> Result<Vec<Vec<u8>>, Status> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let requests = symbols.into_iter().map(Question::FileContainingSymbol);
        let mut requests: VecDeque<Question> = requests.collect();
        while let Some(request) = requests.pop_front() {
            if let Question::FileByFilename(name) = &request
                && (files.contains_key(name) || types.file(name).is_some())
            {
                continue;
            }
            let Some(Answer::FileDescriptorResponse(files_response)) = self.call(request).await?
            else {
                continue;
            };
            for bytes in files_response.file_descriptor_proto {
                let file = FileDescriptorProto::decode(bytes.as_slice());
                let file = file.map_err(|error| Status::internal(error.to_string()))?;
                if types.file(file.name()).is_some() || files.contains_key(file.name()) {
                    continue;
                }
                if MAX_FILES <= files.len() {
                    return Err(Status::internal("its reflection has too many files"));
                }
                requests.extend(
                    file.dependency
                        .iter()
                        .cloned()
                        .map(Question::FileByFilename),
                );
                files.insert(file.name().to_owned(), bytes);
            }
        }
        Ok(files.into_values().collect())
    }

    /// The answer; nothing if the server does not know.
    async fn call(&mut self, request: Question) -> Result<Option<Answer>, Status> {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let response = match self.round_trip(request).await {
            Ok(response) => response,
            // Some servers end the stream where they should answer.
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status),
        };
        match response {
            Some(Answer::ErrorResponse(error)) => match Code::from(error.error_code) {
                Code::NotFound => Ok(None),
                code => Err(Status::new(code, error.error_message)),
            },
            response => Ok(response),
        }
    }

    async fn round_trip(
        &mut self,
        request: ServerReflectionRequest,
    ) -> Result<Option<Answer>, Status> {
        // Put back only when it has answered, for it ends with an error.
        let mut session = match self.session.take() {
            Some(session) => {
                let sent = session.requests.send(request).await;
                sent.map_err(|_| Status::unavailable("its reflection broke off"))?;
                session
            }
            None => self.open_session(request).await?,
        };
        let response = session.responses.message().await?;
        let response = response.ok_or_else(|| Status::unavailable("its reflection broke off"))?;
        self.session = Some(session);
        Ok(response.message_response)
    }

    /// Begins a stream with its first question: some servers say nothing, not
    /// even that there is no such service, before they have one.
    async fn open_session(&mut self, request: ServerReflectionRequest) -> Result<Session, Status> {
        let mut grpc =
            Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_RESPONSE_BYTES);
        loop {
            let [version, older @ ..] = self.versions else {
                return Err(Status::unimplemented("it has no reflection"));
            };
            let (requests, mut request_receiver) = mpsc::channel(1);
            let sent = requests.try_send(request.clone());
            sent.map_err(|error| Status::internal(error.to_string()))?;
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let stream =
                tonic::Request::new(poll_fn(move |context| request_receiver.poll_recv(context)));
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
