//! A pgbouncer before a PostgreSQL, that ends with the process.

use std::{
    env, fs,
    net::TcpStream,
    process::{Child, ChildStdin},
    sync::Once,
};

use tempfile::TempDir;

use super::postgres::{Postgres, free_port, give, skip};

/// How many connections to PostgreSQL all clients of a pooler share.
pub(crate) const SHARED: usize = 2;

/// Lends its clients a connection for a transaction at a time.
pub(crate) struct Pooler {
    port: u16,
    running: Option<(Child, ChildStdin)>,
    _directory: TempDir,
}

impl Pooler {
    /// None without pgbouncer, which is said.
    pub(crate) fn start(postgres: &Postgres) -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        // Where Debian puts it, and not everybody looks.
        let mut places = env::split_paths(&path).chain(["/usr/sbin".into()]);
        let Some(bin) = places.find(|bin| bin.join("pgbouncer").exists()) else {
            static SAID: Once = Once::new();
            skip(&SAID, "what needs a pooler: no pgbouncer");
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
             default_pool_size = {SHARED}",
            postgres.port()
        );
        let text: String = text
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect();
        fs::write(&config, text).unwrap();
        give(directory.path());
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let mut command = postgres.lasting(&bin.join("pgbouncer"));
        let mut child = command.arg(&config).stderr(log).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let said = fs::read_to_string(directory.path().join("log")).unwrap();
            let is_there = child.try_wait().unwrap().is_none() && !said.contains("FATAL");
            assert!(is_there, "pgbouncer ended: {said}");
        }
        Some(Self {
            port,
            running: Some((child, input)),
            _directory: directory,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://test@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if let Some((mut child, input)) = self.running.take() {
            drop(input);
            child.wait().unwrap();
        }
    }
}
