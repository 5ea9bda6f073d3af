//! The SQL statements, for the schema that contains the tables.

/// The columns that `RowDecoder` reads.
macro_rules! decoded_columns {
    () => {
        "number, revision, lease_expires_at_ns, record"
    };
}

/// The SQL statements of one storage. Every name is qualified with the schema, because a pooler may run each statement
/// in another session.
#[derive(Debug)]
pub(super) struct Statements {
    /// The name of the schema, quoted because it may be a key word.
    pub(super) schema: String,
    pub(super) commit: String,
    pub(super) is_writable: String,
    pub(super) conflicting_rows: String,
    pub(super) changes_since: String,
    pub(super) by_numbers: String,
    pub(super) by_name: String,
    pub(super) load: String,
    pub(super) list_before: String,
    pub(super) list_before_all_parents: String,
    pub(super) delete_expired: String,
    pub(super) prune_changes: String,
    pub(super) schema_version: String,
    pub(super) find_tables: String,
    pub(super) repair_after_restore: String,
    pub(super) listen: String,
    pub(super) notify: String,
}

/// Returns `true` for a name that needs no quotes unless it is a key word: 1 to 63 letters a to z, digits and `_`,
/// beginning with a letter or `_`.
pub(super) fn is_valid_schema_name(schema: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    schema.len() < 64
        && schema.bytes().next().is_some_and(is_letter)
        && schema
            .bytes()
            .all(|byte| is_letter(byte) || byte.is_ascii_digit())
}

// === impl Statements ===

impl Statements {
    /// Returns the statements for a schema, whose name must be [valid](is_valid_schema_name).
    pub(super) fn new(schema: &str) -> Self {
        let quoted_schema = format!("\"{schema}\"");
        let with_schema = |sql: &str| replace_schema(sql, &quoted_schema);
        let list_before = include_str!("sql/list_before.sql");
        Self {
            commit: with_schema(include_str!("sql/commit.sql")),
            is_writable: with_schema(
                "SELECT current_setting('transaction_read_only') = 'off' AND min_writer_version <= $1 AS is_writable
                 FROM {schema}.schema_meta",
            ),
            conflicting_rows: with_schema(concat!(
                "SELECT ", decoded_columns!(), ", name, request_key FROM {schema}.operations
                 WHERE number = ANY($1) OR name = ANY($2) OR request_key = ANY($3)"
            )),
            changes_since: with_schema(include_str!("sql/changes_since.sql")),
            by_numbers: with_schema(
                "SELECT input.number, revision, lease_expires_at_ns, record
                 FROM unnest($1::bigint[]) AS input (number)
                   LEFT JOIN {schema}.operations ON operations.number = input.number",
            ),
            by_name: with_schema(concat!(
                "SELECT ", decoded_columns!(), " FROM {schema}.operations WHERE name = $1"
            )),
            // All operations that are not done, and the newest of those that are, up to the cache limit.
            load: with_schema(concat!(
                "SELECT ", decoded_columns!(), " FROM {schema}.operations WHERE NOT is_done
                 UNION ALL (SELECT ", decoded_columns!(), " FROM {schema}.operations WHERE is_done
                   ORDER BY number DESC LIMIT $1)"
            )),
            list_before: with_schema(list_before),
            list_before_all_parents: with_schema(
                &list_before
                    .replace(" AND parent = $2", "")
                    .replace("$3", "$2"),
            ),
            delete_expired: with_schema(include_str!("sql/delete_expired.sql")),
            prune_changes: with_schema(include_str!("sql/prune_changes.sql")),
            schema_version: with_schema(
                "SELECT schema_version, min_writer_version FROM {schema}.schema_meta",
            ),
            // Unreleased builds had a table meta with a column trimmed.
            find_tables: with_schema(
                "SELECT to_regclass('{schema}.schema_meta') IS NOT NULL AS has_tables,
                   EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('{schema}.meta')
                     AND attname = 'trimmed') AS has_unreleased_tables",
            ),
            repair_after_restore: with_schema(include_str!("sql/repair_after_restore.sql")),
            listen: with_schema("LISTEN {schema}"),
            notify: format!("SELECT pg_notify('{schema}', $1)"),
            schema: quoted_schema,
        }
    }

    /// Returns SQL with the schema in the place of `{schema}`.
    pub(super) fn with_schema(&self, sql: &str) -> String {
        replace_schema(sql, &self.schema)
    }
}

fn replace_schema(sql: &str, quoted_schema: &str) -> String {
    sql.replace("{schema}", quoted_schema)
}
