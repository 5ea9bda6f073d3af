//! The whole behaviour again, over each store that keeps more than memory does:
//! what clients see must not depend on where operations are kept.

use std::process::Command;

#[cfg(feature = "sqlite")]
use crate::support::stores::SQLITE;
#[cfg(feature = "postgres")]
use crate::support::{
    postgres::Postgres,
    stores::{POSTGRES, REPLICAS},
};

/// Tests that run elsewhere only.
const OTHERS: &[&str] = &[
    // They say themselves what keeps the operations.
    "over_stores::",
    "durability::",
    "postgres::",
    "postgres_failover::",
    "postgres_faults::",
    "postgres_pooler::",
    "postgres_view::",
    "postgres_tls::",
    "recovery::",
    "replicas::",
    // The flags of a program say it.
    "commands::",
    "faults_of_disk::",
    "files::",
    "history::",
    "kills::",
    "program::",
    // They look at who moves in a turn of the scheduler, and an fsync takes more.
    "worker_polls::polls_that_wait_get_one_operation_each",
    "worker_polls::a_poll_of_several_queues_passes_on",
    // They are about clocks, not about stores.
    "wait_limits::",
    // They make so many changes that the fsyncs would take minutes.
    "drain::",
    "pages::a_wildcard_that_matches_few_among_many",
    "races::",
    "upkeep::a_request_that_races_with_a_deletion",
    "worker_sizes::a_queue_as_long_as_the_store",
];

/// Tests of thousands of changes one after another, each of which is a round trip
/// to the database.
#[cfg(feature = "postgres")]
const MANY_CHANGES: [&str; 8] = [
    "creation::what_was_created_can_be_read_by_other_tasks",
    "filter::pages_of_a_filtered_list",
    "handlers::the_lease_of_a_handler_is_renewed_as_long_as_it_works",
    "heartbeat::a_heartbeat_with_more_than_1000_reports",
    "heartbeat::a_thousand_reports_in_one_heartbeat",
    "times::an_operation_whose_pause_is_over_in_microseconds",
    "upkeep::an_operation_that_is_deleted_when_its_time_comes",
    "worker_polls::polls_that_give_up",
];

/// Tests that look at one server from inside, where three are not one.
#[cfg(feature = "postgres")]
const BOUND_TO_ONE: [&str; 18] = [
    // They count who waits at a server, or how a server ends.
    "bugs::a_wait_ends_with_its_client",
    "counts::",
    "get::get_answers_at_once_while_a_thousand_waits_are_open",
    "heartbeat::when_the_server_shuts_down",
    "keeper::a_server_that_drains",
    "shutdown::",
    "wait::",
    "watch::a_watch_ends_with_unavailable_when_the_server_shuts_down",
    "watch::a_watch_over_the_limit_of_waiters",
    "watch::a_watch_whose_client_goes_away",
    "worker_limits::",
    "worker_polls::",
    // What is pushed comes from the server that the worker is connected to.
    "directives::",
    // Each server takes its own moment to see that a time has come.
    "worker_leases::a_batch_comes_by_priority",
    "worker_leases::nobody_gets_an_operation_before_its_time",
    // They look into one server without a call.
    "bugs_of_shape::deleting_a_running_operation",
    "heartbeat::a_renewal_without_news",
    // Each server takes its own time to see that something is due.
    "model::",
];

#[cfg(feature = "sqlite")]
#[test]
fn the_behaviour_is_the_same_over_a_sqlite_file() {
    let directory = tempfile::tempdir().unwrap();
    run_again(&[(SQLITE, directory.path().to_str().unwrap())], &[]);
    let files = std::fs::read_dir(directory.path()).unwrap().count();
    assert!(100 < files, "only {files} files: the tests ran over memory");
}

#[cfg(feature = "postgres")]
#[test]
fn the_behaviour_is_the_same_over_postgresql() {
    let Some(postgres) = Postgres::start(&["fsync=off"]) else {
        return;
    };
    run_again(&[(POSTGRES, &postgres.url())], &MANY_CHANGES);
    let count = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'test_%'";
    let schemas: usize = postgres.ask(count).parse().unwrap();
    assert!(
        100 < schemas,
        "only {schemas} schemas: the tests ran over memory"
    );
}

#[cfg(feature = "postgres")]
#[test]
fn the_behaviour_is_the_same_when_each_call_goes_to_another_of_three_servers() {
    let Some(postgres) = Postgres::start(&["fsync=off"]) else {
        return;
    };
    let others = [MANY_CHANGES.as_slice(), &BOUND_TO_ONE].concat();
    run_again(&[(POSTGRES, &postgres.url()), (REPLICAS, "3")], &others);
    // Each server has five connections, and some tests look into one server only.
    let count = "SELECT sessions / count(nspname) FROM pg_stat_database, pg_namespace
                 WHERE datname = current_database() AND nspname LIKE 'test_%' GROUP BY sessions";
    let sessions: usize = postgres.ask(count).parse().unwrap();
    assert!(7 <= sessions, "only {sessions} connections for each schema");
}

/// Runs the tests again, with this in the environment, but for these.
fn run_again(environment: &[(&str, &str)], others: &[&str]) {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again
        .envs(environment.iter().copied())
        .env("PROPTEST_CASES", "16")
        .arg("--quiet");
    for other in OTHERS.iter().chain(others) {
        again.arg("--skip").arg(other);
    }
    let output = again.output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
