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

use crate::types::Types;

/// Tells of services and types.
#[derive(Clone, Debug)]
pub(crate) struct Reflection {
    types: Types,
    services: Vec<&'static str>,
}

/// The service for these types, and for a listener with these services.
pub(crate) fn reflection_server(
    types: &Types,
    services: Vec<&'static str>,
) -> ServerReflectionServer<Reflection> {
    ServerReflectionServer::new(Reflection {
        types: types.clone(),
        services,
    })
}

#[tonic::async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream =
        Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let this = self.clone();
        let answers = request
            .into_inner()
            .map(move |request| request.map(|request| this.answer(request)));
        Ok(Response::new(Box::pin(answers)))
    }
}

// === impl Reflection ===

impl Reflection {
    /// What is not found is an answer too: the stream goes on.
    fn answer(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let answer = match &request.message_request {
            Some(question) => self.look_up(question),
            None => Err(Status::invalid_argument("ask for something")),
        };
        let answer = answer.unwrap_or_else(|status| {
            Answer::ErrorResponse(ErrorResponse {
                error_code: status.code().into(),
                error_message: status.message().to_owned(),
            })
        });
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(answer),
        }
    }

    fn look_up(&self, question: &Question) -> Result<Answer, Status> {
        let pool = self.types.pool();
        let file = match question {
            Question::ListServices(_) => return Ok(self.services()),
            Question::AllExtensionNumbersOfType(name) => return extension_numbers(&pool, name),
            Question::FileByFilename(name) => pool.get_file_by_name(name),
            Question::FileContainingSymbol(symbol) => file_of(&pool, symbol),
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
fn file_of(pool: &DescriptorPool, symbol: &str) -> Option<FileDescriptor> {
    let symbol = symbol.trim_start_matches('.');
    let whole = |name: &str| {
        let message = || Some(pool.get_message_by_name(name)?.parent_file());
        let service = || Some(pool.get_service_by_name(name)?.parent_file());
        let values = || Some(pool.get_enum_by_name(name)?.parent_file());
        message().or_else(service).or_else(values)
    };
    let extension = || {
        let mut all = pool.all_extensions();
        let extension = all.find(|extension| extension.full_name() == symbol)?;
        Some(extension.parent_file())
    };
    let within = || {
        let (name, part) = symbol.rsplit_once('.')?;
        let has_part = || {
            let in_message = pool.get_message_by_name(name).is_some_and(|message| {
                message.get_field_by_name(part).is_some()
                    || message.oneofs().any(|oneof| oneof.name() == part)
            });
            let in_service = pool.get_service_by_name(name).is_some_and(|service| {
                let mut methods = service.methods();
                methods.any(|method| method.name() == part)
            });
            let in_enum = pool
                .get_enum_by_name(name)
                .is_some_and(|values| values.get_value_by_name(part).is_some());
            in_message || in_service || in_enum
        };
        has_part().then(|| whole(name)).flatten()
    };
    whole(symbol).or_else(extension).or_else(within)
}
