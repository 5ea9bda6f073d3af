//! Measures the clock of the database.

use std::time::Duration;

use super::connection::Connection;
use crate::{
    clock::{Clock, Timestamp},
    storage::error::StorageError,
};

/// The most samples that are taken. The error of a sample is at most half of its round-trip time.
const MAX_CLOCK_SAMPLES: usize = 8;
/// A sample with a round-trip time below this is the last.
const GOOD_ROUND_TRIP_TIME: Duration = Duration::from_millis(5);

struct ClockSample {
    round_trip_time: Duration,
    /// The time of the database when its response arrived.
    server_time: Timestamp,
    received_at: Timestamp,
}

/// Returns a clock that shows the time of the database, from the sample with the shortest round trip.
pub(super) async fn measure_server_clock(connection: &Connection) -> Result<Clock, StorageError> {
    let local_clock = Clock::system();
    let mut best = take_sample(connection, &local_clock).await?;
    for _ in 1..MAX_CLOCK_SAMPLES {
        if best.round_trip_time < GOOD_ROUND_TRIP_TIME {
            break;
        }
        let sample = take_sample(connection, &local_clock).await?;
        if sample.round_trip_time < best.round_trip_time {
            best = sample;
        }
    }
    let elapsed = local_clock.now().since(best.received_at);
    Ok(Clock::adjustable_from(best.server_time + elapsed))
}

async fn take_sample(connection: &Connection, clock: &Clock) -> Result<ClockSample, StorageError> {
    let statement =
        "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS server_time_us";
    let sent_at = clock.now();
    let row = connection.query_one(statement, &[]).await?;
    let received_at = clock.now();
    let round_trip_time = received_at.since(sent_at);
    Ok(ClockSample {
        round_trip_time,
        server_time: Timestamp::from_micros(row.get("server_time_us")) + round_trip_time / 2,
        received_at,
    })
}
