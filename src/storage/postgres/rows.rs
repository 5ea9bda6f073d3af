//! Encodes writes as the columns of `commit.sql`, and decodes rows.

use std::{collections::HashSet, error::Error, sync::Arc};

use bytes::BytesMut;
use tokio_postgres::{
    Row,
    types::{IsNull, ToSql, Type, accepts, to_sql_checked},
};
use tracing::error;

use crate::{
    clock::Timestamp,
    operation::{
        Operation,
        name::parent_of,
        record::{self, encode_with_input},
    },
    storage::{Change, Write, WriteError, error::StorageError},
};

use super::{connection::Connection, schema::SCHEMA_VERSION, statements::Statements};

/// The result of one write.
pub(super) type WriteOutcome = Result<(), WriteError>;

/// Decodes the columns `number`, `revision`, `lease_expires_at_ns` and `record`.
#[derive(Debug, Default)]
pub(super) struct RowDecoder(record::RecordDecoder);

/// The values of `kind` in `commit.sql`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
enum WriteKind {
    Insert = 0,
    Update = 1,
    Delete = 2,
}

/// The columns of `commit.sql`, one element for each write.
#[derive(Debug, Default)]
pub(super) struct WriteBatch {
    kinds: Vec<WriteKind>,
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

// === impl WriteKind ===

impl ToSql for WriteKind {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        (*self as i16).to_sql(ty, out)
    }

    accepts!(INT2);
    to_sql_checked!();
}

// === impl WriteBatch ===

impl WriteBatch {
    pub(super) fn from_writes(writes: &[Write]) -> Self {
        let mut batch = Self::default();
        writes.iter().for_each(|write| batch.push(write));
        batch
    }

    fn push(&mut self, write: &Write) {
        let (Write::Put(operation) | Write::RenewLease(operation) | Write::Remove(operation)) =
            write;
        let revision = i32::try_from(operation.revision()).unwrap_or(i32::MAX);
        let (kind, expected_revision, record) = match write {
            Write::Remove(_) => (WriteKind::Delete, revision, None),
            Write::RenewLease(_) => (WriteKind::Update, revision - 1, None),
            Write::Put(_) => {
                let record = Some(encode_with_input(operation));
                match revision {
                    0 => (WriteKind::Insert, 0, record),
                    _ => (WriteKind::Update, revision - 1, record),
                }
            }
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

    /// Returns the parameters of `commit.sql`.
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

    /// Returns the number of writes.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Returns the indices of the writes that were not applied, in ascending order. `applied` are the numbers of the
    /// others.
    pub(super) fn not_applied(&self, applied: &HashSet<i64>) -> Vec<usize> {
        (0..self.numbers.len())
            .filter(|index| !applied.contains(&self.numbers[*index]))
            .collect()
    }

    /// Reads the rows that conflict with the writes at these indexes, and returns the outcome of each, in the same
    /// order. A write that was sent twice is applied if the first one was.
    pub(super) async fn resolve_conflicts(
        &self,
        not_applied: &[usize],
        connection: &Connection,
        statements: &Statements,
    ) -> Result<Vec<WriteOutcome>, StorageError> {
        let numbers: Vec<i64> = not_applied
            .iter()
            .map(|index| self.numbers[*index])
            .collect();
        let inserts = not_applied.iter().filter(|index| self.is_insert(**index));
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
            .query(&statements.conflicting_rows, &parameters)
            .await?;
        let mut decoder = RowDecoder::default();
        let resolve = |&index| match rows.iter().find(|row| self.conflicts_with(index, row)) {
            // Also a delete conflicts with a row that is gone: of two servers that delete it, one has done so.
            None => Err(WriteError::Conflict { current: None }),
            Some(row) if self.matches_row(index, row) => Ok(()),
            Some(row) => Err(match decoder.decode_operation(row) {
                Ok(current) => WriteError::Conflict {
                    current: Some(Arc::new(current)),
                },
                Err(error) => error.into(),
            }),
        };
        Ok(not_applied.iter().map(resolve).collect())
    }

    fn is_insert(&self, index: usize) -> bool {
        self.kinds[index] == WriteKind::Insert
    }

    /// Returns `true` if a row has the number of a write, or, for an insert, its name or request key.
    fn conflicts_with(&self, index: usize, row: &Row) -> bool {
        let has_request_key = |request_key: &Vec<u8>| {
            row.get::<_, Option<&[u8]>>("request_key") == Some(request_key.as_slice())
        };
        row.get::<_, i64>("number") == self.numbers[index]
            || self.is_insert(index)
                && (row.get::<_, &str>("name") == self.names[index]
                    || self.request_keys[index]
                        .as_ref()
                        .is_some_and(has_request_key))
    }

    /// Returns `true` if a row is as a write leaves it.
    fn matches_row(&self, index: usize, row: &Row) -> bool {
        let has_record = |record: &Vec<u8>| row.get::<_, &[u8]>("record") == record;
        self.kinds[index] != WriteKind::Delete
            && row.get::<_, i32>("revision") == self.revisions[index]
            && row.get::<_, Option<i64>>("lease_expires_at_ns") == self.lease_expires_at_ns[index]
            && self.records[index].as_ref().is_none_or(has_record)
    }
}

// === impl RowDecoder ===

impl RowDecoder {
    /// Decodes the operation of a row.
    pub(super) fn decode_operation(&mut self, row: &Row) -> Result<Operation, StorageError> {
        let number: i64 = row.get("number");
        let record = row.get("record");
        let key = u64::try_from(number).unwrap_or_default();
        let mut operation = self.0.decode(key, record, None).map_err(|error| {
            let message = format!("row {number} of table operations cannot be decoded: {error}");
            StorageError::corrupt(message).with_source(error)
        })?;
        if let Some((revision, expires_at)) = lease_renewal(row) {
            operation.apply_lease_renewal(revision, expires_at);
        }
        Ok(operation)
    }

    /// Decodes the change of an operation. Returns `None` for a row without a number, and for a damaged record, which
    /// it logs.
    pub(super) fn decode_change(&mut self, row: &Row) -> Option<Change> {
        let number = row.get::<_, Option<i64>>("number")?;
        let has_record = row.get::<_, Option<&[u8]>>("record").is_some();
        let number = u64::try_from(number).unwrap_or_default();
        Some(match lease_renewal(row) {
            // A damaged record does not block the changes after it.
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

/// Returns the approximate size of a write.
pub(super) fn size_bytes(write: &Write) -> usize {
    match write {
        Write::Put(operation) => operation.size(),
        Write::RenewLease(_) | Write::Remove(_) => 0,
    }
}

/// Returns the number of an operation, which is microseconds since 1970 and ten bits: it fits until 2255.
fn number_as_i64(operation: &Operation) -> i64 {
    i64::try_from(operation.number()).unwrap_or(i64::MAX)
}

/// Returns when the retention of an operation expires, or `None` if it is not done or does not expire.
fn expires_at_us(operation: &Operation) -> Option<i64> {
    let expires_at_ns = operation.next_deadline(Timestamp::default()).nanos();
    (operation.is_done() && expires_at_ns != i64::MAX).then_some(expires_at_ns / 1000)
}

/// Returns the idempotency key of an operation, or `None` if it has no request id or is deleted. It is unambiguous,
/// because a parent has no colon.
fn request_key(operation: &Operation) -> Option<Vec<u8>> {
    let request_id = operation.request_id().filter(|_| !operation.is_deleted())?;
    Some(format!("{}:{request_id}", parent_of(operation.name())).into_bytes())
}
