//! TLS to PostgreSQL, asked of a real one. Without one on the machine these tests
//! say so and do nothing.

use std::{fs, sync::OnceLock};

use longrunning::{NewOperation, Operations, PostgresJournal, PostgresOptions};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    postgres::MINUTE,
    support::{
        certificates::Authority,
        postgres::{Postgres, schema},
    },
};

/// Who may come how. All names but these are `hostssl` only.
const WHO: &str = "
local     all all                    trust
hostnossl all plain     127.0.0.1/32 trust
hostssl   all scram     127.0.0.1/32 scram-sha-256
hostssl   all certified 127.0.0.1/32 cert
hostssl   all test      127.0.0.1/32 trust
hostssl   all watched   127.0.0.1/32 trust
";

/// A server whose certificate is for `db.internal`, and files of its clients.
struct Secure {
    postgres: Postgres,
    files: TempDir,
}

/// The server that these tests share; none without PostgreSQL, which is said.
fn secure() -> Option<&'static Secure> {
    static SHARED: OnceLock<Option<Secure>> = OnceLock::new();
    SHARED.get_or_init(Secure::start).as_ref()
}

impl Secure {
    fn start() -> Option<Self> {
        let (ours, other) = (Authority::new("ours"), Authority::new("other"));
        let server = ours.issue("db", &["db.internal"]);
        let files = [
            ("server.crt", server.certificate.as_str()),
            ("server.key", &server.key),
            ("ca.crt", &ours.certificate()),
            ("pg_hba.conf", WHO),
        ];
        let settings = ["ssl=on", "ssl_ca_file=ca.crt", "fsync=off"];
        let postgres = Postgres::start_with(&settings, &files)?;
        postgres.ask(
            "CREATE ROLE plain SUPERUSER LOGIN; CREATE ROLE certified SUPERUSER LOGIN;
             CREATE ROLE watched SUPERUSER LOGIN; CREATE ROLE scram SUPERUSER LOGIN PASSWORD 'secret'",
        );
        let (client, stranger) = (ours.issue("certified", &[]), other.issue("certified", &[]));
        let files = TempDir::new().unwrap();
        let write = |name: &str, text: &str| fs::write(files.path().join(name), text).unwrap();
        write("ours.pem", &ours.certificate());
        write("other.pem", &other.certificate());
        write("empty.pem", "nothing\n");
        write("client.pem", &client.certificate);
        write("client.key", &client.key);
        write("stranger.pem", &stranger.certificate);
        write("stranger.key", &stranger.key);
        Some(Self { postgres, files })
    }

    /// A schema of its own. `@` in the parameters stands for the directory of files.
    fn options(&self, user: &str, host: &str, parameters: &str) -> PostgresOptions {
        let files = self.files.path().display().to_string();
        let (port, parameters) = (self.postgres.port(), parameters.replace('@', &files));
        options(format!(
            "postgres://{user}@{host}:{port}/postgres?hostaddr=127.0.0.1&{parameters}"
        ))
    }
}

fn options(url: String) -> PostgresOptions {
    let mut options = PostgresOptions::new(url);
    options.schema = format!("test_{}", uuid::Uuid::new_v4().simple());
    options
}

/// A server that has kept an operation.
async fn works(options: &PostgresOptions) -> Operations {
    let journal = PostgresJournal::open(options).await.unwrap();
    let operations = Operations::builder()
        .journal(journal)
        .start()
        .await
        .unwrap();
    operations
        .create(NewOperation::queued("jobs"))
        .await
        .unwrap();
    operations
}

