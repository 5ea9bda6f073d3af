//! A validated `google.protobuf.Any`. Its value stays opaque.

use std::{fmt, sync::Arc};

use prost_types::Any;

use super::name::excerpt;

/// The default prefix of a message name (`any.proto`).
const TYPE_URL_PREFIX: &str = "type.googleapis.com/";
const EMPTY_TYPE_URL: &str = "type.googleapis.com/google.protobuf.Empty";

/// An `Any` with a well-formed type URL. Clones share its bytes.
#[derive(Clone, PartialEq)]
pub struct Payload(Arc<Any>);

/// A malformed type URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid type URL {0:?}: use type.googleapis.com/ and the full name of a message, such as type.googleapis.com/google.protobuf.Empty"
)]
pub struct InvalidAny(String);

// === impl Payload ===

impl Payload {
    /// Validates the type URL. A bare `pkg.Msg`, or prost's `/pkg.Msg`, gets the
    /// prefix `type.googleapis.com/`; another prefix stays unchanged.
    ///
    /// # Errors
    /// [`InvalidAny`] if the URL is empty or does not end with a message name.
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

    /// Packs a message.
    pub fn pack<M: prost::Name>(message: &M) -> Self {
        let type_url = format!("{TYPE_URL_PREFIX}{}", M::full_name());
        Self(Arc::new(Any {
            type_url,
            value: message.encode_to_vec(),
        }))
    }

    /// Makes a `google.protobuf.Empty`, the response of work without a result.
    pub fn empty() -> Self {
        // Not `pack`, which formats the type URL in each call: an empty response is common.
        Self(Arc::new(Any {
            type_url: EMPTY_TYPE_URL.to_owned(),
            value: Vec::new(),
        }))
    }

    /// Returns the `Any`.
    pub fn any(&self) -> &Any {
        &self.0
    }

    /// Returns the size of the type URL and the value in bytes.
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

    // Rules: OP-5
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

    // Rules: OP-5
    #[test]
    fn empty_or_malformed_type_url_is_rejected() {
        for invalid in [
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
            assert!(normalized_url(invalid).is_err(), "{invalid:?}");
        }
    }
}
