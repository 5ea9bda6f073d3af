//! The statistics of the database.

use tokio_postgres::{Client, NoTls};

pub(crate) const SCHEMA: &str = "longrunning_bench";

/// A separate connection to the database.
pub(crate) struct Database(pub(crate) Client);

/// Cumulative statistics, or the difference between two of them.
#[derive(Clone, Copy)]
pub(crate) struct DatabaseStats {
    pub(crate) wal_bytes: f64,
    /// Committed transactions; each statement is one.
    pub(crate) statements: f64,
}

impl Database {
    pub(crate) async fn connect(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls)
            .await
            .expect("the database is reachable");
        tokio::spawn(connection);
        let database = Self(client);
        database.drop_schema().await;
        database
    }

    pub(crate) async fn cleanup(&self) {
        self.drop_schema().await;
    }

    async fn drop_schema(&self) {
        self.execute(&format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
            .await;
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.0
            .batch_execute(sql)
            .await
            .expect("the statement succeeds");
    }

    /// Returns the number that a query selects.
    pub(crate) async fn query_number(&self, query: &str) -> f64 {
        let query = format!("SELECT ({query})::float8");
        self.0
            .query_one(&query, &[])
            .await
            .expect("the query succeeds")
            .get(0)
    }

    pub(crate) async fn read_stats(&self) -> DatabaseStats {
        // An idle session reports its statistics after 10 s.
        tokio::time::sleep(std::time::Duration::from_secs(11)).await;
        self.execute("SELECT pg_stat_force_next_flush()").await;
        DatabaseStats {
            wal_bytes: self
                .query_number("pg_current_wal_insert_lsn() - '0/0'")
                .await,
            statements: self
                .query_number(
                    "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
                )
                .await,
        }
    }

    /// Describes the sizes of the tables and their dead rows.
    pub(crate) async fn describe_bloat(&self) -> String {
        let size_query = |table: &str| format!("pg_total_relation_size('{SCHEMA}.{table}') / 1e6");
        let stat_query = |column: &str, table: &str| {
            format!(
                "SELECT {column} FROM pg_stat_user_tables
                 WHERE schemaname = '{SCHEMA}' AND relname = '{table}'"
            )
        };
        let mut text = String::new();
        for table in ["operations", "changes"] {
            text += &format!(
                "{table} {:.0} MB with indexes, {:.0} rows, {:.0} dead, vacuumed {:.0} times; ",
                self.query_number(&size_query(table)).await,
                self.query_number(&stat_query("n_live_tup", table)).await,
                self.query_number(&stat_query("n_dead_tup", table)).await,
                self.query_number(&stat_query("autovacuum_count", table))
                    .await,
            );
        }
        text
    }
}

impl DatabaseStats {
    /// Returns the difference since `before`, divided by `count`.
    pub(crate) fn per_item_since(self, before: Self, count: usize) -> Self {
        Self {
            wal_bytes: (self.wal_bytes - before.wal_bytes) / count as f64,
            statements: (self.statements - before.statements) / count as f64,
        }
    }
}
