//! Runs private PostgreSQL servers from the installed binaries.
//! `LONGRUNNING_TEST_POSTGRES_BIN` names their directory if they are neither on the
//! path nor where Debian installs them.

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

use longrunning::{PostgresConfig, PostgresStorage};
use tempfile::TempDir;

use super::backend::POSTGRES_URL_ENV;

/// A PostgreSQL server with its own data directory. Stops when dropped or when this
/// process exits.
pub(crate) struct PostgresServer {
    bin_dir: PathBuf,
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
    /// The supervising shell, which stops the server when its standard input is closed.
    process: Option<(Child, ChildStdin)>,
}

/// Returns a new schema in the server shared by all tests, or prints a notice and
/// returns `None` if PostgreSQL is not installed.
pub(crate) fn test_config() -> Option<PostgresConfig> {
    static SHARED: OnceLock<Option<PostgresServer>> = OnceLock::new();
    // Set by the backend matrix, which has started a server.
    let url = match env::var(POSTGRES_URL_ENV) {
        Ok(url) => url,
        Err(_) => SHARED
            .get_or_init(|| PostgresServer::start(&["fsync=off"]))
            .as_ref()?
            .url(),
    };
    Some(new_schema(url))
}

/// Returns a config with a new, unique schema name.
pub(crate) fn new_schema(url: impl Into<String>) -> PostgresConfig {
    let mut config = PostgresConfig::new(url);
    config.schema = format!("test_{}", uuid::Uuid::new_v4().simple());
    config
}

/// Opens a storage, and creates its schema if needed.
pub(crate) async fn open_storage(config: &PostgresConfig) -> PostgresStorage {
    PostgresStorage::open(config).await.unwrap()
}

/// Returns the directory of the PostgreSQL programs, the newest version first.
fn postgres_bin_dir() -> Option<PathBuf> {
    if let Some(bin) = env::var_os("LONGRUNNING_TEST_POSTGRES_BIN") {
        return Some(bin.into());
    }
    let debian_dirs = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut debian_dirs: Vec<_> = debian_dirs
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    debian_dirs.sort();
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories = debian_dirs.into_iter().rev().chain(env::split_paths(&path));
    directories.find(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
}

/// Prints once which tests are skipped and why; panics under CI, where none may be.
pub(super) fn skip(notice: &'static Once, skipped: &str) {
    assert!(env::var_os("CI").is_none(), "{skipped}");
    // Not `eprintln!`, whose output is captured while a test passes.
    notice.call_once(|| {
        let message = format!("SKIPPED: {skipped}\n");
        io::stderr().write_all(message.as_bytes()).unwrap();
    });
}

/// Returns uid and gid for the server if this process is root, because PostgreSQL
/// refuses to run as root: those of `postgres` or `nobody`.
fn server_user() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").ok()?.uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let ids_of = |name: &str| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    ids_of("postgres").or_else(|| ids_of("nobody"))
}

