//! The reflection service of a listener. It answers from the registry, so that
//! types which are registered later are seen by the very next question; the
//! service of tonic-reflection knows what it was built with. Which path leads
//! here is decided in `server`.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use prost_reflect::{DescriptorPool, FileDescriptor};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
    server_reflection_request::MessageRequest as Question,
    server_reflection_response::MessageResponse as Answer,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};

use crate::types::TypeRegistry;

/// Tells of services and types.
#[derive(Clone, Debug)]
pub(crate) struct ReflectionService {
    types: TypeRegistry,
    services: Vec<&'static str>,
}

/// The service for these types, and for a listener with these services.
pub(crate) fn reflection_server(
    types: &TypeRegistry,
    services: Vec<&'static str>,
) -> ServerReflectionServer<ReflectionService> {
    ServerReflectionServer::new(ReflectionService {
        types: types.clone(),
        services,
    })
}

#[tonic::async_trait]
impl ServerReflection for ReflectionService {
    type ServerReflectionInfoStream =
        Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let this = self.clone();
        let responses = request
            .into_inner()
            .map(move |request| request.map(|request| this.respond(request)));
        Ok(Response::new(Box::pin(responses)))
    }
}

// === impl Reflection ===

impl ReflectionService {
    /// What is not found is an answer too: the stream goes on.
    fn respond(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let result = match &request.message_request {
            Some(message_request) => self.resolve(message_request),
            None => Err(Status::invalid_argument("ask for something")),
        };
        let message_response = result.unwrap_or_else(|status| {
            Answer::ErrorResponse(ErrorResponse {
                error_code: status.code().into(),
                error_message: status.message().to_owned(),
            })
        });
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(message_response),
        }
    }

    fn resolve(&self, message_request: &Question) -> Result<Answer, Status> {
        let pool = self.types.pool();
        let file = match message_request {
            Question::ListServices(_) => return Ok(self.services()),
            Question::AllExtensionNumbersOfType(name) => return extension_numbers(&pool, name),
            Question::FileByFilename(name) => pool.get_file_by_name(name),
            Question::FileContainingSymbol(symbol) => file_containing_symbol(&pool, symbol),
            Question::FileContainingExtension(extension) => pool
                .get_message_by_name(&extension.containing_type)
                .zip(u32::try_from(extension.extension_number).ok())
                .and_then(|(extended, number)| extended.get_extension(number))
                .map(|extension| extension.parent_file()),
        };
        let file = file.ok_or_else(|| Status::new(Code::NotFound, "there is no such thing"))?;
        Ok(Answer::FileDescriptorResponse(FileDescriptorResponse {
            file_descriptor_proto: vec![file.encode_to_vec()],
        }))
    }

    fn services(&self) -> Answer {
        let names = self.services.iter().map(|name| (*name).to_owned());
        Answer::ListServicesResponse(ListServiceResponse {
            service: names.map(|name| ServiceResponse { name }).collect(),
        })
    }
}

fn extension_numbers(pool: &DescriptorPool, name: &str) -> Result<Answer, Status> {
    let extended = pool
        .get_message_by_name(name)
        .ok_or_else(|| Status::not_found("there is no such type"))?;
    let numbers = extended.extensions().map(|extension| extension.number());
    Ok(Answer::AllExtensionNumbersResponse(
        ExtensionNumberResponse {
            base_type_name: name.to_owned(),
            extension_number: numbers
                .filter_map(|number| number.try_into().ok())
                .collect(),
        },
    ))
}

/// The file that defines a type, a service, or something within one.
fn file_containing_symbol(pool: &DescriptorPool, symbol: &str) -> Option<FileDescriptor> {
    let symbol = symbol.trim_start_matches('.');
    let file_defining = |name: &str| {
        let message = || Some(pool.get_message_by_name(name)?.parent_file());
        let service = || Some(pool.get_service_by_name(name)?.parent_file());
        let enumeration = || Some(pool.get_enum_by_name(name)?.parent_file());
        message().or_else(service).or_else(enumeration)
    };
    let file_of_extension = || {
        let mut extensions = pool.all_extensions();
        let extension = extensions.find(|extension| extension.full_name() == symbol)?;
        Some(extension.parent_file())
    };
    let file_of_member = || {
        let (name, member) = symbol.rsplit_once('.')?;
        let has_member = || {
            let in_message = pool.get_message_by_name(name).is_some_and(|message| {
                message.get_field_by_name(member).is_some()
                    || message.oneofs().any(|oneof| oneof.name() == member)
            });
            let in_service = pool.get_service_by_name(name).is_some_and(|service| {
                let mut methods = service.methods();
                methods.any(|method| method.name() == member)
            });
            let in_enum = pool
                .get_enum_by_name(name)
                .is_some_and(|descriptor| descriptor.get_value_by_name(member).is_some());
            in_message || in_service || in_enum
        };
        has_member().then(|| file_defining(name)).flatten()
    };
    file_defining(symbol)
        .or_else(file_of_extension)
        .or_else(file_of_member)
}
