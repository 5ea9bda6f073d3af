//! A private PostgreSQL, made of the machine's own binaries, that ends with the
//! process. `LONGRUNNING_TEST_POSTGRES_BIN` says where these are if they are
//! neither on the path nor where Debian puts them.

use std::{
    env, fs,
    io::{self, Write},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
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

/// Says once what is skipped, and why; in CI nothing may be.
pub(super) fn skip(said: &'static Once, what: &str) {
    assert!(env::var_os("CI").is_none(), "{what} on this machine");
    // Not by a macro, whose words a test that passes keeps to itself.
    said.call_once(|| {
        let words = format!("SKIPPED: {what} on this machine\n");
        io::stderr().write_all(words.as_bytes()).unwrap();
    });
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

/// Makes this a thing of the one who runs the server.
pub(super) fn give(path: &Path) {
    if let Some((uid, gid)) = user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What the program says.
fn succeed(command: &mut Command) -> Vec<u8> {
    let ended = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{complaint}");
    ended.stdout
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
            static SAID: Once = Once::new();
            skip(&SAID, "what needs PostgreSQL: no initdb and postgres");
            return None;
        };
        let mut server = Self::empty(bin, settings);
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
        succeed(&mut init);
        for (name, content) in files {
            let file = server.data().join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            give(&file);
        }
        server.begin();
        Some(server)
    }

    /// Another server that takes over what this one commits, before this one answers.
    pub(crate) fn standby(&self) -> Self {
        let settings: Vec<_> = self.settings.iter().map(String::as_str).collect();
        let mut standby = Self::empty(self.bin.clone(), &settings);
        let mut copy = standby.command("pg_basebackup");
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .arg("--pgdata")
            .arg(standby.data())
            .args(["--dbname", &self.url()]);
        succeed(&mut copy);
        standby.begin();
        self.ask("ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.ask("SELECT pg_reload_conf()");
        let state = "SELECT sync_state FROM pg_stat_replication";
        assert!((0..1000).any(|_| self.ask(state) == "sync"), "it follows");
        standby
    }

    /// One that has nothing yet.
    fn empty(bin: PathBuf, settings: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        give(directory.path());
        Self {
            bin,
            directory,
            port: free_port(),
            settings: settings.iter().map(ToString::to_string).collect(),
            running: None,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://test@127.0.0.1:{}/postgres", self.port)
    }

    /// What the server answers to a question, as text.
    pub(crate) fn ask(&self, question: &str) -> String {
        let mut ask = self.command("psql");
        ask.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", question])
            .arg(self.url());
        String::from_utf8(succeed(&mut ask))
            .unwrap()
            .trim()
            .to_owned()
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

    /// A program that is ended when its input ends, however this process does.
    pub(super) fn lasting(&self, program: &Path) -> Command {
        // The shell outlives this process by as much as it takes to stop the program.
        let script = "\"$@\" & program=$!; cat; kill -INT $program 2>/dev/null; wait $program";
        let mut shell = self.command_of(Path::new("sh"));
        shell.args(["-c", script, "sh"]).arg(program);
        shell.stdin(Stdio::piped()).stdout(Stdio::null());
        shell
    }

    /// Starts the server, and returns when it answers.
    pub(crate) fn begin(&mut self) {
        let mut shell = self.lasting(&self.bin.join("postgres"));
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
        let mut child = shell.stderr(log).spawn().unwrap();
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
