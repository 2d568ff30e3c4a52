//! The transports under a session.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmwright_agent_proto::PORT_NAME;

use crate::sys;

/// How long the port may take to appear.
const PORT_DEADLINE: Duration = Duration::from_secs(60);
const PORTS: &str = "/sys/class/virtio-ports";

/// Where the host's bytes come from.
pub(crate) enum Channel {
    /// A virtio-serial port: while no host is there, it reads as empty and takes nothing.
    Port(File),
    /// A connected socket.
    Socket(File),
}

/// What a read brought.
pub(crate) enum Got {
    Bytes(usize),
    Nothing,
    /// The peer is gone for good.
    End,
}

/// Why there is no channel.
pub(crate) enum Absent {
    /// Another agent has it.
    Busy,
    Failed(io::Error),
}

impl Channel {
    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Port(file) | Self::Socket(file) => file,
        }
    }

    /// Reads what there is.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> Got {
        loop {
            return match (self.file().read(buf), &self) {
                (Ok(0), Self::Socket(_)) => Got::End,
                (Ok(0), Self::Port(_)) => Got::Nothing,
                (Ok(len), _) => Got::Bytes(len),
                (Err(error), _) if error.kind() == io::ErrorKind::Interrupted => continue,
                (Err(error), _) if error.kind() == io::ErrorKind::WouldBlock => Got::Nothing,
                (Err(_), _) => Got::End,
            };
        }
    }

    /// Writes what fits; `None` where the peer is gone for good.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        loop {
            return match self.file().write(bytes) {
                Ok(len) => Some(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
                Err(_) => None,
            };
        }
    }

    /// Whether a host is at the other end.
    pub(crate) fn is_connected(&self) -> bool {
        !sys::is_hung_up(self.file())
    }

    /// Connects to a socket of the host.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        Self::socket(UnixStream::connect(path)?)
    }

    fn socket(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::Socket(File::from(OwnedFd::from(stream))))
    }

    /// Accepts one connection, if one waits.
    pub(crate) fn accept(listener: &UnixListener) -> io::Result<Option<Self>> {
        match listener.accept() {
            Ok((stream, _)) => Self::socket(stream).map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the virtio-serial port, once it is there.
    pub(crate) fn port() -> Result<Self, Absent> {
        let events = sys::device_events().map_err(Absent::Failed)?;
        let found = await_device(&events, PORT_DEADLINE, || find_port(Path::new(PORTS)));
        let device = found.map_err(Absent::Failed)?;
        let open = OpenOptions::new().read(true).write(true).custom_flags(sys::O_NONBLOCK).open(device);
        match open {
            Ok(file) => Ok(Self::Port(file)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(Absent::Busy),
            Err(error) => Err(Absent::Failed(error)),
        }
    }
}

/// Listens on a socket, in place of one that nobody listens on any more.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Absent> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(Absent::Busy);
            }
            std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
        }
        other => other,
    };
    let listener = listener.map_err(Absent::Failed)?;
    listener.set_nonblocking(true).map_err(Absent::Failed)?;
    Ok(listener)
}

/// Calls `find` now and after each device that appears, until it finds something or the time is over.
pub(crate) fn await_device<T>(
    events: &OwnedFd,
    patience: Duration,
    mut find: impl FnMut() -> Option<T>,
) -> io::Result<T> {
    let deadline = Instant::now() + patience;
    let mut events = File::from(events.try_clone()?);
    loop {
        if let Some(found) = find() {
            return Ok(found);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Looks again after a while even so: the kernel drops events when there are too many.
        sys::wait_readable(&events, left.min(Duration::from_secs(2)).as_millis() as i32)?;
        // What it says does not matter; that there was something does.
        while events.read(&mut [0; 8192]).is_ok() {}
    }
}

fn find_port(class: &Path) -> Option<PathBuf> {
    let mut ports = std::fs::read_dir(class).ok()?.flatten();
    let port = ports.find(|port| {
        std::fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME)
    })?;
    let device = Path::new("/dev").join(port.file_name());
    device.exists().then_some(device)
}
