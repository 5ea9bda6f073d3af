//! Renewals of leases: what they cost, small and large records alike.

use std::time::Instant;

use longrunning::{Any, NewOperation, Operations, QueueName, WorkerId};
use tokio::task::JoinSet;

use crate::{
    MINUTE,
    database::{Database, SCHEMA},
    end,
};

const LEASES: usize = 500;
const RENEWALS: usize = 40;

pub(crate) async fn renewals(database: &Database, servers: &[Operations]) {
    println!("{RENEWALS} renewals of each of {LEASES} leases, through 3 servers:");
    for bytes in [100, 2_000, 64_000] {
        let queue = QueueName::parse(&format!("renewed-{bytes}")).expect("a proper name");
        // What cannot be pressed together.
        let random = || (0..bytes / 16 + 1).flat_map(|_| *uuid::Uuid::new_v4().as_bytes());
        for _ in 0..LEASES {
            let input = Any {
                type_url: "type.example.com/example.Bytes".to_owned(),
                value: random().collect(),
            };
            let new = NewOperation::queued(queue.as_str()).input(input);
            servers[0].create(new).await.expect("it is kept");
        }
        let mut leases = Vec::new();
        while leases.len() < LEASES {
            let worker = WorkerId::new("bench");
            let some = servers[0].lease_batch(std::slice::from_ref(&queue), &worker, 50, MINUTE);
            leases.extend(some.await.expect("there are some"));
        }
        for lease in &leases {
            for server in servers {
                server.look(&lease.owned_name()).await.expect("it is there");
            }
        }
        // So that pages are not written whole for the first change after a checkpoint.
        database.run("CHECKPOINT").await;
        let updates = |column: &str| {
            format!(
                "SELECT {column} FROM pg_stat_user_tables
                 WHERE schemaname = '{SCHEMA}' AND relname = 'operations'"
            )
        };
        let hot = updates("n_tup_hot_upd::float8");
        let (before, hot_before, began) = (
            database.done().await,
            database.number(&hot).await,
            Instant::now(),
        );
        let mut tasks = JoinSet::new();
        for (at, lease) in leases.iter().enumerate() {
            let (server, name) = (servers[at % servers.len()].clone(), lease.owned_name());
            let token = lease.lease().expect("it is ours").token;
            tasks.spawn(async move {
                for _ in 0..RENEWALS {
                    server.renew(&name, token).await.expect("it is ours");
                }
                end(server, name, token).await;
            });
        }
        tasks.join_all().await;
        let count = LEASES * RENEWALS;
        let took = began.elapsed().as_secs_f64();
        let each = database.done().await.each(before, count);
        let hot = database.number(&hot).await - hot_before;
        println!(
            "  inputs of {bytes:6} bytes: {:6.0}/s, {:4.0} bytes of WAL each, {:.0} % in place",
            count as f64 / took,
            each.wal,
            100.0 * hot / count as f64,
        );
    }
}
