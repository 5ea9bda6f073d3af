//! The schema steps, against a real PostgreSQL. Skipped with a notice if PostgreSQL is not installed.

use futures_util::future::try_join_all;

use super::*;
use crate::storage::postgres::{config::PostgresConfig, connect::Connector};

#[path = "../../../../tests/it/support/postgres.rs"]
#[allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "shared with the integration tests"
)]
mod postgres;

/// What `postgres` imports from its siblings.
mod backend {
    pub(super) const POSTGRES_URL_ENV: &str = "LONGRUNNING_TEST_POSTGRES";
}

const COMPATIBLE_STEP: Step = Step {
    version: SCHEMA_VERSION + 1,
    min_writer_version: SCHEMA_VERSION,
    sql: "ALTER TABLE {schema}.operations ADD COLUMN note text;",
};

const BREAKING_STEP: Step = Step {
    version: SCHEMA_VERSION + 2,
    min_writer_version: SCHEMA_VERSION + 2,
    sql: "UPDATE {schema}.operations SET note = ''; ALTER TABLE {schema}.operations ALTER note SET NOT NULL;",
};

struct Database {
    connection: Connection,
    statements: Statements,
}

impl Database {
    fn connect(config: &PostgresConfig) -> Self {
        Self {
            connection: Connection::new(&Connector::new(&config.url).unwrap()),
            statements: Statements::new(&config.schema),
        }
    }

    async fn apply(&self, steps: &[Step]) -> Result<(), StorageError> {
        apply_steps(steps, &self.connection, &self.statements).await
    }

    async fn versions(&self) -> (i32, i32) {
        let versions = read_versions(&self.connection, &self.statements).await;
        let versions = versions.unwrap();
        (versions.schema_version, versions.min_writer_version)
    }
}

#[tokio::test]
async fn second_step_is_applied_once_and_keeps_compatible_servers() {
    let Some(config) = postgres::test_config() else {
        return;
    };
    let database = Database::connect(&config);
    database.apply(STEPS).await.unwrap();
    assert_eq!(database.versions().await, (SCHEMA_VERSION, SCHEMA_VERSION));

    let steps = [STEPS, &[COMPATIBLE_STEP]].concat();
    let servers: Vec<Database> = (0..4).map(|_| Database::connect(&config)).collect();
    try_join_all(servers.iter().map(|server| server.apply(&steps)))
        .await
        .unwrap();
    let expected = (COMPATIBLE_STEP.version, SCHEMA_VERSION);
    assert_eq!(database.versions().await, expected);
    database.apply(STEPS).await.unwrap();
    assert_eq!(database.versions().await, expected);

    let steps = [STEPS, &[COMPATIBLE_STEP, BREAKING_STEP]].concat();
    servers[0].apply(&steps).await.unwrap();
    let error = database.apply(STEPS).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::UnsupportedVersion);
    assert!(
        error.to_string().contains("use a newer longrunning"),
        "{error}"
    );
}

#[tokio::test]
async fn all_steps_are_applied_to_an_empty_schema() {
    let Some(config) = postgres::test_config() else {
        return;
    };
    let database = Database::connect(&config);
    let steps = [STEPS, &[COMPATIBLE_STEP, BREAKING_STEP]].concat();
    database.apply(&steps).await.unwrap();
    let expected = (BREAKING_STEP.version, BREAKING_STEP.min_writer_version);
    assert_eq!(database.versions().await, expected);
}

#[tokio::test]
async fn failed_step_leaves_the_tables_at_their_version() {
    let Some(config) = postgres::test_config() else {
        return;
    };
    let database = Database::connect(&config);
    database.apply(STEPS).await.unwrap();
    let failing_step = Step {
        version: BREAKING_STEP.version,
        sql: "ALTER TABLE {schema}.operations DROP COLUMN missing;",
        ..BREAKING_STEP
    };
    let steps = [STEPS, &[COMPATIBLE_STEP, failing_step]].concat();
    let error = database.apply(&steps).await.unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(database.versions().await, (SCHEMA_VERSION, SCHEMA_VERSION));
}

#[tokio::test]
async fn tables_of_an_unreleased_build_are_rejected() {
    let Some(config) = postgres::test_config() else {
        return;
    };
    let database = Database::connect(&config);
    let unreleased =
        "CREATE SCHEMA {schema}; CREATE TABLE {schema}.meta (version integer, trimmed xid8)";
    let unreleased = database.statements.with_schema(unreleased);
    database
        .connection
        .batch_execute(&unreleased)
        .await
        .unwrap();
    let error = database.apply(STEPS).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::UnsupportedVersion);
    assert!(error.to_string().contains("use another schema"), "{error}");
}
