//! TLS connections to a real PostgreSQL. Skipped with a notice if it is not installed.

use std::{fs, sync::OnceLock};

use longrunning::{NewOperation, Operations, PostgresConfig, PostgresStorage};
use tempfile::TempDir;
use tokio::time::timeout;

use super::MINUTE;
use crate::support::{
    certificates::CertificateAuthority,
    postgres::{PostgresServer, new_schema, test_config},
};

/// Authentication rules: only `plain` may connect without TLS.
const PG_HBA_CONF: &str = "
local     all all                    trust
hostnossl all plain     127.0.0.1/32 trust
hostssl   all scram     127.0.0.1/32 scram-sha-256
hostssl   all certified 127.0.0.1/32 cert
hostssl   all test      127.0.0.1/32 trust
hostssl   all watched   127.0.0.1/32 trust
";

/// A PostgreSQL server with a certificate for `db.internal`, and files for its clients.
struct TlsPostgres {
    server: PostgresServer,
    files: TempDir,
}

/// Returns the server shared by these tests, or `None` if PostgreSQL is not installed.
fn shared_tls_postgres() -> Option<&'static TlsPostgres> {
    static SHARED: OnceLock<Option<TlsPostgres>> = OnceLock::new();
    SHARED.get_or_init(TlsPostgres::start).as_ref()
}

// === impl TlsPostgres ===

impl TlsPostgres {
    fn start() -> Option<Self> {
        let (trusted, untrusted) = (
            CertificateAuthority::new("ours"),
            CertificateAuthority::new("other"),
        );
        let server = trusted.issue("db", &["db.internal"]);
        let files = [
            ("server.crt", server.certificate.as_str()),
            ("server.key", &server.key),
            ("ca.crt", &trusted.certificate()),
            ("pg_hba.conf", PG_HBA_CONF),
        ];
        let settings = ["ssl=on", "ssl_ca_file=ca.crt", "fsync=off"];
        let postgres = PostgresServer::start_with_files(&settings, &files)?;
        postgres.query(
            "CREATE ROLE plain SUPERUSER LOGIN; CREATE ROLE certified SUPERUSER LOGIN;
             CREATE ROLE watched SUPERUSER LOGIN; CREATE ROLE scram SUPERUSER LOGIN PASSWORD 'secret'",
        );
        let (client, untrusted_client) = (
            trusted.issue("certified", &[]),
            untrusted.issue("certified", &[]),
        );
        let files = TempDir::new().unwrap();
        let write = |name: &str, text: &str| fs::write(files.path().join(name), text).unwrap();
        write("ours.pem", &trusted.certificate());
        write("other.pem", &untrusted.certificate());
        write("empty.pem", "nothing\n");
        write("client.pem", &client.certificate);
        write("client.key", &client.key);
        write("stranger.pem", &untrusted_client.certificate);
        write("stranger.key", &untrusted_client.key);
        Some(Self {
            server: postgres,
            files,
        })
    }

    /// Returns a config with a new schema. `@` in `parameters` stands for the directory of
    /// client files.
    fn config(&self, user: &str, host: &str, parameters: &str) -> PostgresConfig {
        let files = self.files.path().display().to_string();
        let (port, parameters) = (self.server.port(), parameters.replace('@', &files));
        new_schema(format!(
            "postgres://{user}@{host}:{port}/postgres?hostaddr=127.0.0.1&{parameters}"
        ))
    }
}

/// Starts a server and creates an operation.
async fn start_and_create(config: &PostgresConfig) -> Operations {
    let storage = PostgresStorage::open(config).await.unwrap();
    let operations = Operations::builder()
        .storage(storage)
        .start()
        .await
        .unwrap();
    operations
        .create(NewOperation::queued("jobs"))
        .await
        .unwrap();
    operations
}

/// Returns why the storage cannot be opened; panics if it can.
async fn open_error(config: &PostgresConfig) -> String {
    let error = PostgresStorage::open(config).await.unwrap_err().to_string();
    assert!(!error.contains("secret"), "{error}");
    error
}

