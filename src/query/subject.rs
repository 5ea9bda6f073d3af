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
    operation::{operation::Operation, wire::AnyRef},
    proto::google::rpc,
    types::Types,
};

/// A message of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Error,
    Response,
    Metadata,
}

/// An operation with its decoded messages.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub(super) operation: &'a Operation,
    types: &'a Types,
    error: OnceCell<Option<DynamicMessage>>,
    response: OnceCell<Option<DynamicMessage>>,
    metadata: OnceCell<Option<DynamicMessage>>,
    /// What is in the `Any`s inside these messages, by where an `Any` is: all of
    /// them stay in their places for as long as the subject is borrowed.
    opened: RefCell<HashMap<*const DynamicMessage, Option<Rc<DynamicMessage>>>>,
}

// === impl Subject ===

impl<'a> Subject<'a> {
    pub(super) fn new(operation: &'a Operation, types: &'a Types) -> Self {
        Self {
            operation,
            types,
            error: OnceCell::new(),
            response: OnceCell::new(),
            metadata: OnceCell::new(),
            opened: RefCell::default(),
        }
    }

    /// The error, if it ended with one.
    pub(super) fn error(&self) -> Option<&DynamicMessage> {
        let error = self.error.get_or_init(|| {
            let descriptor = self.types.descriptor(&rpc::Status::full_name())?;
            DynamicMessage::decode(descriptor, self.operation.wire().error()?).ok()
        });
        error.as_ref()
    }

    /// The `Any` of a part, if it is there; the error has none around it.
    pub(super) fn any(&self, part: Part) -> Option<AnyRef<'a>> {
        match part {
            Part::Error => None,
            Part::Response => self.operation.wire().response(),
            Part::Metadata => self.operation.wire().metadata(),
        }
    }

    /// The message of a part, if its type is registered and its bytes fit it.
    pub(super) fn message(&self, part: Part) -> Option<&DynamicMessage> {
        let cell = match part {
            Part::Error => return self.error(),
            Part::Response => &self.response,
            Part::Metadata => &self.metadata,
        };
        let decode = || {
            let any = self.any(part)?;
            self.types.decode(any.type_url, any.value)
        };
        cell.get_or_init(decode).as_ref()
    }

    /// The message in an `Any` that is inside one of the messages of this
    /// subject, if its type is registered and its bytes fit it.
    pub(super) fn open(&self, any: &DynamicMessage) -> Option<Rc<DynamicMessage>> {
        if let Some(opened) = self.opened.borrow().get(&ptr::from_ref(any)) {
            return opened.clone();
        }
        let decode = || {
            let (type_url, value) = (any.get_field_by_number(1)?, any.get_field_by_number(2)?);
            let message = self.types.decode(type_url.as_str()?, value.as_bytes()?)?;
            Some(Rc::new(message))
        };
        let opened = decode();
        let mut all = self.opened.borrow_mut();
        all.insert(ptr::from_ref(any), opened.clone());
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::google::rpc::Code,
        query::samples::{End, Facts, Metadata, types},
    };

    #[test]
    fn an_any_inside_a_message_is_decoded_once() {
        let facts = Facts {
            parent: "",
            id: "a".into(),
            end: End::Failed(Code::NotFound),
            queue: None,
            env: None,
            team: None,
            created: 0,
            metadata: Metadata::Own(None),
        };
        let operation = facts.operation(1);
        let subject = Subject::new(&operation, types());
        let details = subject.error().unwrap().get_field_by_name("details");
        let details = details.unwrap();
        let any = details.as_list().unwrap()[0].as_message().unwrap();
        let opened = subject.open(any).unwrap();
        let reason = opened.get_field_by_name("reason").unwrap();
        assert_eq!(reason.as_str(), Some("TEST"));
        assert!(Rc::ptr_eq(&opened, &subject.open(any).unwrap()));
    }
}
