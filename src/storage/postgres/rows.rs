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
    operation::{
        Operation,
        name::parent_of,
        record::{self, encode_with_input},
    },
    storage::{
        Change, Write, WriteError,
        error::{StorageError, StorageErrorKind},
    },
};

use super::{connection::Connection, schema::SCHEMA_VERSION, statements::Statements};

pub(super) const TEXT: Type = Type::TEXT;

const INSERT: i16 = 0;
const UPDATE: i16 = 1;
const DELETE: i16 = 2;

/// Reads rows: the columns number, revision, renewed_until and record, which stand
/// together in each answer.
#[derive(Debug, Default)]
pub(super) struct RowDecoder(record::RecordDecoder);

/// The columns of `commit.sql`.
#[derive(Debug, Default)]
pub(super) struct WriteBatch {
    kinds: Vec<i16>,
    numbers: Vec<i64>,
    expected_revisions: Vec<i32>,
    revisions: Vec<i32>,
    names: Vec<String>,
    parents: Vec<String>,
    request_keys: Vec<Option<Vec<u8>>>,
    done_flags: Vec<bool>,
    expires_at_us: Vec<Option<i64>>,
    lease_expires_at_ns: Vec<Option<i64>>,
    records: Vec<Option<Vec<u8>>>,
}

// === impl Batch ===

impl WriteBatch {
    pub(super) fn from_writes(writes: &[Write]) -> Self {
        let mut batch = Self::default();
        for write in writes {
            batch.push(write);
        }
        batch
    }

    fn push(&mut self, write: &Write) {
        let (Write::Put(operation) | Write::RenewLease(operation) | Write::Delete(operation)) =
            write;
        let revision = i32::try_from(operation.revision()).unwrap_or(i32::MAX);
        let (kind, expected_revision, record) = match write {
            Write::Delete(_) => (DELETE, revision, None),
            Write::RenewLease(_) => (UPDATE, revision - 1, None),
            Write::Put(_) if revision == 0 => (INSERT, 0, Some(encode_with_input(operation))),
            Write::Put(_) => (UPDATE, revision - 1, Some(encode_with_input(operation))),
        };
        self.kinds.push(kind);
        self.numbers.push(number_as_i64(operation));
        self.expected_revisions.push(expected_revision);
        self.revisions.push(revision);
        self.names.push(operation.name().to_owned());
        self.parents.push(parent_of(operation.name()).to_owned());
        self.request_keys.push(request_key(operation));
        self.done_flags.push(operation.is_done());
        self.expires_at_us.push(expires_at_us(operation));
        let lease = operation.lease().filter(|_| record.is_none());
        self.lease_expires_at_ns
            .push(lease.map(|lease| lease.expires_at.nanos()));
        self.records.push(record);
    }

    pub(super) fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 12] {
        [
            (&self.kinds, Type::INT2_ARRAY),
            (&self.numbers, Type::INT8_ARRAY),
            (&self.expected_revisions, Type::INT4_ARRAY),
            (&self.revisions, Type::INT4_ARRAY),
            (&self.names, Type::TEXT_ARRAY),
            (&self.parents, Type::TEXT_ARRAY),
            (&self.request_keys, Type::BYTEA_ARRAY),
            (&self.done_flags, Type::BOOL_ARRAY),
            (&self.expires_at_us, Type::INT8_ARRAY),
            (&self.lease_expires_at_ns, Type::INT8_ARRAY),
            (&self.records, Type::BYTEA_ARRAY),
            (&SCHEMA_VERSION, Type::INT4),
        ]
    }

    /// The places of the changes that were not kept, if these operations were changed.
    pub(super) fn not_applied(&self, applied: &HashSet<i64>) -> BTreeSet<usize> {
        (0..self.numbers.len())
            .filter(|index| !applied.contains(&self.numbers[*index]))
            .collect()
    }

    /// What stood in the way of the changes at these places. One that was sent twice was
    /// kept the first time.
    pub(super) async fn resolve_conflicts(
        &self,
        not_applied: &BTreeSet<usize>,
        connection: &Connection,
        statements: &Statements,
    ) -> Result<Vec<(usize, Result<(), WriteError>)>, StorageError> {
        let is_insert = |index: &&usize| self.kinds[**index] == INSERT;
        let numbers: Vec<i64> = not_applied
            .iter()
            .map(|index| self.numbers[*index])
            .collect();
        let inserts = not_applied.iter().filter(is_insert);
        let names: Vec<&str> = inserts
            .clone()
            .map(|index| self.names[*index].as_str())
            .collect();
        let request_keys: Vec<&[u8]> = inserts
            .filter_map(|index| self.request_keys[*index].as_deref())
            .collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&numbers, Type::INT8_ARRAY),
            (&names, Type::TEXT_ARRAY),
            (&request_keys, Type::BYTEA_ARRAY),
        ];
        let rows = connection
            .with_client(async |client| {
                client
                    .query_typed(&statements.conflicting_rows, &parameters)
                    .await
            })
            .await?;
        let (mut results, mut decoder) =
            (Vec::with_capacity(not_applied.len()), RowDecoder::default());
        for &index in not_applied {
            let (number, name, request_key) = (
                self.numbers[index],
                &self.names[index],
                &self.request_keys[index],
            );
            let is_conflicting = |row: &&tokio_postgres::Row| {
                let is_insert = self.kinds[index] == INSERT;
                row.get::<_, i64>("number") == number
                    || (is_insert && row.get::<_, &str>("name") == name)
                    || (is_insert
                        && request_key.is_some()
                        && row.get::<_, Option<&[u8]>>("request_key") == request_key.as_deref())
            };
            // Nor did this one let go of what is not there any more: two servers may
            // want to, and only the first has done it.
            let Some(row) = rows.iter().find(is_conflicting) else {
                results.push((index, Err(WriteError::Conflict { current: None })));
                continue;
            };
            if self.matches_row(index, row) {
                results.push((index, Ok(())));
                continue;
            }
            results.push((
                index,
                Err(match decoder.decode_operation(row) {
                    Ok(current) => WriteError::Conflict {
                        current: Some(Arc::new(current)),
                    },
                    Err(error) => error.into(),
                }),
            ));
        }
        Ok(results)
    }

    /// Whether a row is just as a change of ours makes it.
    fn matches_row(&self, index: usize, row: &Row) -> bool {
        let is_record = |record: &Vec<u8>| row.get::<_, &[u8]>("record") == record;
        self.kinds[index] != DELETE
            && row.get::<_, i32>("revision") == self.revisions[index]
            && row.get::<_, Option<i64>>("lease_expires_at_ns") == self.lease_expires_at_ns[index]
            && self.records[index].as_ref().is_none_or(is_record)
    }
}

