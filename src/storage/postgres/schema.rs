//! What a server does first with a database: it makes the tables, looks whether they
//! are ours, and asks for the time.

use std::time::Duration;

use tokio_postgres::Client;

use super::{connection::Connection, statements::Statements};
use crate::{
    clock::{Clock, Timestamp},
    storage::error::{StorageError, StorageErrorKind},
};

/// The version of the tables.
pub(super) const SCHEMA_VERSION: i32 = 2;

/// How often the database is asked for the time, unless an answer is quick: its
/// error is at most half of what it took.
const MAX_CLOCK_SAMPLES: usize = 8;
const GOOD_ROUND_TRIP_TIME: Duration = Duration::from_millis(5);

/// Makes the tables, one server at a time, or looks whether they are ours.
pub(super) async fn ensure_schema(
    connection: &Connection,
    statements: &Statements,
) -> Result<(), StorageError> {
    let schema_exists =
        async |client: &Client| client.query_typed_one(&statements.schema_exists, &[]).await;
    if !connection
        .with_client(schema_exists)
        .await?
        .get::<_, bool>(0)
    {
        connection
            .with_client(async |client| client.batch_execute(&statements.create_schema).await)
            .await?;
    }
    check_schema_version(connection, statements).await?;
    connection
        .with_client(async |client| {
            client
                .execute_typed(&statements.repair_after_restore, &[])
                .await
        })
        .await?;
    Ok(())
}

/// Looks whether this program may write the tables: they are as new as it needs,
/// and no newer program has made of them what this one would not understand.
pub(super) async fn check_schema_version(
    connection: &Connection,
    statements: &Statements,
) -> Result<(), StorageError> {
    let query = async |client: &Client| {
        client
            .query_typed_one(&statements.schema_version, &[])
            .await
    };
    let row = connection.with_client(query).await?;
    let (version, min_writer_version): (i32, i32) = (row.get(0), row.get(1));
    if SCHEMA_VERSION < min_writer_version {
        return Err(StorageError::new(
            StorageErrorKind::UnsupportedVersion,
            format!(
                "the tables are of version {version}, which programs that know version {min_writer_version} and up may \
             write; this one knows version {SCHEMA_VERSION}: use a newer longrunning"
            ),
        ));
    }
    if version < SCHEMA_VERSION {
        return Err(StorageError::new(
            StorageErrorKind::UnsupportedVersion,
            format!(
                "the tables are of version {version}, and this program needs version {SCHEMA_VERSION}"
            ),
        ));
    }
    Ok(())
}

/// The clock of the database, as far as the way there can be measured: by the
/// quickest of a few answers, because nobody knows on which way one was held up.
pub(super) async fn measure_server_clock(connection: &Connection) -> Result<Clock, StorageError> {
    let clock = Clock::system();
    let statement = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let mut best: Option<(Duration, Timestamp, Timestamp)> = None;
    for _ in 0..MAX_CLOCK_SAMPLES {
        let sent_at = clock.now();
        let query = async |client: &Client| client.query_typed_one(statement, &[]).await;
        let row = connection.with_client(query).await?;
        let received_at = clock.now();
        let (round_trip, micros) = (received_at.since(sent_at), row.get::<_, i64>(0));
        if best.is_none_or(|(best, ..)| round_trip < best) {
            let server_time = Timestamp::from_micros(micros) + round_trip / 2;
            best = Some((round_trip, server_time, received_at));
        }
        if round_trip < GOOD_ROUND_TRIP_TIME {
            break;
        }
    }
    let (_, server_time, received_at) = best.expect("it was asked");
    Ok(Clock::adjustable_from(
        server_time + clock.now().since(received_at),
    ))
}
