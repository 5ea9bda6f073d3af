//! The reflection service of a listener. Unlike the one of tonic-reflection, it
//! reads the type registry on each request and so includes reloaded types.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use prost_reflect::{DescriptorPool, FileDescriptor};
use tonic::{Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
    server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};

use crate::types::TypeRegistry;

/// Serves gRPC reflection from a type registry.
#[derive(Clone, Debug)]
pub(crate) struct ReflectionService {
    types: TypeRegistry,
    services: Vec<&'static str>,
}

/// Creates the reflection service of a listener that has these `services`.
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
        let requests = request.into_inner();
        let responses = requests.map(move |request| Ok(this.respond(request?)));
        Ok(Response::new(Box::pin(responses)))
    }
}

// === impl ReflectionService ===

impl ReflectionService {
    /// Builds the response. Errors are responses too and do not end the stream.
    fn respond(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let result = match &request.message_request {
            Some(message_request) => self.resolve(message_request),
            None => Err(Status::invalid_argument("request has no message_request")),
        };
        let message_response = result.unwrap_or_else(|status| {
            MessageResponse::ErrorResponse(ErrorResponse {
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

    fn resolve(&self, message_request: &MessageRequest) -> Result<MessageResponse, Status> {
        let pool = self.types.pool();
        let file = match message_request {
            MessageRequest::ListServices(_) => return Ok(self.services()),
            MessageRequest::AllExtensionNumbersOfType(name) => {
                return extension_numbers(&pool, name);
            }
            MessageRequest::FileByFilename(name) => pool.get_file_by_name(name),
            MessageRequest::FileContainingSymbol(symbol) => file_containing_symbol(&pool, symbol),
            MessageRequest::FileContainingExtension(extension) => pool
                .get_message_by_name(&extension.containing_type)
                .zip(u32::try_from(extension.extension_number).ok())
                .and_then(|(extended, number)| extended.get_extension(number))
                .map(|extension| extension.parent_file()),
        };
        let file = file.ok_or_else(|| Status::not_found("symbol or file not found"))?;
        let response = FileDescriptorResponse {
            file_descriptor_proto: vec![file.encode_to_vec()],
        };
        Ok(MessageResponse::FileDescriptorResponse(response))
    }

    fn services(&self) -> MessageResponse {
        let names = self.services.iter().map(|name| (*name).to_owned());
        MessageResponse::ListServicesResponse(ListServiceResponse {
            service: names.map(|name| ServiceResponse { name }).collect(),
        })
    }
}

fn extension_numbers(pool: &DescriptorPool, name: &str) -> Result<MessageResponse, Status> {
    let extended = pool.get_message_by_name(name);
    let extended = extended.ok_or_else(|| Status::not_found("type not found"))?;
    let numbers = extended.extensions().map(|extension| extension.number());
    let response = ExtensionNumberResponse {
        base_type_name: name.to_owned(),
        extension_number: numbers
            .filter_map(|number| number.try_into().ok())
            .collect(),
    };
    Ok(MessageResponse::AllExtensionNumbersResponse(response))
}

/// Returns the file that defines a type, a service, an extension, or a member of
/// one.
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
            let in_service = pool
                .get_service_by_name(name)
                .is_some_and(|service| service.methods().any(|method| method.name() == member));
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
