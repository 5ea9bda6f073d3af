//! A prefix index of the ids that callers chose, for filters on the beginning of a name. It leaves out ids that the
//! server generated; a whole name is found in the view.

use std::collections::BTreeSet;

use parking_lot::RwLock;

use crate::operation::{Operation, name::segments};

/// How many names all prefixes of one filter may match together; above it a scan is cheaper.
pub(super) const MAX_PREFIX_MATCHES: usize = 4096;

/// How many bytes of an id the index holds.
const KEY_BYTES: usize = 16;

/// Operation numbers by the first bytes of their ids.
#[derive(Debug, Default)]
pub(super) struct IdPrefixIndex(RwLock<BTreeSet<([u8; KEY_BYTES], u64)>>);

// === impl IdPrefixIndex ===

impl IdPrefixIndex {
    /// Inserts a new operation, or removes one.
    pub(super) fn update(&self, operation: &Operation, is_new: bool) {
        let Some(id) = custom_id(operation.name()) else {
            return;
        };
        let entry = (prefix_key(id), operation.number());
        if is_new {
            self.0.write().insert(entry);
        } else {
            self.0.write().remove(&entry);
        }
    }

    /// Returns the numbers of operations whose names may begin with `prefix`, in ascending order, and deducts them
    /// from `budget`. Returns `None` if they exceed the budget, or if the server generates such names.
    pub(super) fn find_by_prefix(&self, prefix: &str, budget: &mut usize) -> Option<Vec<u64>> {
        let id = id_of(prefix).filter(|id| !is_server_generated_prefix(id))?;
        let prefix_bytes = &id.as_bytes()[..id.len().min(KEY_BYTES)];
        let entries = self.0.read();
        let matches = entries
            .range((prefix_key(id), 0)..)
            .take_while(|(id, _)| id.starts_with(prefix_bytes));
        let matches = matches.take(*budget + 1).map(|(_, number)| *number);
        let mut numbers: Vec<u64> = matches.collect();
        let remaining = budget.checked_sub(numbers.len());
        *budget = remaining.unwrap_or(0);
        remaining?;
        numbers.sort_unstable();
        Some(numbers)
    }
}

/// Returns the id of a name or of the beginning of one: what follows the first `operations/` in the position of a
/// collection.
fn id_of(name: &str) -> Option<&str> {
    let mut offset = 0;
    for (collection, id) in segments(name) {
        offset += collection.len() + 1;
        if collection == "operations" {
            return name.get(offset..);
        }
        offset += id.len() + 1;
    }
    None
}

/// Returns the id of a name, unless the server generated it.
fn custom_id(name: &str) -> Option<&str> {
    id_of(name).filter(|id| id.len() != 36 || !is_server_generated_prefix(id))
}

/// Returns `true` if the server generates ids that begin like this: UUIDs of version 7 (RFC 9562), which begin with a
/// timestamp, and with 0 until the year 2527.
fn is_server_generated_prefix(id: &str) -> bool {
    id.len() <= 36
        && id.bytes().enumerate().all(|(index, byte)| match index {
            0 => byte == b'0',
            8 | 13 | 18 | 23 => byte == b'-',
            14 => byte == b'7',
            19 => matches!(byte, b'8' | b'9' | b'a' | b'b'),
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

fn prefix_key(id: &str) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    let key_len = id.len().min(KEY_BYTES);
    key[..key_len].copy_from_slice(&id.as_bytes()[..key_len]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operation::name::{OperationId, OperationName, Parent},
        query::testing::{SampleMetadata, SampleOperation, SampleState},
    };

    #[test]
    fn prefix_scan_budget_is_shared_by_all_prefixes() {
        let index = IdPrefixIndex::default();
        for number in 1..=30 {
            let id_prefix = if number <= 20 { "many" } else { "few" };
            let facts = SampleOperation {
                parent: "",
                id: format!("{id_prefix}-{number}"),
                state: SampleState::Running,
                queue: None,
                env: None,
                team: None,
                created_after_secs: 0,
                metadata: SampleMetadata::UnknownType,
            };
            index.update(&facts.to_operation(number), true);
        }
        let mut budget = 25;
        let mut count = |prefix: &str| {
            let found = index.find_by_prefix(prefix, &mut budget);
            (found.map(|numbers| numbers.len()), budget)
        };
        assert_eq!(count("operations/few-"), (Some(10), 15));
        assert_eq!(count("operations/nothing"), (Some(0), 15));
        assert_eq!(count("operations/many-"), (None, 0));
        assert_eq!(count("operations/few-"), (None, 0));
        assert_eq!(count("operations/nothing"), (Some(0), 0));
    }

    #[test]
    fn id_follows_first_operations_collection_of_name() {
        for (name, id) in [
            ("operations/a", Some("a")),
            ("operations/", Some("")),
            ("projects/p/operations/ab", Some("ab")),
            ("operations/ns/operations/x", Some("ns/operations/x")),
            ("projects/operations/operations/x", Some("x")),
            ("operations", Some("")),
            ("projects/p", None),
            ("oper", None),
            ("", None),
        ] {
            assert_eq!(
                id_of(name).unwrap_or_default(),
                id.unwrap_or_default(),
                "{name}"
            );
        }
    }

    #[test]
    fn server_generated_id_prefix_is_not_indexed() {
        for prefix in ["", "0", "01a1fd8a", "01a1fd8a-1bcf-7087-a3e3-f00827894941"] {
            assert!(is_server_generated_prefix(prefix), "{prefix}");
        }
        let name = OperationName::new(&Parent::ROOT, &OperationId::random());
        assert_eq!(custom_id(name.as_str()), None);
        for prefix in [
            "export",
            "01a1fd8a1",
            "A",
            "feed",
            "1",
            "01a1fd8a-1bcf-4",
            "01a1fd8a-1bcf-7087-c",
            "01a1fd8a-1bcf-7087-a3e3-f00827894941-",
        ] {
            assert!(!is_server_generated_prefix(prefix), "{prefix}");
        }
        assert!(custom_id("operations/01a1fd8a").is_some());
    }
}
