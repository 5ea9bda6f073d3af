//! The statements, for the schema that holds the tables.

/// The statements of one journal. Every name is written out with its schema, so
/// that no session has to be told where to look: a pooler may give each
/// statement another one.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) commit: String,
    pub(super) can_write: String,
    pub(super) others: String,
    pub(super) news: String,
    pub(super) numbered: String,
    pub(super) named: String,
    pub(super) replay: String,
    pub(super) older: String,
    pub(super) older_everywhere: String,
    pub(super) expire: String,
    pub(super) trim: String,
    pub(super) version: String,
    pub(super) find: String,
    pub(super) make: String,
    pub(super) mend: String,
    pub(super) listen: String,
    pub(super) notify: String,
}

/// A name that means the same with quotes and without, if it is no word of SQL.
pub(super) fn is_plain(schema: &str) -> bool {
    let mut letters = schema.bytes();
    letters
        .next()
        .is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
        && letters
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'_')
        && schema.len() < 64
}

// === impl Sql ===

impl Sql {
    /// The statements for a schema, whose name [`is_plain`].
    pub(super) fn new(schema: &str) -> Self {
        // In quotes, because it may be a word of SQL.
        let own = |text: &str| text.replace("longrunning", &format!("\"{schema}\""));
        let make = include_str!("schema.sql");
        let older = include_str!("older.sql");
        // As much as a view shows: what is not done, and the newest of what is.
        let shown = "SELECT number, revision, renewed_until, record FROM longrunning.operations WHERE NOT is_done
             UNION ALL (SELECT number, revision, renewed_until, record FROM longrunning.operations WHERE is_done
               ORDER BY number DESC LIMIT $1)";
        Self {
            commit: own(include_str!("commit.sql")),
            can_write: own(
                "SELECT current_setting('transaction_read_only') = 'off' AND least <= $1
                 FROM longrunning.meta",
            ),
            others: own("SELECT number, revision, renewed_until, record, name, request FROM longrunning.operations
                 WHERE number = ANY($1) OR name = ANY($2) OR request = ANY($3)"),
            news: own(include_str!("news.sql")),
            numbered: own("SELECT given.number, revision, renewed_until, record
                 FROM unnest($1::bigint[]) AS given (number)
                   LEFT JOIN longrunning.operations ON operations.number = given.number"),
            named: own("SELECT number, revision, renewed_until, record
                 FROM longrunning.operations WHERE name = $1"),
            replay: own(shown),
            older: own(older),
            older_everywhere: own(&older.replace(" AND parent = $2", "").replace("$3", "$2")),
            expire: own(include_str!("expire.sql")),
            trim: own(include_str!("trim.sql")),
            version: own("SELECT version, least FROM longrunning.meta"),
            find: own("SELECT to_regclass('longrunning.meta') IS NOT NULL"),
            make: own(&format!(
                "BEGIN; SELECT pg_advisory_xact_lock(hashtext('longrunning'));
                 DO $do$ BEGIN IF to_regclass('longrunning.meta') IS NULL THEN {make} END IF; END $do$;
                 COMMIT"
            )),
            mend: own(include_str!("mend.sql")),
            listen: own("LISTEN longrunning"),
            notify: format!("SELECT pg_notify('{schema}', $1)"),
        }
    }
}
