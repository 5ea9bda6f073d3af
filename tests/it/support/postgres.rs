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

use longrunning::{PostgresConfig, PostgresStorage};
use tempfile::TempDir;

use super::backend::POSTGRES_URL_ENV;

/// A database server over a directory of its own.
pub(crate) struct PostgresServer {
    bin_dir: PathBuf,
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
    /// Runs while it does; it is stopped when this input ends.
    process: Option<(Child, ChildStdin)>,
}

/// The schema of a test in the server that all tests share; none without
/// PostgreSQL, which is said.
pub(crate) fn test_config() -> Option<PostgresConfig> {
    static SHARED: OnceLock<Option<PostgresServer>> = OnceLock::new();
    // `over_stores` has started one for this process.
    let url = match env::var(POSTGRES_URL_ENV) {
        Ok(url) => url,
        Err(_) => SHARED
            .get_or_init(|| PostgresServer::start(&["fsync=off"]))
            .as_ref()?
            .url(),
    };
    let mut config = PostgresConfig::new(url);
    config.schema = format!("test_{}", uuid::Uuid::new_v4().simple());
    Some(config)
}

/// A journal in a schema of its own.
pub(crate) async fn open_storage(config: &PostgresConfig) -> PostgresStorage {
    PostgresStorage::open(config).await.unwrap()
}

/// Where the programs of PostgreSQL are.
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

/// Says once what is skipped, and why; in CI nothing may be.
pub(super) fn skip(notice: &'static Once, skipped: &str) {
    assert!(env::var_os("CI").is_none(), "{skipped} on this machine");
    // Not by a macro, whose words a test that passes keeps to itself.
    notice.call_once(|| {
        let message = format!("SKIPPED: {skipped} on this machine\n");
        io::stderr().write_all(message.as_bytes()).unwrap();
    });
}

/// Who may run a database server: not root, for which `postgres` or `nobody` does.
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

/// Makes this a thing of the one who runs the server.
pub(super) fn give_to_server_user(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What the program says.
fn run_successfully(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    output.stdout
}

// === impl Postgres ===

impl PostgresServer {
    /// Makes a server, and starts it with these settings; none without PostgreSQL,
    /// which is said, unless CI runs, where it must be there.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        Self::start_with_files(settings, &[])
    }

    /// The same, with these files among its data, which nobody else may read.
    pub(crate) fn start_with_files(settings: &[&str], files: &[(&str, &str)]) -> Option<Self> {
        let Some(bin) = postgres_bin_dir() else {
            static SKIP_NOTICE: Once = Once::new();
            skip(
                &SKIP_NOTICE,
                "what needs PostgreSQL: no initdb and postgres",
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

    /// Another server that takes over what this one commits, before this one answers.
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
            "it follows"
        );
        standby
    }

    /// One that has nothing yet.
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

    /// What the server answers to a question, as text.
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

    /// Where its Unix socket is.
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
        // psql would look for certificates at somebody's home.
        command
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path());
        if let Some((uid, gid)) = server_user() {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// A program that is ended when its input ends, however this process does.
    pub(super) fn supervised_command(&self, program: &Path) -> Command {
        // The shell outlives this process by as much as it takes to stop the program.
        let script = "\"$@\" & program=$!; cat; kill -INT $program 2>/dev/null; wait $program";
        let mut shell = self.command_at(Path::new("sh"));
        shell.args(["-c", script, "sh"]).arg(program);
        shell.stdin(Stdio::piped()).stdout(Stdio::null());
        shell
    }

    /// Starts the server, and returns when it answers.
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
            let (child, _) = self.process.as_mut().unwrap();
            assert!(
                child.try_wait().unwrap().is_none(),
                "PostgreSQL ended: {}",
                fs::read_to_string(self.directory.path().join("log")).unwrap()
            );
        }
    }

    /// Ends the server: with its data in order, or as if the power had gone.
    pub(crate) fn stop(&mut self, is_crash: bool) {
        let Some((mut child, input)) = self.process.take() else {
            return;
        };
        if is_crash {
            let file = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap();
            let pid = file.lines().next().unwrap();
            Command::new("kill").args(["-QUIT", pid]).status().unwrap();
        }
        drop(input);
        child.wait().unwrap();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop(false);
    }
}
