//! A `google.protobuf.Any` that clients can unpack: checked once on the way
//! in, shared from then on. What is inside is nobody's business here.

use std::{fmt, sync::Arc};

use prost_types::Any;

use super::name::excerpt;

/// What stands in front of a bare message name (`any.proto`).
const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// A checked `Any`. Clones share its bytes.
#[derive(Clone, PartialEq)]
pub struct Payload(Arc<Any>);

/// The `type_url` names no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a type URL: it must be type.googleapis.com/ and the full name of a message, such as type.googleapis.com/google.protobuf.Empty"
)]
pub struct InvalidAny(String);

// === impl Payload ===

impl Payload {
    /// Checks the type URL. A bare `pkg.Msg`, or prost's `/pkg.Msg`, gets
    /// `type.googleapis.com/` in front; another prefix is kept as it is.
    ///
    /// # Errors
    /// [`InvalidAny`] if the URL is empty or names no message.
    pub fn new(mut any: Any) -> Result<Self, InvalidAny> {
        let (prefix, message) = any.type_url.rsplit_once('/').unwrap_or(("", &any.type_url));
        let has_blank_or_control = |text: &str| {
            text.chars()
                .any(|letter| letter.is_whitespace() || letter.is_control())
        };
        if !is_message_name(message) || has_blank_or_control(prefix) {
            return Err(InvalidAny(excerpt(&any.type_url)));
        }
        if prefix.is_empty() {
            any.type_url = format!("{TYPE_URL_PREFIX}{message}");
        }
        Ok(Self(Arc::new(any)))
    }

    /// Packs a message of ours or of `google`.
    pub fn pack<M: prost::Name>(message: &M) -> Self {
        let type_url = format!("{TYPE_URL_PREFIX}{}", M::full_name());
        Self(Arc::new(Any {
            type_url,
            value: message.encode_to_vec(),
        }))
    }

    /// `google.protobuf.Empty`: the response of work that has nothing to say.
    pub fn empty() -> Self {
        Self(Arc::new(Any {
            type_url: format!("{TYPE_URL_PREFIX}google.protobuf.Empty"),
            value: Vec::new(),
        }))
    }

    /// The `Any` itself.
    pub fn any(&self) -> &Any {
        &self.0
    }

    /// How many bytes it holds.
    pub(crate) fn size(&self) -> usize {
        self.0.type_url.len() + self.0.value.len()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} bytes)", self.0.type_url, self.0.value.len())
    }
}

fn is_message_name(text: &str) -> bool {
    let is_identifier = |segment: &str| {
        segment.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    text.split('.').all(is_identifier)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalized_url(text: &str) -> Result<String, InvalidAny> {
        Payload::new(Any {
            type_url: text.into(),
            value: Vec::new(),
        })
        .map(|payload| payload.any().type_url.clone())
    }

    #[test]
    fn bare_message_name_gets_default_prefix_and_others_are_unchanged() {
        assert_eq!(
            normalized_url("pkg.Msg").unwrap(),
            "type.googleapis.com/pkg.Msg"
        );
        assert_eq!(
            normalized_url("/pkg.Msg").unwrap(),
            "type.googleapis.com/pkg.Msg"
        );
        assert_eq!(
            normalized_url("type.googleapis.com/pkg.Msg").unwrap(),
            "type.googleapis.com/pkg.Msg"
        );
        assert_eq!(
            normalized_url("example.com/x/T").unwrap(),
            "example.com/x/T"
        );
    }

    #[test]
    fn empty_or_malformed_type_url_is_rejected() {
        for bad in [
            "",
            "/",
            "example.com/",
            "a b",
            "x/.",
            "x/a..b",
            "x/1a",
            "x y/pkg.Msg",
            "type.googleapis.com/é",
        ] {
            assert!(normalized_url(bad).is_err(), "{bad:?}");
        }
    }
}
