use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use super::Peer;
use super::socket::Socket;
use super::unix::NamedSocket;
use crate::error::Reason;
use crate::{Error, Result};

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A socket of this name, that only this user may connect to.
    Unix(PathBuf),
    /// A TCP address; port 0 takes any that is free.
    Tcp(SocketAddr),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A place where clients can connect already.
#[derive(Debug)]
pub(super) enum Open {
    Unix(NamedSocket),
    Tcp(TcpListener),
}

impl Open {
    pub(super) fn bind(listen: &Listen, remote: bool) -> Result<Self> {
        match listen {
            Listen::Unix(path) => NamedSocket::bind(path).map(Self::Unix),
            Listen::Tcp(address) if !remote && !address.ip().to_canonical().is_loopback() => {
                Err(Reason::Remote { address: *address }.into())
            }
            Listen::Tcp(address) => {
                let fail = |source| Error::host("listen on", address, source);
                let listener = TcpListener::bind(address).map_err(fail)?;
                listener.set_nonblocking(true).map_err(fail)?;
                Ok(Self::Tcp(listener))
            }
        }
    }

    /// Where that is, with the port that was taken.
    pub(super) fn place(&self) -> Result<Listen> {
        match self {
            Self::Unix(socket) => Ok(Listen::Unix(socket.path().to_owned())),
            Self::Tcp(listener) => {
                let address =
                    listener.local_addr().map_err(|error| Error::host("find", "the port", error))?;
                Ok(Listen::Tcp(address))
            }
        }
    }

    /// Takes in one client, if one is there.
    pub(super) fn accept(&self) -> io::Result<Option<(Socket, Peer)>> {
        let accepted = match self {
            Self::Unix(socket) => socket.listener.accept().and_then(|(stream, _)| {
                let credentials = rustix::net::sockopt::socket_peercred(&stream)?;
                let pid = u32::try_from(credentials.pid.as_raw_pid()).unwrap_or(0);
                Ok((Socket::Unix(stream), Peer::Local { pid, uid: credentials.uid.as_raw() }))
            }),
            Self::Tcp(listener) => listener.accept().and_then(|(stream, address)| {
                // Replies must not wait for one another, and a host that died must be noticed at some time.
                stream.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok((Socket::Tcp(stream), Peer::Remote(address)))
            }),
        };
        match accepted {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::NotConnected => Ok(None),
                _ => Err(error),
            },
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}
