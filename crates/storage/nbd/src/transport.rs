use std::io::{self, IoSlice};

use crate::{Error, Result};

/// How far a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// It is not, and cannot be.
    Off,
    /// It is not yet, and the client may choose.
    Offered,
    /// It is not yet, and must be before anything else.
    Required,
    /// It is.
    Active,
}

/// The bytes to and from one client.
///
/// One thread at a time reads and one at a time writes, but reading and writing happen at once. An error of kind
/// [`io::ErrorKind::TimedOut`] or [`io::ErrorKind::WouldBlock`] says that the client was silent for as long as it may be.
pub trait Transport: Send + Sync {
    /// Reads at least one byte; none at the end.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes at least one byte of these, in their order; answers how many.
    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ends the connection in both directions, so that a read that waits returns.
    fn hang_up(&self);

    /// How far the connection is encrypted.
    fn encryption(&self) -> Encryption;

    /// Encrypts everything from here on, where that was offered or required.
    fn start_tls(&self) -> io::Result<()>;
}

/// Fills the whole of `buf`; the end of the stream within it is an error.
pub(crate) fn read_exact(transport: &dyn Transport, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match transport.read(buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buf = buf.get_mut(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes the whole of all parts.
pub(crate) fn write_all(transport: &dyn Transport, parts: &mut [IoSlice<'_>]) -> Result<()> {
    let mut parts = parts;
    // Leading empty parts would make a write of nothing look like the end.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match transport.write(parts) {
            Ok(0) => return Err(Error::connection("answer the client")(io::ErrorKind::WriteZero.into())),
            Ok(n) => IoSlice::advance_slices(&mut parts, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::connection("answer the client")(error)),
        }
    }
    Ok(())
}
