//! Runs the whole test suite over every durable storage backend: what clients see
//! must not depend on the backend.
//!
//! Each test here starts this test binary again as a child process. Environment
//! variables select the backend there, and `--skip` patterns leave out the tests
//! that cannot run over it. Every pattern must match a test.

use std::process::{Command, Output};

#[cfg(feature = "sqlite")]
use crate::support::backend::SQLITE_DIRECTORY_ENV;
#[cfg(feature = "postgres")]
use crate::support::{
    backend::{POSTGRES_URL_ENV, REPLICAS_ENV},
    postgres::PostgresServer,
};

/// Patterns of tests that run over no other backend.
const ALWAYS_SKIPPED_TESTS: &[&str] = &[
    // They choose their storage themselves.
    "storage::backend_matrix::",
    "storage::durability::",
    "cluster::postgres::",
    "cluster::postgres_failover::",
    "cluster::postgres_faults::",
    "cluster::postgres_pooler::",
    "cluster::postgres_cache_limit::",
    "cluster::postgres_tls::",
    "storage::restart::",
    "cluster::read_consistency::",
    "cluster::replicas::",
    // The flags of a child process choose the storage.
    "cli::client_commands::",
    "storage::disk_faults::",
    "storage::sqlite_files::",
    "linearizability::",
    "crash::",
    "cli::pause::",
    "cli::restart::",
    "cli::serve::",
    // They count turns of the scheduler, and a durable write takes more of them.
    "worker::long_polls::waiting_polls_get_one_operation_each_in_fifo_order",
    "worker::long_polls::poll_of_several_queues_passes_on_unused_permit",
    // They depend on clocks, not on storage.
    "grpc::wait_limits::",
    // They make so many changes that durable writes would take minutes.
    "client::queue_drain::",
    "grpc::list_pages::wildcard_list_finds_few_matches_among_45000_operations",
    "library::races::",
    "storage::background_maintenance::create_racing_delete_never_creates_third_operation",
    "worker::message_sizes::lease_cost_does_not_depend_on_queue_length",
];

/// Patterns of tests that make thousands of sequential changes, each of which is a
/// round trip to the database.
#[cfg(feature = "postgres")]
const WRITE_HEAVY_TESTS: &[&str] = &[
    "library::create::created_operation_is_readable_by_other_tasks_when_create_returns",
    "grpc::list_filter::filtered_pages_are_complete_ordered_and_bound_to_filter",
    "library::handlers::handler_lease_is_renewed_while_handler_runs",
    "worker::heartbeat::heartbeat_with_more_than_1000_reports_is_rejected",
    "worker::heartbeat::directives_are_in_order_of_1000_reports",
    "library::timeouts::operation_with_microsecond_backoff_is_never_lost",
    "storage::background_maintenance::operation_deleted_at_its_not_before_time_is_still_leased",
    "worker::long_polls::dropped_polls_lose_neither_operations_nor_permits",
];

/// Patterns of tests that depend on the internal state of a single server.
#[cfg(feature = "postgres")]
const SINGLE_SERVER_TESTS: &[&str] = &[
    // They count the waiters of a server, or shut it down.
    "regressions::execution::wait_without_timeout_is_capped_and_disconnect_frees_its_waiter",
    "library::metrics::",
    "grpc::get::get_returns_immediately_during_1000_open_waits",
    "worker::heartbeat::heartbeat_response_during_shutdown_ends_with_drain",
    "client::lease_manager::draining_server_gets_few_heartbeats_and_watch_reconnects",
    "library::shutdown::",
    "grpc::wait::",
    "grpc::watch::watch_ends_with_unavailable_at_shutdown",
    "grpc::watch::watch_over_waiter_limit_is_rejected_with_retry_info",
    "grpc::watch::disconnected_watch_frees_its_waiter",
    "worker::limits::",
    "worker::long_polls::",
    // Directives are pushed by the server to which the worker is connected.
    "worker::directives::",
    // Each server runs its own timers.
    "worker::lease::batch_is_ordered_by_priority_then_age_across_its_queues",
    "worker::lease::lease_operations_honours_not_before",
    "model::",
    // They read the cache of one server.
    "regressions::operation_shape::delete_hides_running_operation_without_cancelling_it",
    "worker::heartbeat::heartbeat_without_report_changes_no_client_visible_bytes",
];

// Rules: DUR-9
#[cfg(feature = "sqlite")]
#[test]
fn full_suite_passes_over_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    run_test_suite(
        &[(SQLITE_DIRECTORY_ENV, directory.path().to_str().unwrap())],
        &[],
    );
    let files = std::fs::read_dir(directory.path()).unwrap().count();
    assert!(
        files > 100,
        "expected tests to use SQLite, found {files} files"
    );
}

// Rules: DUR-9
#[cfg(feature = "postgres")]
#[test]
fn full_suite_passes_over_postgres() {
    let Some(postgres) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    run_test_suite(&[(POSTGRES_URL_ENV, &postgres.url())], WRITE_HEAVY_TESTS);
    let schema_count_query = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'test_%'";
    let schemas: usize = postgres.query(schema_count_query).parse().unwrap();
    assert!(
        schemas > 100,
        "expected tests to use PostgreSQL, found {schemas} schemas"
    );
}

// Rules: DUR-9
#[cfg(feature = "postgres")]
#[test]
fn full_suite_passes_over_three_postgres_replicas() {
    let Some(postgres) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    let skipped = [WRITE_HEAVY_TESTS, SINGLE_SERVER_TESTS].concat();
    run_test_suite(
        &[(POSTGRES_URL_ENV, &postgres.url()), (REPLICAS_ENV, "3")],
        &skipped,
    );
    // Each server has five connections; some tests start one server only.
    let session_count_query = "SELECT sessions / count(nspname) FROM pg_stat_database, pg_namespace
                 WHERE datname = current_database() AND nspname LIKE 'test_%' GROUP BY sessions";
    let sessions: usize = postgres.query(session_count_query).parse().unwrap();
    assert!(
        sessions >= 7,
        "expected several servers per schema, found {sessions} connections"
    );
}

// The test names of other features do not exist in a partial build.
#[cfg(feature = "cli")]
#[test]
fn every_skip_pattern_matches_a_test() {
    let listing = run_tests(Command::new(std::env::current_exe().unwrap()).arg("--list"));
    let listing = String::from_utf8(listing.stdout).unwrap();
    let names: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .collect();
    let patterns = [ALWAYS_SKIPPED_TESTS, WRITE_HEAVY_TESTS, SINGLE_SERVER_TESTS];
    for pattern in patterns.concat() {
        let is_known = names.iter().any(|name| name.contains(pattern));
        assert!(
            is_known,
            "expected the skip pattern {pattern} to match a test"
        );
    }
}

/// Runs the test binary with additional environment variables, without the tests
/// that match `skipped` or [`ALWAYS_SKIPPED_TESTS`].
fn run_test_suite(environment: &[(&str, &str)], skipped: &[&str]) {
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests
        .envs(environment.iter().copied())
        .env("PROPTEST_CASES", "16")
        .arg("--quiet");
    for name in ALWAYS_SKIPPED_TESTS.iter().chain(skipped) {
        tests.arg("--skip").arg(name);
    }
    run_tests(&mut tests);
}

/// Runs the test binary and panics if it fails.
fn run_tests(tests: &mut Command) -> Output {
    let output = tests.output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
