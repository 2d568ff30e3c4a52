use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tokio::net::UnixStream;

use crate::error::{Error, Result};

/// Our end of a guest's console: a socket pair, so that there is no name to guess, to collide or to leave behind.
pub(crate) struct Console(Mutex<Option<StdUnixStream>>);

impl Console {
    /// Makes a console, if one is wanted, and the end that the monitor gets.
    pub(crate) fn new(wanted: bool) -> Result<(Self, Option<OwnedFd>)> {
        if !wanted {
            return Ok((Self(Mutex::new(None)), None));
        }
        let error = |source| Error::host("make", Path::new("a pair of sockets"), source);
        let (near, far) = StdUnixStream::pair().map_err(error)?;
        near.set_nonblocking(true).map_err(error)?;
        Ok((Self(Mutex::new(Some(near))), Some(far.into())))
    }

    /// Hands it over, once.
    pub(crate) fn take(&self) -> Result<UnixStream> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let console = taken.ok_or_else(|| Error::absent("console, or it was handed over already"))?;
        UnixStream::from_std(console)
            .map_err(|source| Error::host("watch", Path::new("the console's socket"), source))
    }
}
