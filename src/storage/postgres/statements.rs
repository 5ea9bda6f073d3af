//! The SQL statements, for the schema that holds the tables.

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
    pub(super) schema_exists: String,
    pub(super) create_schema: String,
    pub(super) repair_after_restore: String,
    pub(super) listen: String,
    pub(super) notify: String,
}

/// Returns `true` for a name that needs no quotes unless it is a key word: 1 to 63 letters a to z, digits and `_`,
/// beginning with a letter or `_`.
pub(super) fn is_valid_schema_name(schema: &str) -> bool {
    let mut chars = schema.bytes();
    chars
        .next()
        .is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
        && chars.all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == b'_')
        && schema.len() < 64
}

// === impl Statements ===

impl Statements {
    /// Returns the statements for a schema, whose name [`is_valid_schema_name`].
    pub(super) fn new(schema: &str) -> Self {
        // Quoted, because it may be a key word.
        let with_schema = |text: &str| text.replace("{schema}", &format!("\"{schema}\""));
        let create_schema = include_str!("sql/schema.sql");
        let list_before = include_str!("sql/list_before.sql");
        Self {
            commit: with_schema(include_str!("sql/commit.sql")),
            is_writable: with_schema(
                "SELECT current_setting('transaction_read_only') = 'off' AND min_writer_version <= $1
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
            // What a view holds: all operations that are not done, and the newest of those that are.
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
            schema_exists: with_schema("SELECT to_regclass('{schema}.schema_meta') IS NOT NULL"),
            create_schema: with_schema(&format!(
                "BEGIN; SELECT pg_advisory_xact_lock(hashtext('{{schema}}'));
                 DO $do$ BEGIN
                   IF to_regclass('{{schema}}.schema_meta') IS NULL THEN {create_schema} END IF;
                 END $do$;
                 COMMIT"
            )),
            repair_after_restore: with_schema(include_str!("sql/repair_after_restore.sql")),
            listen: with_schema("LISTEN {schema}"),
            notify: format!("SELECT pg_notify('{schema}', $1)"),
        }
    }
}
