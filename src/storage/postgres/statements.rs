//! The statements, for the schema that holds the tables.

/// The statements of one journal. Every name is written out with its schema, so
/// that no session has to be told where to look: a pooler may give each
/// statement another one.
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

/// A name that means the same with quotes and without, if it is no word of SQL.
pub(super) fn is_valid_schema_name(schema: &str) -> bool {
    let mut bytes = schema.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && schema.len() < 64
}

// === impl Sql ===

impl Statements {
    /// The statements for a schema, whose name [`is_plain`].
    pub(super) fn new(schema: &str) -> Self {
        // In quotes, because it may be a word of SQL.
        let with_schema = |text: &str| text.replace("longrunning", &format!("\"{schema}\""));
        let create_schema = include_str!("sql/schema.sql");
        let list_before = include_str!("sql/list_before.sql");
        // As much as a view shows: what is not done, and the newest of what is.
        let load = "SELECT number, revision, renewed_until, record FROM longrunning.operations WHERE NOT is_done
             UNION ALL (SELECT number, revision, renewed_until, record FROM longrunning.operations WHERE is_done
               ORDER BY number DESC LIMIT $1)";
        Self {
            commit: with_schema(include_str!("sql/commit.sql")),
            is_writable: with_schema(
                "SELECT current_setting('transaction_read_only') = 'off' AND least <= $1
                 FROM longrunning.meta",
            ),
            conflicting_rows: with_schema("SELECT number, revision, renewed_until, record, name, request FROM longrunning.operations
                 WHERE number = ANY($1) OR name = ANY($2) OR request = ANY($3)"),
            changes_since: with_schema(include_str!("sql/changes_since.sql")),
            by_numbers: with_schema("SELECT given.number, revision, renewed_until, record
                 FROM unnest($1::bigint[]) AS given (number)
                   LEFT JOIN longrunning.operations ON operations.number = given.number"),
            by_name: with_schema("SELECT number, revision, renewed_until, record
                 FROM longrunning.operations WHERE name = $1"),
            load: with_schema(load),
            list_before: with_schema(list_before),
            list_before_all_parents: with_schema(&list_before.replace(" AND parent = $2", "").replace("$3", "$2")),
            delete_expired: with_schema(include_str!("sql/delete_expired.sql")),
            prune_changes: with_schema(include_str!("sql/prune_changes.sql")),
            schema_version: with_schema("SELECT version, least FROM longrunning.meta"),
            schema_exists: with_schema("SELECT to_regclass('longrunning.meta') IS NOT NULL"),
            create_schema: with_schema(&format!(
                "BEGIN; SELECT pg_advisory_xact_lock(hashtext('longrunning'));
                 DO $do$ BEGIN IF to_regclass('longrunning.meta') IS NULL THEN {create_schema} END IF; END $do$;
                 COMMIT"
            )),
            repair_after_restore: with_schema(include_str!("sql/repair_after_restore.sql")),
            listen: with_schema("LISTEN longrunning"),
            notify: format!("SELECT pg_notify('{schema}', $1)"),
        }
    }
}
