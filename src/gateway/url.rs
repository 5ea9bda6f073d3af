//! Strict percent-decoding: malformed input is an error.

/// The part of a URL, which determines its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UrlPart {
    /// A path variable of many segments. An escaped slash stays escaped, so that it does
    /// not separate segments (http.proto).
    MultiSegment,
    /// A path variable of one segment.
    SingleSegment,
    /// A key or a value of the query. `+` is a space.
    Query,
}

/// Error for a malformed part of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidUrl {
    #[error("% must be followed by two hexadecimal digits; write %25 for a literal %")]
    MalformedEscape,
    #[error("the percent-decoded text is not UTF-8")]
    InvalidUtf8,
}

/// Percent-decodes a part of a URL.
pub(super) fn percent_decode(text: &str, part: UrlPart) -> Result<String, InvalidUrl> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (bytes.next(), bytes.next());
                let byte = parse_hex_byte(high, low).ok_or(InvalidUrl::MalformedEscape)?;
                if byte == b'/' && part == UrlPart::MultiSegment {
                    // Preserve the case of the hexadecimal digits.
                    decoded.push(b'%');
                    decoded.extend(high);
                    decoded.extend(low);
                } else {
                    decoded.push(byte);
                }
            }
            b'+' if part == UrlPart::Query => decoded.push(b' '),
            byte => decoded.push(byte),
        }
    }
    String::from_utf8(decoded).map_err(|_| InvalidUrl::InvalidUtf8)
}

fn parse_hex_byte(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let hex_digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    u8::try_from(hex_digit(high)? * 16 + hex_digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Rules: HTTP-5
    #[test]
    fn escaped_slash_stays_escaped_only_in_multi_segment_variables() {
        assert_eq!(
            percent_decode("a%2Fb%2fc", UrlPart::MultiSegment).unwrap(),
            "a%2Fb%2fc"
        );
        assert_eq!(
            percent_decode("a%2Fb%2fc", UrlPart::SingleSegment).unwrap(),
            "a/b/c"
        );
        assert_eq!(percent_decode("a%2Fb", UrlPart::Query).unwrap(), "a/b");
    }

    // Rules: HTTP-6
    #[test]
    fn plus_is_a_space_only_in_the_query() {
        assert_eq!(percent_decode("a+b%2B", UrlPart::Query).unwrap(), "a b+");
        assert_eq!(percent_decode("a+b", UrlPart::MultiSegment).unwrap(), "a+b");
    }

    // Rules: HTTP-5
    #[test]
    fn malformed_percent_encoding_is_rejected() {
        for malformed in ["%", "%2", "%zz", "a%", "%%41", "%+1", "%-1", "%é"] {
            assert_eq!(
                percent_decode(malformed, UrlPart::MultiSegment),
                Err(InvalidUrl::MalformedEscape),
                "{malformed}"
            );
        }
        for malformed in ["%ff", "%c3", "%c3%28", "%ed%a0%80"] {
            assert_eq!(
                percent_decode(malformed, UrlPart::Query),
                Err(InvalidUrl::InvalidUtf8),
                "{malformed}"
            );
        }
        assert_eq!(
            percent_decode("%C3%a9\u{e9}", UrlPart::Query).unwrap(),
            "\u{e9}\u{e9}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_percent_decoded_without_panic(text in "[%+/a-f0-9é]{0,20}") {
            for part in [UrlPart::MultiSegment, UrlPart::SingleSegment, UrlPart::Query] {
                let _ = percent_decode(&text, part);
            }
        }

        #[test]
        fn percent_encoded_text_decodes_to_the_original(text in "\\PC{0,40}") {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(percent_decode(&escaped, UrlPart::SingleSegment), Ok(text.clone()));
            prop_assert_eq!(percent_decode(&escaped, UrlPart::Query), Ok(text));
        }
    }
}
