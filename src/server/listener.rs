//! Where the server listens: addresses as people write them, and bound sockets.
//!
//! What happens to an accepted connection is decided in `accept`.

use std::{
    fmt, fs, io,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as BlockingUnixStream,
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};

#[cfg(test)]
mod tests;

/// Connections the kernel completes ahead of us, so that many clients may
/// arrive at once.
const BACKLOG: u32 = 1024;

/// An address to listen on: `host:port`, or `unix:PATH`. Port 0 lets the
/// system choose one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A host name or IP address, an IPv6 one in brackets, and a port.
    Tcp(String),
    /// The path of a Unix domain socket.
    Unix(PathBuf),
}

/// Why a text is not a [`ListenAddress`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is no address to listen on: {problem}")]
pub struct InvalidListenAddress {
    text: String,
    problem: &'static str,
}

/// A bound socket. A Unix one removes its file when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: BoundSocket,
    local_addr: ListenAddress,
}

#[derive(Debug)]
enum BoundSocket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        path: PathBuf,
        file_id: (u64, u64),
    },
}

/// An accepted connection that belongs to no runtime yet.
#[derive(Debug)]
pub(super) enum AcceptedStream {
    Tcp(std::net::TcpStream, SocketAddr),
    Unix(std::os::unix::net::UnixStream),
}

// === impl ListenAddress ===

impl FromStr for ListenAddress {
    type Err = InvalidListenAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |problem| {
            Err(InvalidListenAddress {
                text: text.to_owned(),
                problem,
            })
        };
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC clients also write an absolute path as unix:///path.
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => invalid("a path must follow unix:"),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return invalid("write host:port or unix:PATH");
        };
        if host.contains('/') {
            return invalid("write host:port without a scheme or path");
        }
        if host.is_empty() {
            return invalid("the host is missing; 0.0.0.0 stands for every interface");
        }
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return invalid("write an IPv6 address in brackets, as in [::1]:8470");
        }
        if port.parse::<u16>().is_err() {
            return invalid("the port must be a number from 0 to 65535");
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl Listener ===

impl Listener {
    /// Binds `address` and starts to listen. Must be called inside a runtime
    /// with IO, which is the one that will accept.
    ///
    /// A Unix socket that nobody listens on any more is replaced. Its file gets
    /// the permissions `mode`, if given, before anybody can connect.
    ///
    /// # Errors
    ///
    /// When the address is taken, unknown or not permitted; the message says
    /// which address it was.
    pub(crate) fn bind(address: &ListenAddress, mode: Option<u32>) -> io::Result<Self> {
        let bound = match address {
            ListenAddress::Tcp(address) => bind_tcp(address),
            ListenAddress::Unix(path) => bind_unix(path, mode),
        };
        bound.map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "; is another server running there?",
                _ => "",
            };
            io::Error::new(
                error.kind(),
                format!("cannot listen on {address}: {error}{hint}"),
            )
        })
    }

    /// The address as it was bound: with the port that the system chose.
    pub(crate) fn local_addr(&self) -> ListenAddress {
        self.local_addr.clone()
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<AcceptedStream> {
        match &self.socket {
            BoundSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(AcceptedStream::Tcp(stream.into_std()?, peer))
            }
            BoundSocket::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(AcceptedStream::Unix(stream.into_std()?))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let BoundSocket::Unix { path, file_id, .. } = &self.socket {
            // Somebody else may have put a socket of theirs there meanwhile.
            if read_file_id(path).is_ok_and(|current_id| current_id == *file_id) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn bind_tcp(address: &str) -> io::Result<Listener> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for candidate in address.to_socket_addrs()? {
        match listen_tcp(candidate) {
            Ok(listener) => {
                let local_addr = ListenAddress::Tcp(listener.local_addr()?.to_string());
                return Ok(Listener {
                    socket: BoundSocket::Tcp(listener),
                    local_addr,
                });
            }
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of the last run, still in TIME_WAIT, must not hinder a restart.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<Listener> {
    remove_stale_socket(path)?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Nobody can connect to a socket that does not listen yet.
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let listener = socket.listen(BACKLOG)?;
    let file_id = read_file_id(path)?;
    let local_addr = ListenAddress::Unix(path.to_owned());
    Ok(Listener {
        socket: BoundSocket::Unix {
            listener,
            path: path.to_owned(),
            file_id,
        },
        local_addr,
    })
}

/// Removes the socket of a server that did not come to remove it itself.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    if !metadata.file_type().is_socket() {
        let problem = "a file that is not a socket is in the way";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
    }
    match BlockingUnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

fn read_file_id(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
