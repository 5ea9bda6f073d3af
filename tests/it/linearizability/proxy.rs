//! The way from one server to the database, which a test can cut and freeze.

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// Takes connections on a port of its own and passes them on. Ends when dropped.
pub(super) struct DatabaseProxy {
    port: u16,
    mode: watch::Sender<ProxyMode>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProxyMode {
    Forward,
    /// Nothing arrives, and nobody is told.
    Frozen,
    /// Connections are closed, also those that are made.
    Disconnected,
}

// === impl Proxy ===

impl DatabaseProxy {
    /// The way to a port of this machine.
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

    /// Closes every connection and refuses new ones.
    pub(super) fn disconnect(&self) {
        self.mode.send_replace(ProxyMode::Disconnected);
    }

    /// Holds back whatever is sent.
    pub(super) fn freeze(&self) {
        self.mode.send_replace(ProxyMode::Frozen);
    }

    /// Lets everything pass, first what was held back.
    pub(super) fn restore(&self) {
        self.mode.send_replace(ProxyMode::Forward);
    }
}

impl Drop for DatabaseProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection. Both sides see its end, however it comes.
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
