//! What is written for a change, and read back.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use tracing::error;

use crate::{
    clock::Timestamp,
    journal::journal::{Entry, JournalError, News, Unkept},
    operation::{
        name::parent_of,
        operation::Operation,
        record::{self, encode_with_input},
    },
};

use super::{link::Link, opening::VERSION, sql::Sql};

pub(super) const TEXT: Type = Type::TEXT;

const MADE: i16 = 0;
const CHANGED: i16 = 1;
const GONE: i16 = 2;

/// Reads rows: the columns number, revision, renewed_until and record, which stand
/// together in each answer.
#[derive(Debug, Default)]
pub(super) struct Reader(record::Reader);

/// The columns of `commit.sql`.
#[derive(Debug, Default)]
pub(super) struct Batch {
    kinds: Vec<i16>,
    numbers: Vec<i64>,
    seen: Vec<i32>,
    revisions: Vec<i32>,
    names: Vec<String>,
    parents: Vec<String>,
    requests: Vec<Option<Vec<u8>>>,
    are_done: Vec<bool>,
    expire: Vec<Option<i64>>,
    renewed: Vec<Option<i64>>,
    records: Vec<Option<Vec<u8>>>,
}

// === impl Batch ===

impl Batch {
    pub(super) fn of(entries: &[Entry]) -> Self {
        let mut batch = Self::default();
        for entry in entries {
            batch.push(entry);
        }
        batch
    }

    fn push(&mut self, entry: &Entry) {
        let (Entry::Put(operation) | Entry::Renew(operation) | Entry::Forget(operation)) = entry;
        let revision = i32::try_from(operation.revision()).unwrap_or(i32::MAX);
        let (kind, seen, record) = match entry {
            Entry::Forget(_) => (GONE, revision, None),
            Entry::Renew(_) => (CHANGED, revision - 1, None),
            Entry::Put(_) if revision == 0 => (MADE, 0, Some(encode_with_input(operation))),
            Entry::Put(_) => (CHANGED, revision - 1, Some(encode_with_input(operation))),
        };
        self.kinds.push(kind);
        self.numbers.push(key(operation));
        self.seen.push(seen);
        self.revisions.push(revision);
        self.names.push(operation.name().to_owned());
        self.parents.push(parent_of(operation.name()).to_owned());
        self.requests.push(request_of(operation));
        self.are_done.push(operation.is_done());
        self.expire.push(expires(operation));
        let lease = operation.lease().filter(|_| record.is_none());
        self.renewed.push(lease.map(|lease| lease.until.nanos()));
        self.records.push(record);
    }

    pub(super) fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 12] {
        [
            (&self.kinds, Type::INT2_ARRAY),
            (&self.numbers, Type::INT8_ARRAY),
            (&self.seen, Type::INT4_ARRAY),
            (&self.revisions, Type::INT4_ARRAY),
            (&self.names, Type::TEXT_ARRAY),
            (&self.parents, Type::TEXT_ARRAY),
            (&self.requests, Type::BYTEA_ARRAY),
            (&self.are_done, Type::BOOL_ARRAY),
            (&self.expire, Type::INT8_ARRAY),
            (&self.renewed, Type::INT8_ARRAY),
            (&self.records, Type::BYTEA_ARRAY),
            (&VERSION, Type::INT4),
        ]
    }

    /// The places of the changes that were not kept, if these operations were changed.
    pub(super) fn late(&self, kept: &HashSet<i64>) -> BTreeSet<usize> {
        (0..self.numbers.len())
            .filter(|at| !kept.contains(&self.numbers[*at]))
            .collect()
    }

    /// What stood in the way of the changes at these places. One that was sent twice was
    /// kept the first time.
    pub(super) async fn met(
        &self,
        late: &BTreeSet<usize>,
        link: &Link,
        sql: &Sql,
    ) -> Result<Vec<(usize, Result<(), Unkept>)>, JournalError> {
        let is_made = |at: &&usize| self.kinds[**at] == MADE;
        let numbers: Vec<i64> = late.iter().map(|at| self.numbers[*at]).collect();
        let made = late.iter().filter(is_made);
        let names: Vec<&str> = made.clone().map(|at| self.names[*at].as_str()).collect();
        let requests: Vec<&[u8]> = made
            .filter_map(|at| self.requests[*at].as_deref())
            .collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&numbers, Type::INT8_ARRAY),
            (&names, Type::TEXT_ARRAY),
            (&requests, Type::BYTEA_ARRAY),
        ];
        let rows = link
            .ask(async |client| client.query_typed(&sql.others, &parameters).await)
            .await?;
        let (mut met, mut reader) = (Vec::with_capacity(late.len()), Reader::default());
        for &at in late {
            let (number, name, request) = (self.numbers[at], &self.names[at], &self.requests[at]);
            let is_in_the_way = |row: &&tokio_postgres::Row| {
                let is_new = self.kinds[at] == MADE;
                row.get::<_, i64>(0) == number
                    || (is_new && row.get::<_, &str>(4) == name)
                    || (is_new
                        && request.is_some()
                        && row.get::<_, Option<&[u8]>>(5) == request.as_deref())
            };
            // Nor did this one let go of what is not there any more: two servers may
            // want to, and only the first has done it.
            let Some(row) = rows.iter().find(is_in_the_way) else {
                met.push((at, Err(Unkept::Stale(None))));
                continue;
            };
            if self.is(at, row) {
                met.push((at, Ok(())));
                continue;
            }
            met.push((
                at,
                Err(match reader.operation(row, 0) {
                    Ok(other) => Unkept::Stale(Some(Arc::new(other))),
                    Err(damage) => damage.into(),
                }),
            ));
        }
        Ok(met)
    }

    /// Whether a row is just as a change of ours makes it.
    fn is(&self, at: usize, row: &Row) -> bool {
        let is_record = |record: &Vec<u8>| row.get::<_, &[u8]>(3) == record;
        self.kinds[at] != GONE
            && row.get::<_, i32>(1) == self.revisions[at]
            && row.get::<_, Option<i64>>(2) == self.renewed[at]
            && self.records[at].as_ref().is_none_or(is_record)
    }
}