// Rules: TLS-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sslmode_accepts_expected_servers() {
    let Some(tls_postgres) = shared_tls_postgres() else {
        return;
    };
    let accepted = [
        ("db.internal", "sslmode=prefer"),
        ("db.internal", ""),
        ("elsewhere", "sslmode=require"),
        ("elsewhere", "sslmode=require&sslrootcert=@/ours.pem"),
        ("elsewhere", "sslmode=verify-ca&sslrootcert=@/ours.pem"),
        (
            "db.internal",
            "sslmode=verify-full&sslrootcert=@%2Fours.pem",
        ),
    ];
    for (host, parameters) in accepted {
        start_and_create(&tls_postgres.config("test", host, parameters))
            .await
            .close()
            .await;
    }
    let files = tls_postgres.files.path().display();
    start_and_create(&new_schema(format!(
        "host=db.internal hostaddr=127.0.0.1 port={} user=test dbname=postgres sslmode = verify-full \
         sslrootcert='{files}/ours.pem'",
        tls_postgres.server.port()
    )))
    .await;
}

// Rules: TLS-2
#[tokio::test]
async fn untrusted_server_is_rejected_with_clear_message() {
    let Some(tls_postgres) = shared_tls_postgres() else {
        return;
    };
    let rejected = [
        (
            "elsewhere",
            "sslmode=verify-full&sslrootcert=@/ours.pem",
            vec![
                "for another name",
                "\"elsewhere\"",
                "db.internal",
                "verify-ca",
            ],
        ),
        (
            "db.internal",
            "sslmode=verify-full&sslrootcert=@/other.pem",
            vec!["not trusted", "/other.pem"],
        ),
        (
            "db.internal",
            "sslmode=verify-ca&sslrootcert=@/other.pem",
            vec!["not trusted", "/other.pem"],
        ),
        (
            "db.internal",
            "sslmode=require&sslrootcert=@/other.pem",
            vec!["not trusted", "/other.pem"],
        ),
        (
            "db.internal",
            "sslmode=verify-full&sslrootcert=@/missing.pem",
            vec!["/missing.pem cannot be read", "No such file"],
        ),
        (
            "db.internal",
            "sslmode=verify-full&sslrootcert=@/empty.pem",
            vec!["/empty.pem has no certificate"],
        ),
        (
            "db.internal",
            "sslmode=verify_full",
            vec!["sslmode=\"verify_full\" is unknown"],
        ),
        (
            "db.internal",
            "sslmode=disable",
            vec!["database error: no pg_hba.conf entry", "no encryption"],
        ),
    ];
    for (host, parameters, messages) in rejected {
        let error = open_error(&tls_postgres.config("test:secret", host, parameters)).await;
        for message in messages {
            assert!(error.contains(message), "{parameters}: {error}");
        }
    }
}

// The system may or may not have root certificates; none of them issued this one.
// Rules: TLS-2
#[tokio::test]
async fn server_unknown_to_system_authorities_is_rejected() {
    let Some(tls_postgres) = shared_tls_postgres() else {
        return;
    };
    for parameters in ["sslmode=verify-full", "sslrootcert=system"] {
        let error = open_error(&tls_postgres.config("test", "db.internal", parameters)).await;
        let has_no_system_roots = error.contains("this system has no certificates");
        assert!(
            has_no_system_roots || error.contains("this system trusts"),
            "{error}"
        );
    }
}

// Rules: TLS-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_connections_of_server_use_tls() {
    let Some(tls_postgres) = shared_tls_postgres() else {
        return;
    };
    let _operations =
        start_and_create(&tls_postgres.config("watched", "db.internal", "sslmode=require")).await;
    let session_query = "SELECT count(*) || ' ' || count(*) FILTER (WHERE ssl) FROM pg_stat_ssl
        JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'longrunning' AND usename = 'watched'";
    // The LISTEN connection may open last.
    let all_sessions_use_tls = async {
        while tls_postgres.server.query(session_query) != "5 5" {
            tokio::task::yield_now().await;
        }
    };
    timeout(MINUTE, all_sessions_use_tls)
        .await
        .expect("expected all five connections to use TLS");
}