// === impl Reader ===

impl RowDecoder {
    /// Decodes the operation of a row.
    ///
    /// # Errors
    /// [`StorageError`] if the record is damaged.
    pub(super) fn decode_operation(&mut self, row: &Row) -> Result<Operation, StorageError> {
        let number: i64 = row.get("number");
        let record = row.get("record");
        let key = u64::try_from(number).unwrap_or_default();
        let mut operation = self.0.decode(key, record, None).map_err(|error| {
            let message = format!("row {number} of table operations cannot be decoded: {error}");
            StorageError::new(StorageErrorKind::Corrupt, message).with_source(error)
        })?;
        if let Some((revision, expires_at)) = lease_renewal(row) {
            operation.apply_lease_renewal(revision, expires_at);
        }
        Ok(operation)
    }

    /// Decodes the change of an operation. Returns `None` for a row without a number, and, with a line in the log, for
    /// a record that is damaged.
    pub(super) fn decode_change(&mut self, row: &Row) -> Option<Change> {
        let number = row.get::<_, Option<i64>>("number")?;
        let has_record = row.get::<_, Option<&[u8]>>("record").is_some();
        let number = u64::try_from(number).unwrap_or_default();
        Some(match lease_renewal(row) {
            // One damaged record must not hide the changes after it.
            _ if has_record => match self.decode_operation(row) {
                Ok(operation) => Change::Upserted(Arc::new(operation)),
                Err(error) => {
                    error!(%error, "skipping undecodable change from another server");
                    return None;
                }
            },
            Some((revision, expires_at)) => Change::LeaseRenewed {
                number,
                revision,
                expires_at,
            },
            None => Change::Removed(number),
        })
    }
}

/// Returns the revision and the lease expiry of a row whose lease was renewed after the record was written.
fn lease_renewal(row: &Row) -> Option<(u32, Timestamp)> {
    let revision: Option<i32> = row.get("revision");
    let expires_at_ns: Option<i64> = row.get("lease_expires_at_ns");
    Some((
        u32::try_from(revision?).ok()?,
        Timestamp::from_nanos(expires_at_ns?),
    ))
}

/// How many bytes a change is, about.
pub(super) fn size_bytes(write: &Write) -> usize {
    match write {
        Write::Put(operation) => operation.size(),
        Write::RenewLease(_) | Write::Delete(_) => 0,
    }
}

/// Numbers are microseconds since 1970 and ten bits: they fit until 2255.
fn number_as_i64(operation: &Operation) -> i64 {
    i64::try_from(operation.number()).unwrap_or(i64::MAX)
}

/// When the retention of an operation is over, in microseconds, if it is done.
fn expires_at_us(operation: &Operation) -> Option<i64> {
    let expires_at_ns = operation.next_deadline(Timestamp::default()).nanos();
    (operation.is_done() && expires_at_ns != i64::MAX).then_some(expires_at_ns / 1000)
}

/// What the creator's request is found by, while clients see the operation: no parent
/// has a colon.
fn request_key(operation: &Operation) -> Option<Vec<u8>> {
    let request_id = operation.request_id().filter(|_| !operation.is_deleted())?;
    Some(format!("{}:{request_id}", parent_of(operation.name())).into_bytes())
}