// === impl Reader ===

impl Reader {
    /// The operation of a row, whose columns begin at `at`.
    pub(super) fn operation(&mut self, row: &Row, at: usize) -> Result<Operation, JournalError> {
        let number: i64 = row.get(at);
        let key = u64::try_from(number).unwrap_or_default();
        let mut operation = self.0.decode(key, row.get(at + 3), None).map_err(|damage| {
            JournalError(format!(
                "the row of longrunning.operations with number {number} cannot be read: {damage}"
            ))
        })?;
        if let Some((revision, until)) = renewal(row, at) {
            operation.renew(revision, until);
        }
        Ok(operation)
    }

    /// What became of an operation: it is like this, its lease was renewed, or it is
    /// gone. None if a row is about nothing, or cannot be read, which is said.
    pub(super) fn news(&mut self, row: &Row, at: usize) -> Option<News> {
        let number = row.get::<_, Option<i64>>(at)?;
        let has_record = row.get::<_, Option<&[u8]>>(at + 3).is_some();
        let number = u64::try_from(number).unwrap_or_default();
        Some(match renewal(row, at) {
            // What nobody can read must not hide all that comes after it.
            _ if has_record => match self.operation(row, at) {
                Ok(operation) => News::Changed(Arc::new(operation)),
                Err(error) => {
                    error!(%error, "a change by another server is not shown");
                    return None;
                }
            },
            Some((revision, until)) => News::Renewed {
                number,
                revision,
                until,
            },
            None => News::Gone(number),
        })
    }
}

/// The revision and the end of a lease that was renewed since the record was written.
fn renewal(row: &Row, at: usize) -> Option<(u32, Timestamp)> {
    let (revision, until): (Option<i32>, Option<i64>) = (row.get(at + 1), row.get(at + 2));
    Some((
        u32::try_from(revision?).ok()?,
        Timestamp::from_nanos(until?),
    ))
}

/// How many bytes a change is, about.
pub(super) fn size(entry: &Entry) -> usize {
    match entry {
        Entry::Put(operation) => operation.size(),
        Entry::Renew(_) | Entry::Forget(_) => 0,
    }
}

/// Numbers are microseconds since 1970 and ten bits: they fit until 2255.
fn key(operation: &Operation) -> i64 {
    i64::try_from(operation.number()).unwrap_or(i64::MAX)
}

/// When the retention of an operation is over, in microseconds, if it is done.
fn expires(operation: &Operation) -> Option<i64> {
    let at = operation.deadline(Timestamp::default()).nanos();
    (operation.is_done() && at != i64::MAX).then_some(at / 1000)
}

/// What the creator's request is found by, while clients see the operation: no parent
/// has a colon.
fn request_of(operation: &Operation) -> Option<Vec<u8>> {
    let id = operation.request_id().filter(|_| !operation.is_hidden())?;
    Some(format!("{}:{id}", parent_of(operation.name())).into_bytes())
}
