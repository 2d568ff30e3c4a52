//! The calls that the safe libraries do not offer.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;

use nix::unistd::ForkResult;
use tokio::process::{Child, Command};
use vmwright_vmm::{Program, Spawner};

use crate::{Error, Result};

/// Fills a buffer with random bytes.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    let source = File::open("/dev/urandom").and_then(|mut file| file.read_exact(bytes));
    source.map_err(|error| Error::system("get random bytes", error))
}

/// Lets the calling process end and goes on in a child of it, which has no parent that would have to reap it.
///
/// Must be called before the process has a second thread.
pub(crate) fn detach() -> io::Result<()> {
    // SAFETY: the caller has started no thread, so the child has every lock in the state it left it in.
    match unsafe { nix::unistd::fork() }? {
        // The parent has nothing to flush and must not run destructors of what the child now owns.
        // SAFETY: _exit(2) takes any number.
        ForkResult::Parent { .. } => unsafe { nix::libc::_exit(0) },
        ForkResult::Child => nix::unistd::setsid().map(drop).map_err(Into::into),
    }
}

/// Starts monitors so that they end with this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BoundSpawner;

impl Spawner for BoundSpawner {
    /// Must be called on the main thread: the kernel takes the end of the spawning thread for the parent's.
    fn spawn(&self, program: Program) -> io::Result<Child> {
        let parent = nix::unistd::getpid();
        let mut command = program.into_command();
        let bind = move || {
            nix::sys::prctl::set_pdeathsig(Some(nix::sys::signal::Signal::SIGKILL))?;
            // It may have ended before the line above.
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe { command.pre_exec(bind) };
        Command::from(command).kill_on_drop(true).spawn()
    }
}
