//! Whether KVM works, found out by running a guest on it.

use std::fs;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::arguments::Arguments;
use super::guest::{RESET, TEXT};
use super::render;
use crate::cache::{Cache, Key};
use crate::capabilities::Engine;
use crate::error::{Error, Result};
use crate::process::{Process, Witness};
use crate::spawner::{Program, Spawner};

/// Modules that offer `/dev/kvm` but cannot run the kernels that guests bring along.
const KNOWN_BAD: [(&str, &str); 1] =
    [("kvm_pvm", "the module kvm_pvm runs only kernels that were changed for it")];

/// How long the guest may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(1);

/// The size of the guest's ROM: QEMU wants a multiple of this.
const ROM: usize = 64 << 10;

/// How many system calls the guest makes.
pub(super) const SYSCALLS: u32 = 10_000;

/// The exit code by which the guest says that it came to its end.
const EXIT_CODE: i32 = 33;

/// The most that the guest's report can have.
const REPORT_MAX: u64 = 256;

/// The name under which the verdict is kept.
const CACHED_AS: &str = "kvm.json";

/// Whether KVM can be used, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmVerdict {
    /// Whether a guest came through.
    pub usable: bool,
    /// Why, or why not, in words for a person.
    pub reason: String,
    /// What the guest did, where one was run to its end.
    pub measured: Option<Measured>,
}

/// What a guest that came through did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The system calls from ring 3 that its kernel counted.
    pub syscalls: u32,
    /// The milliseconds from the start of QEMU to its end.
    pub millis: u64,
}

impl KvmVerdict {
    fn no(reason: impl Into<String>) -> Self {
        Self { usable: false, reason: reason.into(), measured: None }
    }
}

/// What can be known without running anything: why KVM is out of the question, if it is.
pub(super) fn ruled_out(modules: &Path, device: &Path) -> Option<KvmVerdict> {
    for (module, reason) in KNOWN_BAD {
        if modules.join(module).exists() {
            return Some(KvmVerdict::no(reason));
        }
    }
    let opened = fs::OpenOptions::new().read(true).write(true).open(device);
    opened.err().map(|error| KvmVerdict::no(format!("cannot open {}: {error}", device.display())))
}

/// Decides whether KVM works; runs a guest at most once for each boot of the host and version of QEMU.
pub(super) async fn measure(
    program: &Path,
    machine: &str,
    cache: &Cache,
    key: &Key,
    spawner: &dyn Spawner,
) -> Result<KvmVerdict> {
    if let Some(verdict) = ruled_out("/sys/module".as_ref(), "/dev/kvm".as_ref()) {
        return Ok(verdict);
    }
    if let Some(verdict) = cache.get(CACHED_AS, key) {
        return Ok(verdict);
    }
    let trial = Trial { program, machine, engine: Engine::Kvm, deadline: DEADLINE, text: TEXT };
    let verdict = trial.run(spawner).await?;
    cache.put(CACHED_AS, key, &verdict);
    Ok(verdict)
}

/// One run of a guest.
pub(super) struct Trial<'a> {
    /// QEMU.
    pub(super) program: &'a Path,
    /// The kind of machine.
    pub(super) machine: &'a str,
    /// Who executes it.
    pub(super) engine: Engine,
    /// How long it may take.
    pub(super) deadline: Duration,
    /// The guest's code.
    pub(super) text: &'a [u8],
}

impl Trial<'_> {
    /// Runs the guest; fails only where the host does.
    pub(super) async fn run(&self, spawner: &dyn Spawner) -> Result<KvmVerdict> {
        let error = |source| Error::host("make", "a pipe for the probe".as_ref(), source);
        let (sender, mut receiver) = pipe::pipe().map_err(error)?;
        let mut program = Program::new(self.program, self.arguments().into_vec());
        program.stdin = Some(rom(self.text).map_err(error)?);
        program.stdout = Some(sender.into_blocking_fd().map_err(error)?);
        let started = Instant::now();
        let process = Process::start(spawner, program, Witness::default()).await?;
        let Ok(exit) = timeout(self.deadline, process.wait()).await else {
            process.kill().await;
            let limit = self.deadline.as_millis();
            return Ok(KvmVerdict::no(format!("a small guest did not end within {limit} ms")));
        };
        let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut report = String::new();
        // What is no text is no report either.
        let _ = (&mut receiver).take(REPORT_MAX).read_to_string(&mut report).await;
        let syscalls = parse(&report);
        if exit.code == Some(EXIT_CODE) && syscalls == Some(SYSCALLS) {
            let reason = format!("a small guest made {SYSCALLS} system calls, {millis} ms in all");
            return Ok(KvmVerdict {
                usable: true,
                reason,
                measured: Some(Measured { syscalls: SYSCALLS, millis }),
            });
        }
        let words = exit.stderr.lines().last().map_or(String::new(), |line| format!(": {line}"));
        Ok(KvmVerdict::no(match syscalls {
            Some(count) => format!("a small guest made {count} system calls instead of {SYSCALLS}{words}"),
            None => format!("a small guest ended without a report{words}"),
        }))
    }

    fn arguments(&self) -> Arguments {
        let mut arguments = Arguments::default();
        for flag in ["-no-user-config", "-nodefaults", "-no-reboot"] {
            arguments.flag(flag);
        }
        arguments.option("-display", "none");
        arguments.option("-machine", self.machine);
        // The processor of a real machine: some hosts pretend one that they cannot make.
        render::engine(self.engine, &mut arguments);
        arguments.option("-m", "16M");
        arguments.option("-bios", "/dev/stdin");
        arguments.option("-debugcon", "file:/dev/stdout");
        arguments.option("-device", "isa-debug-exit,iobase=0xf4,iosize=4");
        arguments
    }
}

/// The guest in a file without a name, so that nothing is left behind.
fn rom(text: &[u8]) -> std::io::Result<OwnedFd> {
    let mut image = vec![0; ROM];
    let reset = ROM - RESET.len();
    if text.len() > reset {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    image[..text.len()].copy_from_slice(text);
    image[reset..].copy_from_slice(RESET);
    let mut file = fs::File::from(rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC)?);
    file.write_all(&image)?;
    file.rewind()?;
    Ok(file.into())
}

/// The number in `ring 3 syscalls N`, which must be all that was said.
fn parse(report: &str) -> Option<u32> {
    report.strip_prefix("ring 3 syscalls ")?.strip_suffix('\n')?.parse().ok()
}

#[cfg(test)]
mod tests;
