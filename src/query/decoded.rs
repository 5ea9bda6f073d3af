//! Decodes the messages of one operation on demand, each at most once per evaluation.

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

/// A field of an operation that holds a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageField {
    Error,
    Response,
    Metadata,
}

/// An operation with lazily decoded messages.
#[derive(Debug)]
pub(super) struct DecodedOperation<'a> {
    pub(super) operation: &'a Operation,
    types: &'a TypeRegistry,
    /// The decoded messages, indexed by [`MessageField`].
    messages: [OnceCell<Option<DynamicMessage>>; MessageField::COUNT],
    /// The decoded content of nested `Any`s by address. Addresses are stable as long as
    /// this value is borrowed: decoded messages are neither changed nor dropped.
    any_cache: RefCell<HashMap<*const DynamicMessage, Option<Rc<DynamicMessage>>>>,
}

// === impl MessageField ===

impl MessageField {
    /// The number of fields.
    const COUNT: usize = Self::Metadata as usize + 1;
}

// === impl DecodedOperation ===

impl<'a> DecodedOperation<'a> {
    pub(super) fn new(operation: &'a Operation, types: &'a TypeRegistry) -> Self {
        Self {
            operation,
            types,
            messages: Default::default(),
            any_cache: RefCell::default(),
        }
    }

    /// Returns the `Any` of a field, or `None` if it is not set. The error has no `Any`.
    pub(super) fn any(&self, field: MessageField) -> Option<AnyRef<'a>> {
        match field {
            MessageField::Error => None,
            MessageField::Response => self.operation.encoded().response(),
            MessageField::Metadata => self.operation.encoded().metadata(),
        }
    }

    /// Returns the message of a field, or `None` if it is not set, its type is not
    /// registered, or its bytes do not fit the type.
    pub(super) fn message(&self, field: MessageField) -> Option<&DynamicMessage> {
        let decode = || match field {
            MessageField::Error => {
                let error = self.operation.encoded().error()?;
                self.types.decode(&rpc::Status::full_name(), error)
            }
            MessageField::Response | MessageField::Metadata => {
                let any = self.any(field)?;
                self.types.decode(any.type_url, any.value)
            }
        };
        self.messages[field as usize].get_or_init(decode).as_ref()
    }

    /// Returns the content of an `Any` nested in a message of this operation, or `None` if
    /// its type is not registered or its bytes do not fit the type. `any` must be borrowed
    /// from a message that this value owns.
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
        query::testing::{SampleMetadata, SampleOperation, SampleState, built_in_types},
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
        let details = decoded
            .message(MessageField::Error)
            .unwrap()
            .get_field_by_name("details");
        let details = details.unwrap();
        let any = details.as_list().unwrap()[0].as_message().unwrap();
        let detail = decoded.decode_any(any).unwrap();
        let reason = detail.get_field_by_name("reason").unwrap();
        assert_eq!(reason.as_str(), Some("TEST"));
        assert!(Rc::ptr_eq(&detail, &decoded.decode_any(any).unwrap()));
    }
}