// Rules: TLS-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefer_falls_back_to_plaintext_and_require_does_not() {
    let Some(plaintext) = test_config() else {
        return;
    };
    let with_parameters = |parameters: &str| {
        PostgresConfig::new(format!("{}?{parameters}", plaintext.url))
            .with_schema(&plaintext.schema)
    };
    start_and_create(&with_parameters("sslmode=prefer"))
        .await
        .close()
        .await;
    for mode in ["require", "verify-full"] {
        let error = open_error(&with_parameters(&format!("sslmode={mode}"))).await;
        assert!(error.contains("the server does not support TLS"), "{error}");
    }
}

// Rules: TLS-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefer_falls_back_when_pg_hba_rejects_tls() {
    let Some(tls_postgres) = shared_tls_postgres() else {
        return;
    };
    start_and_create(&tls_postgres.config("plain", "db.internal", "sslmode=prefer"))
        .await
        .close()
        .await;
    let error = open_error(&tls_postgres.config("plain", "db.internal", "sslmode=require")).await;
    assert!(error.contains("SSL encryption"), "{error}");
    let error = open_error(&tls_postgres.config("nobody", "db.internal", "sslmode=prefer")).await;
    assert!(error.contains("; without TLS: "), "{error}");
}

// Rules: TLS-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_authentication_uses_channel_binding() {
    let Some(tls_postgres) = shared_tls_postgres() else {
        return;
    };
    let bound = "sslmode=require&channel_binding=require&password=secret";
    start_and_create(&tls_postgres.config("scram", "db.internal", bound))
        .await
        .close()
        .await;
    let error =
        open_error(&tls_postgres.config("scram:secret-1", "db.internal", "sslmode=require")).await;
    assert!(error.contains("password authentication failed"), "{error}");
}

// Rules: TLS-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificate_authenticates_without_password() {
    let Some(tls_postgres) = shared_tls_postgres() else {
        return;
    };
    let certificate_config = |parameters: &str| {
        let parameters = format!("sslmode=verify-full&sslrootcert=@/ours.pem&{parameters}");
        tls_postgres.config("certified", "db.internal", &parameters)
    };
    start_and_create(&certificate_config(
        "sslcert=@/client.pem&sslkey=@/client.key",
    ))
    .await
    .close()
    .await;
    let rejected = [
        ("", "valid client certificate"),
        ("sslcert=@/client.pem", "one is missing"),
        (
            "sslcert=@/client.pem&sslkey=@/ours.pem",
            "/ours.pem has no private key",
        ),
        ("sslcert=@/client.pem&sslkey=@/stranger.key", "do not match"),
        (
            "sslcert=@/missing.pem&sslkey=@/client.key",
            "/missing.pem cannot be read",
        ),
        (
            "sslcert=@/stranger.pem&sslkey=@/stranger.key",
            "rejected the certificate in",
        ),
    ];
    for (parameters, message) in rejected {
        let error = open_error(&certificate_config(parameters)).await;
        assert!(error.contains(message), "{parameters}: {error}");
    }
}

// Rules: TLS-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket_never_uses_tls() {
    let Some(tls_postgres) = shared_tls_postgres() else {
        return;
    };
    let socket = tls_postgres
        .server
        .socket_dir()
        .display()
        .to_string()
        .replace('/', "%2F");
    let port = tls_postgres.server.port();
    let url =
        format!("postgres://test@{socket}:{port}/postgres?sslmode=verify-full&sslrootcert=system");
    start_and_create(&new_schema(url)).await;
}

// Rules: TLS-1
#[tokio::test]
async fn notify_url_has_its_own_tls_parameters() {
    let Some(tls_postgres) = shared_tls_postgres() else {
        return;
    };
    let mut config = tls_postgres.config("test", "db.internal", "sslmode=require");
    let missing = "sslmode=verify-full&sslrootcert=@/missing.pem";
    config.notify_url = Some(tls_postgres.config("test", "db.internal", missing).url);
    let error = open_error(&config).await;
    assert!(error.contains("/missing.pem cannot be read"), "{error}");
}
