use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tokio::process::Child;

/// Creates processes, so that the caller decides what surrounds them: groups, limits, death signals.
pub trait Spawner: Send + Sync {
    /// Starts a program; the child must be killed when its handle is dropped.
    fn spawn(&self, program: Program) -> io::Result<Child>;
}

/// A program that a backend wants to run.
///
/// Its environment is exactly what is given here, and it inherits no descriptor but the three standard ones.
#[derive(Debug)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Its arguments, without its own name.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Standard input; nothing where absent.
    pub stdin: Option<OwnedFd>,
    /// Standard output; discarded where absent.
    pub stdout: Option<OwnedFd>,
    /// Standard error; discarded where absent.
    pub stderr: Option<OwnedFd>,
}

impl Program {
    /// Describes a program with an empty environment and nothing on its standard descriptors.
    pub fn new(path: impl Into<PathBuf>, args: Vec<OsString>) -> Self {
        Self { path: path.into(), args, env: Vec::new(), stdin: None, stdout: None, stderr: None }
    }

    /// The standard library's description of the same program, for spawners.
    pub fn into_command(self) -> Command {
        let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        let mut command = Command::new(self.path);
        command.args(self.args).env_clear().envs(self.env);
        command.stdin(stdio(self.stdin)).stdout(stdio(self.stdout)).stderr(stdio(self.stderr));
        command
    }
}

/// Creates processes as plain children of this one.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainSpawner;

impl Spawner for PlainSpawner {
    fn spawn(&self, program: Program) -> io::Result<Child> {
        tokio::process::Command::from(program.into_command()).kill_on_drop(true).spawn()
    }
}
