//! Percent-decoding, strictly: what is not well formed is refused and not
//! guessed. Which part of a URL means what is decided in `routes` and `query`.

/// How a part of a URL is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A path variable of many segments: an escaped slash stays escaped, so
    /// that it cannot be taken for a border between segments (http.proto).
    Segments,
    /// A path variable of one segment.
    Segment,
    /// A key or a value of the query, where `+` is a space.
    Query,
}

/// Why a part of a URL cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadUrl {
    #[error("a % must be followed by two hexadecimal digits; a % itself is written %25")]
    Escape,
    #[error("what the escapes stand for is not UTF-8")]
    Utf8,
}

/// The text that a part of a URL stands for.
pub(super) fn decode(text: &str, part: Part) -> Result<String, BadUrl> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (bytes.next(), bytes.next());
                let byte = escaped(high, low).ok_or(BadUrl::Escape)?;
                if byte == b'/' && part == Part::Segments {
                    // As it was written, because both cases are in use.
                    decoded.push(b'%');
                    decoded.extend(high);
                    decoded.extend(low);
                } else {
                    decoded.push(byte);
                }
            }
            b'+' if part == Part::Query => decoded.push(b' '),
            byte => decoded.push(byte),
        }
    }
    String::from_utf8(decoded).map_err(|_| BadUrl::Utf8)
}

fn escaped(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_escaped_slash_stays_escaped_in_a_variable_of_many_segments_only() {
        assert_eq!(decode("a%2Fb%2fc", Part::Segments).unwrap(), "a%2Fb%2fc");
        assert_eq!(decode("a%2Fb%2fc", Part::Segment).unwrap(), "a/b/c");
        assert_eq!(decode("a%2Fb", Part::Query).unwrap(), "a/b");
    }

    #[test]
    fn a_plus_is_a_space_in_the_query_only() {
        assert_eq!(decode("a+b%2B", Part::Query).unwrap(), "a b+");
        assert_eq!(decode("a+b", Part::Segments).unwrap(), "a+b");
    }

    #[test]
    fn what_is_not_well_formed_is_refused() {
        for bad in ["%", "%2", "%zz", "a%", "%%41", "%+1", "%-1", "%é"] {
            assert_eq!(decode(bad, Part::Segments), Err(BadUrl::Escape), "{bad}");
        }
        for bad in ["%ff", "%c3", "%c3%28", "%ed%a0%80"] {
            assert_eq!(decode(bad, Part::Query), Err(BadUrl::Utf8), "{bad}");
        }
        assert_eq!(decode("%C3%a9\u{e9}", Part::Query).unwrap(), "\u{e9}\u{e9}");
    }

    proptest! {
        #[test]
        fn any_text_is_decoded_without_panic(text in "[%+/a-f0-9é]{0,20}") {
            for part in [Part::Segments, Part::Segment, Part::Query] {
                let _ = decode(&text, part);
            }
        }

        #[test]
        fn an_escaped_text_comes_back(text in "\\PC{0,40}") {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(decode(&escaped, Part::Segment), Ok(text.clone()));
            prop_assert_eq!(decode(&escaped, Part::Query), Ok(text));
        }
    }
}
