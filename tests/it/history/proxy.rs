//! The way from one server to the database, which a test can cut and freeze.

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// Takes connections on a port of its own and passes them on. Ends when dropped.
pub(super) struct Proxy {
    port: u16,
    way: watch::Sender<Way>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// Nothing arrives, and nobody is told.
    Frozen,
    /// Connections are closed, also those that are made.
    Cut,
}

// === impl Proxy ===

impl Proxy {
    /// The way to a port of this machine.
    pub(super) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (way, seen) = watch::channel(Way::Open);
        Self {
            port: listener.local_addr().unwrap().port(),
            way,
            task: tokio::spawn(async move {
                let mut lines = JoinSet::new();
                loop {
                    let (near, _) = listener.accept().await.unwrap();
                    lines.spawn(pass_on(near, port, seen.clone()));
                    while lines.try_join_next().is_some() {}
                }
            }),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Closes every connection and refuses new ones.
    pub(super) fn cut(&self) {
        self.way.send_replace(Way::Cut);
    }

    /// Holds back whatever is sent.
    pub(super) fn freeze(&self) {
        self.way.send_replace(Way::Frozen);
    }

    /// Lets everything pass, first what was held back.
    pub(super) fn heal(&self) {
        self.way.send_replace(Way::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection. Both sides see its end, however it comes.
async fn pass_on(near: TcpStream, port: u16, way: watch::Receiver<Way>) {
    let pumps = async {
        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else {
            return;
        };
        let (mut near_read, mut near_write) = near.into_split();
        let (mut far_read, mut far_write) = far.into_split();
        select! {
            () = pump(&mut near_read, &mut far_write, way.clone()) => {}
            () = pump(&mut far_read, &mut near_write, way.clone()) => {}
        }
    };
    let mut seen = way.clone();
    let cut = seen.wait_for(|way| *way == Way::Cut);
    if *way.borrow() != Way::Cut {
        select! {
            () = pumps => {}
            _ = cut => {}
        }
    }
}

async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut way: watch::Receiver<Way>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let is_passed = way.wait_for(|way| *way == Way::Open).await.is_ok();
        if !is_passed || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
