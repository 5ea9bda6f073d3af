//! One operation as it is asked: its messages, and those in the `Any`s inside
//! them, each decoded at most once, however many terms look into it.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    ptr,
    rc::Rc,
};

use prost::Name;
use prost_reflect::DynamicMessage;

use crate::{
    operation::{Operation, encoded::AnyRef},
    proto::google::rpc,
    types::TypeRegistry,
};

/// A message of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageField {
    Error,
    Response,
    Metadata,
}

/// An operation with its decoded messages.
#[derive(Debug)]
pub(super) struct DecodedOperation<'a> {
    pub(super) operation: &'a Operation,
    types: &'a TypeRegistry,
    error: OnceCell<Option<DynamicMessage>>,
    response: OnceCell<Option<DynamicMessage>>,
    metadata: OnceCell<Option<DynamicMessage>>,
    /// What is in the `Any`s inside these messages, by where an `Any` is: all of
    /// them stay in their places for as long as the subject is borrowed.
    any_cache: RefCell<HashMap<*const DynamicMessage, Option<Rc<DynamicMessage>>>>,
}

// === impl Subject ===

impl<'a> DecodedOperation<'a> {
    pub(super) fn new(operation: &'a Operation, types: &'a TypeRegistry) -> Self {
        Self {
            operation,
            types,
            error: OnceCell::new(),
            response: OnceCell::new(),
            metadata: OnceCell::new(),
            any_cache: RefCell::default(),
        }
    }

    /// The error, if it ended with one.
    pub(super) fn error(&self) -> Option<&DynamicMessage> {
        let error = self.error.get_or_init(|| {
            let descriptor = self.types.descriptor(&rpc::Status::full_name())?;
            DynamicMessage::decode(descriptor, self.operation.encoded().error()?).ok()
        });
        error.as_ref()
    }

    /// The `Any` of a part, if it is there; the error has none around it.
    pub(super) fn any(&self, field: MessageField) -> Option<AnyRef<'a>> {
        match field {
            MessageField::Error => None,
            MessageField::Response => self.operation.encoded().response(),
            MessageField::Metadata => self.operation.encoded().metadata(),
        }
    }

    /// The message of a part, if its type is registered and its bytes fit it.
    pub(super) fn message(&self, field: MessageField) -> Option<&DynamicMessage> {
        let cell = match field {
            MessageField::Error => return self.error(),
            MessageField::Response => &self.response,
            MessageField::Metadata => &self.metadata,
        };
        let decode = || {
            let any = self.any(field)?;
            self.types.decode(any.type_url, any.value)
        };
        cell.get_or_init(decode).as_ref()
    }

    /// The message in an `Any` that is inside one of the messages of this
    /// subject, if its type is registered and its bytes fit it.
    pub(super) fn decode_any(&self, any: &DynamicMessage) -> Option<Rc<DynamicMessage>> {
        if let Some(cached) = self.any_cache.borrow().get(&ptr::from_ref(any)) {
            return cached.clone();
        }
        let decode = || {
            let (type_url, value) = (any.get_field_by_number(1)?, any.get_field_by_number(2)?);
            let message = self.types.decode(type_url.as_str()?, value.as_bytes()?)?;
            Some(Rc::new(message))
        };
        let decoded = decode();
        let mut cache = self.any_cache.borrow_mut();
        cache.insert(ptr::from_ref(any), decoded.clone());
        decoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::google::rpc::Code,
        query::samples::{SampleMetadata, SampleOperation, SampleState, built_in_types},
    };

    #[test]
    fn nested_any_is_decoded_once() {
        let sample = SampleOperation {
            parent: "",
            id: "a".into(),
            state: SampleState::Failed(Code::NotFound),
            queue: None,
            env: None,
            team: None,
            created_after_secs: 0,
            metadata: SampleMetadata::Server(None),
        };
        let operation = sample.to_operation(1);
        let decoded = DecodedOperation::new(&operation, built_in_types());
        let details = decoded.error().unwrap().get_field_by_name("details");
        let details = details.unwrap();
        let any = details.as_list().unwrap()[0].as_message().unwrap();
        let detail = decoded.decode_any(any).unwrap();
        let reason = detail.get_field_by_name("reason").unwrap();
        assert_eq!(reason.as_str(), Some("TEST"));
        assert!(Rc::ptr_eq(&detail, &decoded.decode_any(any).unwrap()));
    }
}
