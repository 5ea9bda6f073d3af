//! Listen addresses and bound sockets, TCP and Unix.

use std::{
    fmt, fs, io,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};

#[cfg(test)]
mod tests;

/// Maximum number of established connections that wait for `accept`.
const BACKLOG: u32 = 1024;

/// An address to listen on: `host:port` or `unix:PATH`. With port 0, the system
/// chooses a free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A host name or IP address (IPv6 in brackets) and a port.
    Tcp(String),
    /// The path of a Unix domain socket.
    Unix(PathBuf),
}

/// Error for a text that is not a [`ListenAddress`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("invalid listen address {text:?}: {problem}")]
pub struct InvalidListenAddress {
    text: String,
    problem: &'static str,
}

/// A bound, listening socket. Dropping a Unix one removes its file.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: BoundSocket,
    local_addr: ListenAddress,
}

#[derive(Debug)]
enum BoundSocket {
    Tcp(TcpListener),
    Unix(UnixListener, FileId),
}

/// Device and inode of a file, which a new file at the same path does not share.
type FileId = (u64, u64);

/// An accepted connection that is not registered with a runtime.
#[derive(Debug)]
pub(super) enum AcceptedStream {
    Tcp(std::net::TcpStream, SocketAddr),
    Unix(UnixStream),
}

// === impl ListenAddress ===

impl FromStr for ListenAddress {
    type Err = InvalidListenAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unix_path = text.strip_prefix("unix:");
        let is_bracketed = |host: &str| host.starts_with('[') && host.ends_with(']');
        // gRPC clients also write an absolute path as unix:///path.
        let problem = match unix_path.map(|path| path.strip_prefix("//").unwrap_or(path)) {
            Some("") => "a path must follow unix:",
            Some(path) => return Ok(Self::Unix(path.into())),
            None => match text.rsplit_once(':') {
                None => "write host:port or unix:PATH",
                Some((host, _)) if host.contains('/') => "write host:port without a scheme or path",
                Some(("", _)) => "the host is missing; write 0.0.0.0 for all interfaces",
                Some((host, _)) if host.contains(':') && !is_bracketed(host) => {
                    "write an IPv6 address in brackets, as in [::1]:8470"
                }
                Some((_, port)) if port.parse::<u16>().is_err() => {
                    "the port must be a number from 0 to 65535"
                }
                Some(_) => return Ok(Self::Tcp(text.to_owned())),
            },
        };
        let text = text.to_owned();
        Err(InvalidListenAddress { text, problem })
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
    /// Binds `address` and starts to listen. Must be called in the runtime that will
    /// accept, with IO enabled.
    ///
    /// Replaces a Unix socket without a listener. Its file gets the permissions `mode`,
    /// if given, before a client can connect.
    ///
    /// # Errors
    /// The address is in use, unknown or not permitted. The message names the address.
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
            let message = format!("cannot listen on {address}: {error}{hint}");
            io::Error::new(error.kind(), message)
        })
    }

    /// Returns the bound address; port 0 is resolved.
    pub(crate) fn local_addr(&self) -> ListenAddress {
        self.local_addr.clone()
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// The IO error of this connection or of the whole socket.
    pub(super) async fn accept(&self) -> io::Result<AcceptedStream> {
        match &self.socket {
            BoundSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(AcceptedStream::Tcp(stream.into_std()?, peer))
            }
            BoundSocket::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok(AcceptedStream::Unix(stream.into_std()?))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A successor may have bound the same path.
        if let (BoundSocket::Unix(_, id), ListenAddress::Unix(path)) =
            (&self.socket, &self.local_addr)
            && file_id(path).is_ok_and(|current_id| current_id == *id)
        {
            let _ = fs::remove_file(path);
        }
    }
}

fn bind_tcp(address: &str) -> io::Result<Listener> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for candidate in address.to_socket_addrs()? {
        match listen_tcp(candidate) {
            Ok(listener) => {
                return Ok(Listener {
                    local_addr: ListenAddress::Tcp(listener.local_addr()?.to_string()),
                    socket: BoundSocket::Tcp(listener),
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
    // Connections of the previous process in TIME_WAIT must not prevent a restart.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<Listener> {
    remove_stale_socket(path)?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Clients cannot connect before `listen`.
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let listener = socket.listen(BACKLOG)?;
    Ok(Listener {
        socket: BoundSocket::Unix(listener, file_id(path)?),
        local_addr: ListenAddress::Unix(path.to_owned()),
    })
}

/// Removes the socket file of a server that was killed.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    if !metadata.file_type().is_socket() {
        let problem = "a file that is not a socket exists at this path";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

fn file_id(path: &Path) -> io::Result<FileId> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
