//! Pages of a list (AIP-158): how large one is, and the token that leads from
//! one to the next. A token is bound to the list that it was made for.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use uuid::Uuid;

/// The size of a page that asks for none.
const DEFAULT_PAGE_SIZE: usize = 100;
/// The largest page; a larger request gets this.
const MAX_PAGE_SIZE: usize = 1000;
/// What tokens are derived from, besides their list; a new value voids old tokens.
const TOKEN_NAMESPACE: Uuid = Uuid::from_u128(0x6c6f_6e67_7275_6e6e_696e_672d_7061_6765);

/// How many operations a page has at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageSize(usize);

/// The place in a list where the next page begins: after this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageToken(pub(crate) u64);

/// Why a page cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPage {
    /// The size is negative.
    #[error("{0} is negative; use 0 for the default of 100, or 1 to 1000")]
    Size(i32),
    /// The token is damaged, or belongs to another list.
    #[error(
        "the page token is damaged or belongs to a list with another name or filter; start again without one"
    )]
    Token,
}

// === impl PageSize ===

impl PageSize {
    /// 0 is the default of 100; above 1000 is 1000.
    ///
    /// # Errors
    /// [`InvalidPage::Size`] if it is negative.
    pub(crate) fn parse(size: i32) -> Result<Self, InvalidPage> {
        match usize::try_from(size) {
            Err(_) => Err(InvalidPage::Size(size)),
            Ok(0) => Ok(Self(DEFAULT_PAGE_SIZE)),
            Ok(size) => Ok(Self(size.min(MAX_PAGE_SIZE))),
        }
    }

    pub(crate) fn get(self) -> usize {
        self.0
    }
}

// === impl Cursor ===

impl PageToken {
    /// The token for the next page of the list `name` with `filter`. It is
    /// opaque and URL-safe, and the same on every replica of the server.
    pub(crate) fn encode(self, name: &str, filter: &str) -> String {
        let mask = digest(&[name, filter], None);
        let checksum = digest(&[name, filter], Some(self.0));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(self.0 ^ mask).to_be_bytes());
        bytes[8..].copy_from_slice(&checksum.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The cursor of a token; none for the empty token, which is the beginning.
    pub(crate) fn decode(
        token: &str,
        name: &str,
        filter: &str,
    ) -> Result<Option<Self>, InvalidPage> {
        if token.is_empty() {
            return Ok(None);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| InvalidPage::Token)?;
        let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| InvalidPage::Token)?;
        let [masked, checksum] = [0, 8].map(|offset| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[offset..offset + 8]);
            u64::from_be_bytes(half)
        });
        let number = masked ^ digest(&[name, filter], None);
        if checksum != digest(&[name, filter], Some(number)) {
            return Err(InvalidPage::Token);
        }
        Ok(Some(Self(number)))
    }
}

/// A stable digest; each text is preceded by its length, so that no two lists
/// share one.
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

    #[test]
    fn page_size_0_is_100_above_1000_is_1000_and_negative_is_rejected() {
        let size = |size| PageSize::parse(size).map(PageSize::get);
        assert_eq!(size(0), Ok(100));
        assert_eq!(size(1), Ok(1));
        assert_eq!(size(1000), Ok(1000));
        assert_eq!(size(1001), Ok(1000));
        assert_eq!(size(i32::MAX), Ok(1000));
        assert_eq!(size(-1), Err(InvalidPage::Size(-1)));
        assert_eq!(size(i32::MIN), Err(InvalidPage::Size(i32::MIN)));
    }

    proptest! {
        #[test]
        fn page_token_is_url_safe_and_decodes_only_for_its_list(number: u64, name in ".{0,20}", filter in ".{0,20}") {
            let token = PageToken(number).encode(&name, &filter);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(PageToken::decode(&token, &name, &filter), Ok(Some(PageToken(number))));
            let other = format!("{name}x");
            prop_assert_eq!(PageToken::decode(&token, &other, &filter), Err(InvalidPage::Token));
            prop_assert_eq!(PageToken::decode(&token, &name, &other), Err(InvalidPage::Token));
        }

        #[test]
        fn foreign_or_damaged_page_token_is_rejected(token in ".{1,40}") {
            prop_assert_eq!(PageToken::decode(&token, "operations", ""), Err(InvalidPage::Token));
        }

        #[test]
        fn page_token_with_one_changed_byte_is_rejected(number: u64, at in 0usize..22, to in "[A-Za-z0-9_-]") {
            let token = PageToken(number).encode("operations", "");
            let mut changed = token.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != token);
            prop_assert_eq!(PageToken::decode(&changed, "operations", ""), Err(InvalidPage::Token));
        }
    }
}