/// Makes the server user the owner of a path.
pub(super) fn give_to_server_user(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// Returns a port that no socket uses. It lies below the ephemeral ports, so that no outgoing
/// connection takes it while the server that has it is down.
pub(crate) fn free_port() -> u16 {
    loop {
        let [high, low, ..] = *uuid::Uuid::new_v4().as_bytes();
        let port = 20_000 + u16::from_be_bytes([high, low]) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Runs a program and returns its standard output; panics if it fails.
fn run_successfully(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    output.stdout
}

// === impl PostgresServer ===

impl PostgresServer {
    /// Starts a new server with the given settings, or prints a notice and returns `None`
    /// if PostgreSQL is not installed. Panics under CI in that case.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        Self::start_with_files(settings, &[])
    }

    /// Like [`Self::start`], with additional files (mode 0600) in the data directory.
    pub(crate) fn start_with_files(settings: &[&str], files: &[(&str, &str)]) -> Option<Self> {
        let Some(bin) = postgres_bin_dir() else {
            static SKIP_NOTICE: Once = Once::new();
            skip(
                &SKIP_NOTICE,
                "tests that need PostgreSQL: it is not installed",
            );
            return None;
        };
        let mut server = Self::unstarted(bin, settings);
        let data = server.data_dir();
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
        run_successfully(&mut init);
        for (name, content) in files {
            let file = server.data_dir().join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            give_to_server_user(&file);
        }
        server.start_process();
        Some(server)
    }

    /// Starts a synchronous standby of this server.
    pub(crate) fn start_standby(&self) -> Self {
        let settings: Vec<_> = self.settings.iter().map(String::as_str).collect();
        let mut standby = Self::unstarted(self.bin_dir.clone(), &settings);
        let mut backup = standby.command("pg_basebackup");
        backup
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .arg("--pgdata")
            .arg(standby.data_dir())
            .args(["--dbname", &self.url()]);
        run_successfully(&mut backup);
        standby.start_process();
        self.query("ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.query("SELECT pg_reload_conf()");
        let sync_state_query = "SELECT sync_state FROM pg_stat_replication";
        assert!(
            (0..1000).any(|_| self.query(sync_state_query) == "sync"),
            "expected a synchronous standby"
        );
        standby
    }

    fn unstarted(bin_dir: PathBuf, settings: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        give_to_server_user(directory.path());
        Self {
            bin_dir,
            directory,
            port: free_port(),
            settings: settings.iter().map(ToString::to_string).collect(),
            process: None,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://test@127.0.0.1:{}/postgres", self.port)
    }

    /// Runs a query and returns its result as unaligned text.
    pub(crate) fn query(&self, sql: &str) -> String {
        let mut psql = self.command("psql");
        psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .arg(self.url());
        String::from_utf8(run_successfully(&mut psql))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the directory of the Unix socket.
    pub(crate) fn socket_dir(&self) -> &Path {
        self.directory.path()
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        self.command_at(&self.bin_dir.join(program))
    }

    fn command_at(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Otherwise psql looks for certificates in the user's home directory.
        command
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path());
        if let Some((uid, gid)) = server_user() {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Builds a command that runs `program` until its standard input is closed, which
    /// also happens when this process is killed.
    pub(super) fn supervised_command(&self, program: &Path) -> Command {
        // The shell outlives this process until it has stopped the program.
        let script = "\"$@\" & program=$!; cat; kill -INT $program 2>/dev/null; wait $program";
        let mut shell = self.command_at(Path::new("sh"));
        shell.args(["-c", script, "sh"]).arg(program);
        shell.stdin(Stdio::piped()).stdout(Stdio::null());
        shell
    }

    /// Starts the server process and waits until it accepts connections.
    pub(crate) fn start_process(&mut self) {
        let mut shell = self.supervised_command(&self.bin_dir.join("postgres"));
        shell
            .arg("-D")
            .arg(self.data_dir())
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
        self.process = Some((child, input));
        loop {
            let mut pg_isready = self.command("pg_isready");
            pg_isready.args([
                "-q",
                "-t",
                "1",
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
            ]);
            if pg_isready.status().unwrap().success() {
                return;
            }
            // The shell waits for its input, also if PostgreSQL has ended.
            let (child, _) = self.process.as_mut().unwrap();
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap();
            let has_ended = child.try_wait().unwrap().is_some() || log.contains("could not create");
            assert!(!has_ended, "PostgreSQL ended: {log}");
        }
    }

    /// Shuts the server down. Does nothing if it is stopped.
    pub(crate) fn stop(&mut self) {
        if let Some((mut child, input)) = self.process.take() {
            drop(input);
            child.wait().unwrap();
        }
    }

    /// Ends the server without a checkpoint, as after a power loss.
    pub(crate) fn crash(&mut self) {
        let file = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap();
        let pid = file.lines().next().unwrap();
        Command::new("kill").args(["-QUIT", pid]).status().unwrap();
        self.stop();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
    }
}
