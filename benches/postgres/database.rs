//! The database as it is seen from beside: what it has done so far.

use tokio_postgres::{Client, NoTls};

pub(crate) const SCHEMA: &str = "longrunning_bench";

/// A connection of our own.
pub(crate) struct Database(pub(crate) Client);

/// What was done up to a moment, or between two of them.
#[derive(Clone, Copy)]
pub(crate) struct Done {
    /// Bytes of the write-ahead log.
    pub(crate) wal: f64,
    /// Statements, of which each is a transaction.
    pub(crate) statements: f64,
}

impl Database {
    pub(crate) async fn begin(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls)
            .await
            .expect("the database");
        tokio::spawn(connection);
        let database = Self(client);
        database.drop_schema().await;
        database
    }

    pub(crate) async fn end(&self) {
        self.drop_schema().await;
    }

    async fn drop_schema(&self) {
        self.run(&format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
            .await;
    }

    pub(crate) async fn run(&self, text: &str) {
        self.0.batch_execute(text).await.expect("it can be done");
    }

    /// One number.
    pub(crate) async fn number(&self, question: &str) -> f64 {
        let question = format!("SELECT ({question})::float8");
        self.0
            .query_one(&question, &[])
            .await
            .expect("an answer")
            .get(0)
    }

    pub(crate) async fn done(&self) -> Done {
        // A session that has nothing more to do tells what it did after 10 s.
        tokio::time::sleep(std::time::Duration::from_secs(11)).await;
        self.run("SELECT pg_stat_force_next_flush()").await;
        Done {
            wal: self.number("pg_current_wal_insert_lsn() - '0/0'").await,
            statements: self
                .number(
                    "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
                )
                .await,
        }
    }

    /// How large the tables are, and how many of their rows are dead.
    pub(crate) async fn bloat(&self) -> String {
        let size = |table: &str| format!("pg_total_relation_size('{SCHEMA}.{table}') / 1e6");
        let of = |column: &str, table: &str| {
            format!(
                "SELECT {column} FROM pg_stat_user_tables
                 WHERE schemaname = '{SCHEMA}' AND relname = '{table}'"
            )
        };
        let mut text = String::new();
        for table in ["operations", "changes"] {
            text += &format!(
                "{table} {:.0} MB with indexes, {:.0} rows, {:.0} dead, vacuumed {:.0} times; ",
                self.number(&size(table)).await,
                self.number(&of("n_live_tup", table)).await,
                self.number(&of("n_dead_tup", table)).await,
                self.number(&of("autovacuum_count", table)).await,
            );
        }
        text
    }
}

impl Done {
    /// From then to now, for each of so many.
    pub(crate) fn each(self, then: Self, count: usize) -> Self {
        Self {
            wal: (self.wal - then.wal) / count as f64,
            statements: (self.statements - then.statements) / count as f64,
        }
    }
}
