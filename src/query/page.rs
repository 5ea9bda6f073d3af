//! Pages of a list (AIP-158): how large one is, and the token that leads from
//! one to the next. A token is bound to the list that it was made for.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use uuid::Uuid;

/// The size of a page that asks for none.
const DEFAULT_SIZE: usize = 100;
/// The largest page; a larger request gets this.
const MAX_SIZE: usize = 1000;
/// What tokens are derived from, besides their list; a new value voids old tokens.
const SPACE: Uuid = Uuid::from_u128(0x6c6f_6e67_7275_6e6e_696e_672d_7061_6765);

/// How many operations a page has at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageSize(usize);

/// The place in a list where the next page begins: after this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor(pub(crate) u64);

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
            Ok(0) => Ok(Self(DEFAULT_SIZE)),
            Ok(size) => Ok(Self(size.min(MAX_SIZE))),
        }
    }

    pub(crate) fn get(self) -> usize {
        self.0
    }
}

// === impl Cursor ===

impl Cursor {
    /// The token for the next page of the list `name` with `filter`. It is
    /// opaque and URL-safe, and the same on every replica of the server.
    pub(crate) fn seal(self, name: &str, filter: &str) -> String {
        let mask = digest(&[name, filter], None);
        let proof = digest(&[name, filter], Some(self.0));
        let mut token = [0; 16];
        token[..8].copy_from_slice(&(self.0 ^ mask).to_be_bytes());
        token[8..].copy_from_slice(&proof.to_be_bytes());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// The cursor of a token; none for the empty token, which is the beginning.
    pub(crate) fn open(token: &str, name: &str, filter: &str) -> Result<Option<Self>, InvalidPage> {
        if token.is_empty() {
            return Ok(None);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| InvalidPage::Token)?;
        let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| InvalidPage::Token)?;
        let [masked, proof] = [0, 8].map(|at| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(half)
        });
        let number = masked ^ digest(&[name, filter], None);
        if proof != digest(&[name, filter], Some(number)) {
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
    Uuid::new_v5(&SPACE, &bytes).as_u64_pair().0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn page_size_0_is_100_and_above_1000_is_1000_and_negative_is_refused() {
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
        fn a_token_is_url_safe_and_opens_only_for_its_own_list(number: u64, name in ".{0,20}", filter in ".{0,20}") {
            let token = Cursor(number).seal(&name, &filter);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(Cursor::open(&token, &name, &filter), Ok(Some(Cursor(number))));
            let other = format!("{name}x");
            prop_assert_eq!(Cursor::open(&token, &other, &filter), Err(InvalidPage::Token));
            prop_assert_eq!(Cursor::open(&token, &name, &other), Err(InvalidPage::Token));
        }

        #[test]
        fn a_foreign_or_damaged_token_is_refused_without_panic(token in ".{1,40}") {
            prop_assert_eq!(Cursor::open(&token, "operations", ""), Err(InvalidPage::Token));
        }

        #[test]
        fn a_token_with_one_byte_changed_is_refused(number: u64, at in 0usize..22, to in "[A-Za-z0-9_-]") {
            let token = Cursor(number).seal("operations", "");
            let mut changed = token.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != token);
            prop_assert_eq!(Cursor::open(&changed, "operations", ""), Err(InvalidPage::Token));
        }
    }
}