/// Why a server does not start.
async fn refusal(options: &PostgresOptions) -> String {
    let error = PostgresJournal::open(options)
        .await
        .unwrap_err()
        .to_string();
    assert!(!error.contains("secret"), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mode_takes_the_servers_that_it_should() {
    let Some(secure) = secure() else { return };
    let taken = [
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
    for (host, parameters) in taken {
        works(&secure.options("test", host, parameters))
            .await
            .close()
            .await;
    }
    let files = secure.files.path().display();
    works(&options(format!(
        "host=db.internal hostaddr=127.0.0.1 port={} user=test dbname=postgres sslmode = verify-full \
         sslrootcert='{files}/ours.pem'",
        secure.postgres.port()
    )))
    .await;
}

#[tokio::test]
async fn a_server_that_may_be_another_is_refused_in_clear_words() {
    let Some(secure) = secure() else { return };
    let refused = [
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
            vec!["the database says: no pg_hba.conf entry", "no encryption"],
        ),
    ];
    for (host, parameters, words) in refused {
        let error = refusal(&secure.options("test:secret", host, parameters)).await;
        for words in words {
            assert!(error.contains(words), "{parameters}: {error}");
        }
    }
}

// A machine has authorities, or it has none; neither has issued this.
#[tokio::test]
async fn a_server_that_no_authority_of_the_system_knows_is_refused() {
    let Some(secure) = secure() else { return };
    for parameters in ["sslmode=verify-full", "sslrootcert=system"] {
        let error = refusal(&secure.options("test", "db.internal", parameters)).await;
        let has_none = error.contains("this system has no certificates");
        assert!(has_none || error.contains("this system trusts"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_connections_of_a_server_use_tls() {
    let Some(secure) = secure() else { return };
    let _operations = works(&secure.options("watched", "db.internal", "sslmode=require")).await;
    let question = "SELECT count(*) || ' ' || count(*) FILTER (WHERE ssl) FROM pg_stat_ssl
        JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'longrunning' AND usename = 'watched'";
    // The one that listens may come last.
    let all = async {
        while secure.postgres.ask(question) != "5 5" {
            tokio::task::yield_now().await;
        }
    };
    timeout(MINUTE, all).await.expect("all five use it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefer_goes_on_without_tls_where_there_is_none_and_require_does_not() {
    let Some(none) = schema() else { return };
    let with = |parameters: &str| PostgresOptions {
        url: format!("{}?{parameters}", none.url),
        ..none.clone()
    };
    works(&with("sslmode=prefer")).await.close().await;
    for mode in ["require", "verify-full"] {
        let error = refusal(&with(&format!("sslmode={mode}"))).await;
        assert!(error.contains("the server does not support TLS"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefer_goes_on_without_tls_where_who_comes_with_it_is_let_in_by_nobody() {
    let Some(secure) = secure() else { return };
    works(&secure.options("plain", "db.internal", "sslmode=prefer"))
        .await
        .close()
        .await;
    let error = refusal(&secure.options("plain", "db.internal", "sslmode=require")).await;
    assert!(error.contains("SSL encryption"), "{error}");
    let error = refusal(&secure.options("nobody", "db.internal", "sslmode=prefer")).await;
    assert!(error.contains("; and without TLS: "), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_bound_to_the_channel() {
    let Some(secure) = secure() else { return };
    let bound = "sslmode=require&channel_binding=require&password=secret";
    works(&secure.options("scram", "db.internal", bound))
        .await
        .close()
        .await;
    let error = refusal(&secure.options("scram:secret-1", "db.internal", "sslmode=require")).await;
    assert!(error.contains("password authentication failed"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_our_own_opens_the_door_instead_of_a_password() {
    let Some(secure) = secure() else { return };
    let certified = |parameters: &str| {
        let parameters = format!("sslmode=verify-full&sslrootcert=@/ours.pem&{parameters}");
        secure.options("certified", "db.internal", &parameters)
    };
    works(&certified("sslcert=@/client.pem&sslkey=@/client.key"))
        .await
        .close()
        .await;
    let refused = [
        ("", "valid client certificate"),
        ("sslcert=@/client.pem", "one is missing"),
        (
            "sslcert=@/client.pem&sslkey=@/ours.pem",
            "/ours.pem has no private key",
        ),
        (
            "sslcert=@/client.pem&sslkey=@/stranger.key",
            "of no use together",
        ),
        (
            "sslcert=@/missing.pem&sslkey=@/client.key",
            "/missing.pem cannot be read",
        ),
        (
            "sslcert=@/stranger.pem&sslkey=@/stranger.key",
            "not accept the certificate in",
        ),
    ];
    for (parameters, words) in refused {
        let error = refusal(&certified(parameters)).await;
        assert!(error.contains(words), "{parameters}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_socket_there_is_no_tls_whatever_the_mode() {
    let Some(secure) = secure() else { return };
    let socket = secure
        .postgres
        .socket()
        .display()
        .to_string()
        .replace('/', "%2F");
    let port = secure.postgres.port();
    let url =
        format!("postgres://test@{socket}:{port}/postgres?sslmode=verify-full&sslrootcert=system");
    works(&options(url)).await;
}

#[tokio::test]
async fn the_connection_that_listens_has_parameters_of_its_own() {
    let Some(secure) = secure() else { return };
    let mut options = secure.options("test", "db.internal", "sslmode=require");
    let missing = "sslmode=verify-full&sslrootcert=@/missing.pem";
    options.listen_url = Some(secure.options("test", "db.internal", missing).url);
    let error = refusal(&options).await;
    assert!(error.contains("/missing.pem cannot be read"), "{error}");
}
