//! The book of names: ids of the callers' making, so that the operations whose
//! names begin in some way need not be looked for among all. Ids of the server's
//! making are not in it; a whole name is found in the view.

use std::collections::BTreeSet;

use parking_lot::RwLock;

use crate::operation::{name::segments, operation::Operation};

/// How many names the prefixes of one filter may have, all together, to be worth
/// a look into the book.
pub(super) const MAX_NAMES: usize = 4096;

/// How many bytes of an id stand in the book.
const ID: usize = 16;

/// Numbers of operations by the first bytes of their ids.
#[derive(Debug, Default)]
pub(super) struct Names(RwLock<BTreeSet<([u8; ID], u64)>>);

// === impl Names ===

impl Names {
    /// Takes in an operation that is new, or forgets one.
    pub(super) fn note(&self, operation: &Operation, is_new: bool) {
        let Some(id) = made_id(operation.name()) else {
            return;
        };
        let entry = (beginning(id), operation.number());
        if is_new {
            self.0.write().insert(entry);
        } else {
            self.0.write().remove(&entry);
        }
    }

    /// The operations whose names may begin so, in ascending order; none if they
    /// are more than are `left`, of which those that are looked at are taken, or
    /// if the server itself may have made such names.
    pub(super) fn with_prefix(&self, prefix: &str, left: &mut usize) -> Option<Vec<u64>> {
        let id = id_of(prefix).filter(|id| !begins_made_by_server(id))?;
        let wanted = &id.as_bytes()[..id.len().min(ID)];
        let mut first = [0; ID];
        first[..wanted.len()].copy_from_slice(wanted);
        let names = self.0.read();
        let found = names
            .range((first, 0)..)
            .take_while(|(id, _)| id.starts_with(wanted));
        let found = found.take(*left + 1).map(|(_, number)| *number);
        let mut numbers: Vec<u64> = found.collect();
        let rest = left.checked_sub(numbers.len());
        *left = rest.unwrap_or(0);
        rest?;
        numbers.sort_unstable();
        Some(numbers)
    }
}

/// The id of a name, or the beginning of one: what follows the first
/// `operations/` that stands in the place of a collection.
fn id_of(name: &str) -> Option<&str> {
    let mut at = 0;
    for (collection, id) in segments(name) {
        at += collection.len() + 1;
        if collection == "operations" {
            return name.get(at..);
        }
        at += id.len() + 1;
    }
    None
}

/// The id of a name, if the server did not make it.
fn made_id(name: &str) -> Option<&str> {
    id_of(name).filter(|id| !is_made_by_server(id))
}

fn is_made_by_server(id: &str) -> bool {
    id.len() == 36 && begins_made_by_server(id)
}

/// Whether the server may make ids that begin so: UUIDs of version 7 (RFC 9562),
/// whose first digits are the time, and which begin with 0 until the year 2527.
fn begins_made_by_server(id: &str) -> bool {
    id.len() <= 36
        && id.bytes().enumerate().all(|(at, byte)| match at {
            0 => byte == b'0',
            8 | 13 | 18 | 23 => byte == b'-',
            14 => byte == b'7',
            19 => matches!(byte, b'8' | b'9' | b'a' | b'b'),
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

fn beginning(id: &str) -> [u8; ID] {
    let mut beginning = [0; ID];
    let length = id.len().min(ID);
    beginning[..length].copy_from_slice(&id.as_bytes()[..length]);
    beginning
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operation::name::{OperationId, OperationName, Parent},
        query::samples::{End, Facts, Metadata},
    };

    #[test]
    fn all_prefixes_of_a_filter_share_the_names_that_may_be_looked_at() {
        let names = Names::default();
        for number in 1..=30 {
            let begin = if number <= 20 { "many" } else { "few" };
            let facts = Facts {
                parent: "",
                id: format!("{begin}-{number}"),
                end: End::Running,
                queue: None,
                env: None,
                team: None,
                created: 0,
                metadata: Metadata::Unknown,
            };
            names.note(&facts.operation(number), true);
        }
        let mut left = 25;
        let mut count = |prefix: &str| {
            let found = names.with_prefix(prefix, &mut left);
            (found.map(|numbers| numbers.len()), left)
        };
        assert_eq!(count("operations/few-"), (Some(10), 15));
        assert_eq!(count("operations/nothing"), (Some(0), 15));
        assert_eq!(count("operations/many-"), (None, 0));
        assert_eq!(count("operations/few-"), (None, 0));
        assert_eq!(count("operations/nothing"), (Some(0), 0));
    }

    #[test]
    fn the_id_of_a_name_follows_its_first_collection_of_operations() {
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
    fn a_prefix_that_the_server_may_have_made_is_not_looked_up() {
        for made in ["", "0", "01a1fd8a", "01a1fd8a-1bcf-7087-a3e3-f00827894941"] {
            assert!(begins_made_by_server(made), "{made}");
        }
        let name = OperationName::new(&Parent::ROOT, &OperationId::random());
        assert_eq!(made_id(name.as_str()), None);
        for made in [
            "export",
            "01a1fd8a1",
            "A",
            "feed",
            "1",
            "01a1fd8a-1bcf-4",
            "01a1fd8a-1bcf-7087-c",
            "01a1fd8a-1bcf-7087-a3e3-f00827894941-",
        ] {
            assert!(!begins_made_by_server(made), "{made}");
        }
        assert!(!is_made_by_server("01a1fd8a"));
    }
}
