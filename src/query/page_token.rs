//! Page sizes and page tokens (AIP-158). A token is valid only for the list for which it
//! was issued.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use uuid::Uuid;

const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1000;
/// The UUID namespace of the token digest; changing it invalidates all issued tokens.
const TOKEN_NAMESPACE: Uuid = Uuid::from_u128(0x6c6f_6e67_7275_6e6e_696e_672d_7061_6765);

/// An invalid page size or page token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPage {
    /// The size is negative.
    #[error("{0} is negative; use 0 for the default of 100, or 1 to 1000")]
    Size(i32),
    /// The token is damaged, or belongs to another list.
    #[error(
        "the page token is damaged or belongs to a list with another name or filter; start again without a token"
    )]
    Token,
}

/// Parses a requested page size: 0 is the default of 100, more than 1000 is 1000.
///
/// # Errors
/// [`InvalidPage::Size`] if the size is negative.
pub(crate) fn parse_page_size(size: i32) -> Result<usize, InvalidPage> {
    match usize::try_from(size) {
        Err(_) => Err(InvalidPage::Size(size)),
        Ok(0) => Ok(DEFAULT_PAGE_SIZE),
        Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
    }
}

/// Encodes the token of the page that begins below `before_number`, for the list `name` with
/// `filter`. The text is opaque, URL-safe and the same on every server.
pub(crate) fn encode_page_token(before_number: u64, name: &str, filter: &str) -> String {
    let masked = before_number ^ digest(&[name, filter], None);
    let checksum = digest(&[name, filter], Some(before_number));
    URL_SAFE_NO_PAD.encode(Uuid::from_u64_pair(masked, checksum).as_bytes())
}

/// Decodes a token to the number below which the page begins; the empty text is `None`, the
/// start of the list.
///
/// # Errors
/// [`InvalidPage::Token`] if the text is no token of this list.
pub(crate) fn decode_page_token(
    token: &str,
    name: &str,
    filter: &str,
) -> Result<Option<u64>, InvalidPage> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let bytes = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let (masked, checksum) = Uuid::from_bytes(bytes.ok_or(InvalidPage::Token)?).as_u64_pair();
    let before_number = masked ^ digest(&[name, filter], None);
    if checksum != digest(&[name, filter], Some(before_number)) {
        return Err(InvalidPage::Token);
    }
    Ok(Some(before_number))
}

/// Returns a stable digest. Each text is prefixed with its length, so that two lists
/// cannot have the same input.
fn digest(texts: &[&str], number: Option<u64>) -> u64 {
    let mut bytes = Vec::new();
    for text in texts {
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.extend(number.into_iter().flat_map(u64::to_be_bytes));
    Uuid::new_v5(&TOKEN_NAMESPACE, &bytes).as_u64_pair().0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Rules: LIST-1
    #[test]
    fn page_size_0_is_100_above_1000_is_1000_and_negative_is_rejected() {
        let size = parse_page_size;
        assert_eq!(size(0), Ok(100));
        assert_eq!(size(1), Ok(1));
        assert_eq!(size(1000), Ok(1000));
        assert_eq!(size(1001), Ok(1000));
        assert_eq!(size(i32::MAX), Ok(1000));
        assert_eq!(size(-1), Err(InvalidPage::Size(-1)));
        assert_eq!(size(i32::MIN), Err(InvalidPage::Size(i32::MIN)));
    }

    proptest! {
        // Rules: LIST-3, LIST-5
        #[test]
        fn page_token_is_url_safe_and_decodes_only_for_its_list(before_number: u64, name in ".{0,20}", filter in ".{0,20}") {
            let token = encode_page_token(before_number, &name, &filter);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(decode_page_token(&token, &name, &filter), Ok(Some(before_number)));
            let other = format!("{name}x");
            prop_assert_eq!(decode_page_token(&token, &other, &filter), Err(InvalidPage::Token));
            prop_assert_eq!(decode_page_token(&token, &name, &other), Err(InvalidPage::Token));
        }

        // Rules: LIST-7
        #[test]
        fn foreign_or_damaged_page_token_is_rejected(token in ".{1,40}") {
            prop_assert_eq!(decode_page_token(&token, "operations", ""), Err(InvalidPage::Token));
        }

        // Rules: LIST-7
        #[test]
        fn page_token_with_one_changed_byte_is_rejected(before_number: u64, at in 0usize..22, to in "[A-Za-z0-9_-]") {
            let token = encode_page_token(before_number, "operations", "");
            let mut changed = token.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != token);
            prop_assert_eq!(decode_page_token(&changed, "operations", ""), Err(InvalidPage::Token));
        }
    }
}
