//! Outside tools that judge what this project writes; for tests only.
//!
//! A test names the tools it needs first, and is skipped by name where one is absent:
//!
//! ```
//! use vmwright_judges::{need, run};
//!
//! fn the_kernel_has_a_name() {
//!     need!("uname");
//!     assert!(!run("uname", ["-s"]).is_empty());
//! }
//! # the_kernel_has_a_name();
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, clippy::print_stderr)]

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Ends the running test as skipped, for the reason given as in `format!`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::record_skip(module_path!(), &format!($($reason)+));
        return;
    }};
}

/// Skips the running test unless all the named programs are installed.
#[macro_export]
macro_rules! need {
    ($($tool:expr),+ $(,)?) => {
        $(if $crate::tool($tool).is_none() {
            $crate::skip!("{} is not installed", $tool);
        })+
    };
}

/// Records that the running test was skipped, in the file that `VMWRIGHT_SKIPS` names.
pub fn record_skip(module: &str, reason: &str) {
    let thread = std::thread::current();
    let line = format!("{module}::{}: {reason}\n", thread.name().unwrap_or("test"));
    eprint!("skipped {line}");
    let Some(path) = std::env::var_os("VMWRIGHT_SKIPS") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.unwrap().write_all(line.as_bytes()).unwrap();
}

/// Finds a program on `PATH` or among the system administrator's.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// Runs a program and answers how it ended, whatever that was.
pub fn output<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Output {
    let program = tool(name).unwrap_or_else(|| panic!("{name} is not installed"));
    Command::new(program).args(args).env("LC_ALL", "C").output().unwrap()
}

/// Runs a program that must succeed and answers its standard output.
pub fn run<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> String {
    let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    let output = output(name, &args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {args:?}: {}\n{text}{errors}", output.status);
    text
}

/// Where other projects' sample data is, if it is here.
pub fn corpus() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/corpus");
    let path = std::env::var_os("VMWRIGHT_CORPUS").map_or(default, PathBuf::from);
    path.is_dir().then_some(path)
}

/// Whether this process may mount filesystems from loop devices; tries it once.
pub fn can_mount() -> bool {
    static ANSWER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ANSWER.get_or_init(|| {
        let Some(_) = tool("mke2fs") else { return false };
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("probe.img");
        std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
        run("mke2fs", [OsStr::new("-q"), image.as_os_str()]);
        Mount::try_new(&image, "ro").is_ok()
    })
}

/// A filesystem image mounted by the kernel, unmounted when dropped.
pub struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    /// Mounts an image file through a loop device with the given mount options, such as `ro`.
    pub fn new(image: &Path, options: &str) -> Self {
        Self::try_new(image, options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Like [`Mount::new`], but answers what `mount` said where it failed.
    pub fn try_new(image: &Path, options: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("loop,{options}");
        let args = ["-o".as_ref(), options.as_ref(), image.as_os_str(), dir.path().as_os_str()];
        let output = output("mount", args);
        match output.status.success() {
            true => Ok(Self { dir }),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mut output = output("umount", [self.path()]);
        // A process that another test is just starting holds copies of all open files for a moment.
        for _ in 0..100 {
            if output.status.success() || !String::from_utf8_lossy(&output.stderr).contains("busy") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            output = crate::output("umount", [self.path()]);
        }
        if !output.status.success() && !std::thread::panicking() {
            panic!("umount: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
