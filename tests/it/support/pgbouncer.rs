//! Runs pgbouncer in front of a test PostgreSQL server.

use std::{
    env, fs,
    net::TcpStream,
    process::{Child, ChildStdin},
    sync::Once,
};

use tempfile::TempDir;

use super::postgres::{PostgresServer, free_port, give_to_server_user, skip};

/// The number of connections to PostgreSQL that all clients share.
pub(crate) const POOL_SIZE: usize = 2;

/// A pgbouncer process in transaction mode. Stops when dropped or when this process exits.
pub(crate) struct PgBouncer {
    port: u16,
    process: Option<(Child, ChildStdin)>,
    _directory: TempDir,
}

// === impl PgBouncer ===

impl PgBouncer {
    /// Starts pgbouncer, or prints a notice and returns `None` if it is not installed.
    pub(crate) fn start(postgres: &PostgresServer) -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        // Debian installs it outside of an ordinary user's path.
        let mut directories = env::split_paths(&path).chain(["/usr/sbin".into()]);
        let Some(bin) = directories.find(|bin| bin.join("pgbouncer").exists()) else {
            static SKIP_NOTICE: Once = Once::new();
            skip(
                &SKIP_NOTICE,
                "tests that need pgbouncer: it is not installed",
            );
            return None;
        };
        let (directory, port) = (TempDir::new().unwrap(), free_port());
        let config = directory.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]
             * = host=127.0.0.1 port={} user=test
             [pgbouncer]
             listen_addr = 127.0.0.1
             listen_port = {port}
             unix_socket_dir =
             auth_type = any
             pool_mode = transaction
             default_pool_size = {POOL_SIZE}",
            postgres.port()
        );
        let text: String = text
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect();
        fs::write(&config, text).unwrap();
        give_to_server_user(directory.path());
        let log_file = fs::File::create(directory.path().join("log")).unwrap();
        let mut command = postgres.supervised_command(&bin.join("pgbouncer"));
        let mut child = command.arg(&config).stderr(log_file).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = fs::read_to_string(directory.path().join("log")).unwrap();
            let is_running = child.try_wait().unwrap().is_none() && !log.contains("FATAL");
            assert!(is_running, "pgbouncer ended: {log}");
        }
        Some(Self {
            port,
            process: Some((child, input)),
            _directory: directory,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://test@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if let Some((mut child, input)) = self.process.take() {
            drop(input);
            child.wait().unwrap();
        }
    }
}
