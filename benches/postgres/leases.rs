//! Measures lease renewals of operations with small and large records.

use std::time::Instant;

use longrunning::{Any, NewOperation, Operations, QueueName, WorkerId};
use tokio::task::JoinSet;

use crate::{
    WAIT_TIMEOUT,
    database::{Database, SCHEMA},
    finish_operation,
};

const LEASE_COUNT: usize = 500;
const RENEWALS_PER_LEASE: usize = 40;

pub(crate) async fn bench_renewals(database: &Database, servers: &[Operations]) {
    println!("{RENEWALS_PER_LEASE} renewals of each of {LEASE_COUNT} leases, through 3 servers:");
    for bytes in [100, 2_000, 64_000] {
        let queue = QueueName::parse(&format!("renewed-{bytes}")).expect("the name is valid");
        // Incompressible, so that TOAST compression has no effect.
        let random = || (0..bytes / 16 + 1).flat_map(|_| *uuid::Uuid::new_v4().as_bytes());
        for _ in 0..LEASE_COUNT {
            let input = Any {
                type_url: "type.example.com/example.Bytes".to_owned(),
                value: random().collect(),
            };
            let new = NewOperation::queued(queue.as_str()).input(input);
            servers[0].create(new).await.expect("the store accepts it");
        }
        let mut leases = Vec::new();
        while leases.len() < LEASE_COUNT {
            let worker = WorkerId::new("bench");
            let batch =
                servers[0].lease_batch(std::slice::from_ref(&queue), &worker, 50, WAIT_TIMEOUT);
            leases.extend(batch.await.expect("the queue is not empty"));
        }
        for lease in &leases {
            for server in servers {
                server.get(&lease.name_owned()).await.expect("it exists");
            }
        }
        // Otherwise a checkpoint during the measurement would cause full-page writes.
        database.execute("CHECKPOINT").await;
        let stat_query = |column: &str| {
            format!(
                "SELECT {column} FROM pg_stat_user_tables
                 WHERE schemaname = '{SCHEMA}' AND relname = 'operations'"
            )
        };
        let hot_updates_query = stat_query("n_tup_hot_upd::float8");
        let (before, hot_updates_before, started) = (
            database.read_stats().await,
            database.query_number(&hot_updates_query).await,
            Instant::now(),
        );
        let mut tasks = JoinSet::new();
        for (index, lease) in leases.iter().enumerate() {
            let (server, name) = (servers[index % servers.len()].clone(), lease.name_owned());
            let token = lease.lease().expect("it is leased").token;
            tasks.spawn(async move {
                for _ in 0..RENEWALS_PER_LEASE {
                    server.renew(&name, token).await.expect("the lease is held");
                }
                finish_operation(server, name, token).await;
            });
        }
        tasks.join_all().await;
        let count = LEASE_COUNT * RENEWALS_PER_LEASE;
        let elapsed_secs = started.elapsed().as_secs_f64();
        let per_renewal = database.read_stats().await.per_item_since(before, count);
        let hot_updates = database.query_number(&hot_updates_query).await - hot_updates_before;
        println!(
            "  inputs of {bytes:6} bytes: {:6.0}/s, {:4.0} bytes of WAL each, {:.0} % HOT updates",
            count as f64 / elapsed_secs,
            per_renewal.wal_bytes,
            100.0 * hot_updates / count as f64,
        );
    }
}
