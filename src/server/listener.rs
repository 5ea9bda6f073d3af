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
pub struct ListenAddressError {
    text: String,
    problem: &'static str,
}

/// A bound socket. A Unix one removes its file when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Bound,
    local: ListenAddress,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        path: PathBuf,
        file: (u64, u64),
    },
}

/// An accepted connection that belongs to no runtime yet.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(std::net::TcpStream, SocketAddr),
    Unix(std::os::unix::net::UnixStream),
}

// === impl ListenAddress ===

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |problem| {
            Err(ListenAddressError {
                text: text.to_owned(),
                problem,
            })
        };
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC clients also write an absolute path as unix:///path.
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => refuse("a path must follow unix:"),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return refuse("write host:port or unix:PATH");
        };
        if host.contains('/') {
            return refuse("write host:port without a scheme or path");
        }
        if host.is_empty() {
            return refuse("the host is missing; 0.0.0.0 stands for every interface");
        }
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return refuse("write an IPv6 address in brackets, as in [::1]:8470");
        }
        if port.parse::<u16>().is_err() {
            return refuse("the port must be a number from 0 to 65535");
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
    pub(crate) fn local(&self) -> ListenAddress {
        self.local.clone()
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Bound::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Accepted::Tcp(stream.into_std()?, peer))
            }
            Bound::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(stream.into_std()?))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Bound::Unix { path, file, .. } = &self.socket {
            // Somebody else may have put a socket of theirs there meanwhile.
            if identity(path).is_ok_and(|found| found == *file) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn bind_tcp(address: &str) -> io::Result<Listener> {
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for candidate in address.to_socket_addrs()? {
        match listen_tcp(candidate) {
            Ok(listener) => {
                let local = ListenAddress::Tcp(listener.local_addr()?.to_string());
                return Ok(Listener {
                    socket: Bound::Tcp(listener),
                    local,
                });
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
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
    remove_stale(path)?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Nobody can connect to a socket that does not listen yet.
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let listener = socket.listen(BACKLOG)?;
    let file = identity(path)?;
    let local = ListenAddress::Unix(path.to_owned());
    Ok(Listener {
        socket: Bound::Unix {
            listener,
            path: path.to_owned(),
            file,
        },
        local,
    })
}

/// Removes the socket of a server that did not come to remove it itself.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        let problem = "a file that is not a socket is in the way";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
    }
    match BlockingUnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
