//! A TCP proxy between one server and the database, which a test can disconnect and freeze.

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// Forwards connections from a free port to the database. Stops when dropped.
pub(super) struct DatabaseProxy {
    port: u16,
    mode: watch::Sender<ProxyMode>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProxyMode {
    Forward,
    /// Holds all data back while connections stay open.
    Frozen,
    /// Closes open connections and new ones.
    Disconnected,
}

// === impl DatabaseProxy ===

impl DatabaseProxy {
    /// Starts a proxy to a local port.
    pub(super) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mode, mode_receiver) = watch::channel(ProxyMode::Forward);
        Self {
            port: listener.local_addr().unwrap().port(),
            mode,
            task: tokio::spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    connections.spawn(proxy_connection(client, port, mode_receiver.clone()));
                    while connections.try_join_next().is_some() {}
                }
            }),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Closes all connections and every new one.
    pub(super) fn disconnect(&self) {
        self.mode.send_replace(ProxyMode::Disconnected);
    }

    /// Holds back all data.
    pub(super) fn freeze(&self) {
        self.mode.send_replace(ProxyMode::Frozen);
    }

    /// Forwards again, held back data first.
    pub(super) fn restore(&self) {
        self.mode.send_replace(ProxyMode::Forward);
    }
}

impl Drop for DatabaseProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Forwards one connection until either side or the proxy closes it.
async fn proxy_connection(client: TcpStream, port: u16, mode: watch::Receiver<ProxyMode>) {
    let forward = async {
        let Ok(upstream) = TcpStream::connect(("127.0.0.1", port)).await else {
            return;
        };
        let (mut client_read, mut client_write) = client.into_split();
        let (mut upstream_read, mut upstream_write) = upstream.into_split();
        select! {
            () = copy_while_open(&mut client_read, &mut upstream_write, mode.clone()) => {}
            () = copy_while_open(&mut upstream_read, &mut client_write, mode.clone()) => {}
        }
    };
    let mut mode_changes = mode.clone();
    let disconnected = mode_changes.wait_for(|mode| *mode == ProxyMode::Disconnected);
    if *mode.borrow() != ProxyMode::Disconnected {
        select! {
            () = forward => {}
            _ = disconnected => {}
        }
    }
}

async fn copy_while_open(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut mode: watch::Receiver<ProxyMode>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let is_open = mode
            .wait_for(|mode| *mode == ProxyMode::Forward)
            .await
            .is_ok();
        if !is_open || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
