//! What a guest printed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::AsFd;

use crate::lock::FileLock;
use crate::runtime::Runtime;
use crate::shim::log::previous;
use crate::{Error, Result, VmName};

/// How often it is looked whether the VM still runs, where nothing is printed.
const LOOK: Duration = Duration::from_secs(1);

impl Runtime {
    /// Gives what a guest printed to `to`, oldest first, until it breaks.
    ///
    /// With `follow`, goes on with what it prints until it ends. The bytes are the guest's: whoever shows
    /// them on a terminal escapes their control characters.
    pub fn logs(
        &self,
        name: &VmName,
        follow: bool,
        to: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let dir = self.home.vm(name);
        if !dir.path().is_dir() {
            return Err(Error::no_such_vm(name));
        }
        let path = dir.console_log();
        let fail = |source| Error::host("read", &path, source);
        // Watched before the first look: nothing that is printed in between goes unnoticed.
        let watch = if follow { Some(watch(dir.path()).map_err(fail)?) } else { None };
        if let Some(file) = open(&previous(&path)).map_err(fail)?
            && pour(&mut { file }, to).map_err(fail)?.is_break()
        {
            return Ok(());
        }
        let mut current = open(&path).map_err(fail)?;
        loop {
            // Asked before the last look: what was printed before the end is then seen.
            let runs = FileLock::is_held(&dir.lock())?;
            if let Some(file) = &mut current
                && pour(file, to).map_err(fail)?.is_break()
            {
                return Ok(());
            }
            if is_another(&path, current.as_ref()) {
                current = open(&path).map_err(fail)?;
                continue;
            }
            match &watch {
                Some(watch) if runs => wait(watch).map_err(fail)?,
                _ => return Ok(()),
            }
        }
    }
}

/// The last bytes of a file.
pub(crate) fn tail(path: &Path, len: u64) -> io::Result<Vec<u8>> {
    let Some(mut file) = open(path)? else { return Ok(Vec::new()) };
    let start = file.metadata()?.len().saturating_sub(len);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn pour(file: &mut File, to: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<ControlFlow<()>> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(ControlFlow::Continue(())),
            len => {
                if to(&buffer[..len]).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }
}

/// Whether the log of that name is a newer one than the open file.
fn is_another(path: &Path, open: Option<&File>) -> bool {
    let Ok(named) = std::fs::metadata(path) else { return false };
    let open = open.and_then(|file| file.metadata().ok());
    open.is_none_or(|open| (open.dev(), open.ino()) != (named.dev(), named.ino()))
}

fn watch(dir: &Path) -> io::Result<Inotify> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVE;
    watch.add_watch(dir, events | AddWatchFlags::IN_DELETE)?;
    Ok(watch)
}

/// Waits until something changes, or it is time to look again.
fn wait(watch: &Inotify) -> io::Result<()> {
    let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(()),
        // What changed is of no interest, only that something did.
        Ok(_) => watch.read_events().map(drop).map_err(Into::into),
        Err(error) => Err(error.into()),
    }
}
