//! The whole behaviour again, over each store that keeps more than memory does:
//! what clients see must not depend on where operations are kept.

use std::process::Command;

#[cfg(feature = "sqlite")]
use crate::support::backend::SQLITE_DIRECTORY_ENV;
#[cfg(feature = "postgres")]
use crate::support::{
    backend::{POSTGRES_URL_ENV, REPLICAS_ENV},
    postgres::PostgresServer,
};

/// Tests that run elsewhere only.
const ALWAYS_SKIPPED_TESTS: &[&str] = &[
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
const WRITE_HEAVY_TESTS: [&str; 8] = [
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
const SINGLE_SERVER_TESTS: [&str; 18] = [
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
fn test_suite_passes_over_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    run_test_suite(
        &[(SQLITE_DIRECTORY_ENV, directory.path().to_str().unwrap())],
        &[],
    );
    let files = std::fs::read_dir(directory.path()).unwrap().count();
    assert!(100 < files, "only {files} files: the tests ran over memory");
}

#[cfg(feature = "postgres")]
#[test]
fn test_suite_passes_over_postgres() {
    let Some(postgres) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    run_test_suite(&[(POSTGRES_URL_ENV, &postgres.url())], &WRITE_HEAVY_TESTS);
    let schema_count_query = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'test_%'";
    let schemas: usize = postgres.query(schema_count_query).parse().unwrap();
    assert!(
        100 < schemas,
        "only {schemas} schemas: the tests ran over memory"
    );
}

#[cfg(feature = "postgres")]
#[test]
fn test_suite_passes_over_three_postgres_replicas() {
    let Some(postgres) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    let skipped = [WRITE_HEAVY_TESTS.as_slice(), &SINGLE_SERVER_TESTS].concat();
    run_test_suite(
        &[(POSTGRES_URL_ENV, &postgres.url()), (REPLICAS_ENV, "3")],
        &skipped,
    );
    // Each server has five connections, and some tests look into one server only.
    let session_count_query = "SELECT sessions / count(nspname) FROM pg_stat_database, pg_namespace
                 WHERE datname = current_database() AND nspname LIKE 'test_%' GROUP BY sessions";
    let sessions: usize = postgres.query(session_count_query).parse().unwrap();
    assert!(7 <= sessions, "only {sessions} connections for each schema");
}

/// Runs the tests again, with this in the environment, but for these.
fn run_test_suite(environment: &[(&str, &str)], skipped: &[&str]) {
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests
        .envs(environment.iter().copied())
        .env("PROPTEST_CASES", "16")
        .arg("--quiet");
    for name in ALWAYS_SKIPPED_TESTS.iter().chain(skipped) {
        tests.arg("--skip").arg(name);
    }
    let output = tests.output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
