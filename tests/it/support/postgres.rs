//! A private PostgreSQL, made of the machine's own binaries, that ends with the
//! process. `LONGRUNNING_TEST_POSTGRES_BIN` says where these are if they are
//! neither on the path nor where Debian puts them.

use std::{
    env, fs,
    io::{self, Write},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Once, OnceLock},
};

use longrunning::{PostgresJournal, PostgresOptions};
use tempfile::TempDir;

use super::stores::POSTGRES;

/// A database server over a directory of its own.
pub(crate) struct Postgres {
    bin: PathBuf,
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
    /// Runs while it does; it is stopped when this input ends.
    running: Option<(Child, ChildStdin)>,
}

/// The schema of a test in the server that all tests share; none without
/// PostgreSQL, which is said.
pub(crate) fn schema() -> Option<PostgresOptions> {
    static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
    // `over_stores` has started one for this process.
    let url = match env::var(POSTGRES) {
        Ok(url) => url,
        Err(_) => SHARED
            .get_or_init(|| Postgres::start(&["fsync=off"]))
            .as_ref()?
            .url(),
    };
    let mut options = PostgresOptions::new(url);
    options.schema = format!("test_{}", uuid::Uuid::new_v4().simple());
    Some(options)
}

/// A journal in a schema of its own.
pub(crate) async fn journal(options: &PostgresOptions) -> PostgresJournal {
    PostgresJournal::open(options).await.unwrap()
}

/// Where the programs of PostgreSQL are.
fn bin() -> Option<PathBuf> {
    if let Some(bin) = env::var_os("LONGRUNNING_TEST_POSTGRES_BIN") {
        return Some(bin.into());
    }
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut debian: Vec<_> = debian
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    debian.sort();
    let path = env::var_os("PATH").unwrap_or_default();
    let mut all = debian.into_iter().rev().chain(env::split_paths(&path));
    all.find(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
}

/// Who may run a database server: not root, for which `postgres` or `nobody` does.
fn user() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").ok()?.uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let of = |name: &str| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    of("postgres").or_else(|| of("nobody"))
}

// === impl Postgres ===

impl Postgres {
    /// Makes a server, and starts it with these settings; none without PostgreSQL,
    /// which is said, unless CI runs, where it must be there.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        Self::start_with(settings, &[])
    }

    /// The same, with these files among its data, which nobody else may read.
    pub(crate) fn start_with(settings: &[&str], files: &[(&str, &str)]) -> Option<Self> {
        let Some(bin) = bin() else {
            assert!(env::var_os("CI").is_none(), "there is no PostgreSQL");
            // Not by a macro, whose words a test that passes keeps to itself.
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                let words =
                    b"SKIPPED: what needs PostgreSQL: no initdb and postgres on this machine\n";
                io::stderr().write_all(words).unwrap();
            });
            return None;
        };
        let directory = TempDir::new().unwrap();
        let user = user();
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut server = Self {
            bin,
            directory,
            port,
            settings: settings.iter().map(ToString::to_string).collect(),
            running: None,
        };
        let data = server.data();
        let mut init = server.command("initdb");
        init.args([
            "--auth=trust",
            "--no-sync",
            "--username=test",
            "--encoding=UTF8",
            "--no-locale",
        ])
        .arg("--pgdata")
        .arg(&data);
        let made = init.output().unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        for (name, content) in files {
            let file = server.data().join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            if let Some((uid, gid)) = user {
                std::os::unix::fs::chown(&file, Some(uid), Some(gid)).unwrap();
            }
        }
        server.begin();
        Some(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://test@127.0.0.1:{}/postgres", self.port)
    }

    /// What the server answers to a question, as text.
    pub(crate) fn ask(&self, question: &str) -> String {
        let mut ask = self.command("psql");
        ask.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", question])
            .arg(self.url());
        let answer = ask.output().unwrap();
        assert!(
            answer.status.success(),
            "{}",
            String::from_utf8_lossy(&answer.stderr)
        );
        String::from_utf8(answer.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where its Unix socket is.
    pub(crate) fn socket(&self) -> &Path {
        self.directory.path()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        self.command_of(&self.bin.join(program))
    }

    fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // psql would look for certificates at somebody's home.
        command
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path());
        if let Some((uid, gid)) = user() {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Starts the server, and returns when it answers.
    pub(crate) fn begin(&mut self) {
        // The shell outlives this process by as much as it takes to stop the server,
        // however this process ends.
        let script = "\"$@\" & server=$!; cat; kill -INT $server 2>/dev/null; wait $server";
        let mut shell = self.command_of(Path::new("sh"));
        shell
            .args(["-c", script, "sh"])
            .arg(self.bin.join("postgres"));
        shell
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.directory.path());
        shell.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        let settings = [
            "max_connections=400",
            "shared_buffers=64MB",
            "log_min_messages=fatal",
        ];
        let settings = settings.into_iter().map(ToOwned::to_owned);
        for setting in settings.chain(self.settings.iter().cloned()) {
            shell.args(["-c", &setting]);
        }
        let log = fs::File::create(self.directory.path().join("log")).unwrap();
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        let mut child = shell.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        self.running = Some((child, input));
        loop {
            let mut ask = self.command("pg_isready");
            ask.args([
                "-q",
                "-t",
                "1",
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
            ]);
            if ask.status().unwrap().success() {
                return;
            }
            let (child, _) = self.running.as_mut().unwrap();
            assert!(
                child.try_wait().unwrap().is_none(),
                "PostgreSQL ended: {}",
                fs::read_to_string(self.directory.path().join("log")).unwrap()
            );
        }
    }

    /// Ends the server: with its data in order, or as if the power had gone.
    pub(crate) fn end(&mut self, is_crash: bool) {
        let Some((mut child, input)) = self.running.take() else {
            return;
        };
        if is_crash {
            let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
            let process = file.lines().next().unwrap();
            Command::new("kill")
                .args(["-QUIT", process])
                .status()
                .unwrap();
        }
        drop(input);
        child.wait().unwrap();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end(false);
    }
}
