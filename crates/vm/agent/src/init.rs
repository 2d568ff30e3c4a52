//! From the initramfs into the guest's root.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, chroot, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use vmwright_agent_proto::{BOOT_CONFIG_PATH, BootConfig, Mode, Then};

use crate::channel::{Absent, Channel, await_device};
use crate::server::{Reach, Server, Source};
use crate::{root, sys};

/// How long the root device may take to appear.
const ROOT_DEADLINE: Duration = Duration::from_secs(30);
const NEW_ROOT: &str = "/sysroot";
/// Where an init usually is.
const INITS: [&str; 5] = ["/sbin/init", "/usr/lib/systemd/systemd", "/etc/init", "/bin/init", "/bin/sh"];

/// A failure with what was being done.
pub(crate) struct Fatal {
    pub(crate) action: String,
    pub(crate) error: io::Error,
}

fn fatal(action: impl Into<String>) -> impl FnOnce(io::Error) -> Fatal {
    let action = action.into();
    move |error| Fatal { action, error }
}

/// Boots the guest as its configuration says. Comes back only with a failure.
pub(crate) fn boot() -> Fatal {
    match try_boot() {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn try_boot() -> Result<std::convert::Infallible, Fatal> {
    mount_basics().map_err(fatal("cannot mount /proc, /sys and /dev"))?;
    let config = std::fs::read(BOOT_CONFIG_PATH)
        .and_then(|bytes| BootConfig::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into()))
        .map_err(fatal(format!("cannot read {BOOT_CONFIG_PATH}")))?;
    let events = sys::device_events().map_err(fatal("cannot watch for devices"))?;
    for module in &config.modules {
        load(module)?;
    }
    mount_root(&config, &events)?;
    drop(events);
    match &config.then {
        Then::Serve => serve(),
        Then::HandOver { init } => hand_over(init),
    }
}

fn mount_basics() -> io::Result<()> {
    for folder in ["/proc", "/sys", "/dev", "/run", NEW_ROOT] {
        std::fs::create_dir_all(folder)?;
    }
    mount_unless_there("proc", "/proc", sys::MS_NOSUID | sys::MS_NODEV | sys::MS_NOEXEC, "")?;
    mount_unless_there("sysfs", "/sys", sys::MS_NOSUID | sys::MS_NODEV | sys::MS_NOEXEC, "")?;
    mount_unless_there("devtmpfs", "/dev", sys::MS_NOSUID, "mode=0755")
}

/// The kernel may have mounted it itself.
fn mount_unless_there(kind: &str, target: &str, flags: u64, data: &str) -> io::Result<()> {
    match sys::mount(kind, target, kind, flags, data) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        other => other,
    }
}

fn load(module: &str) -> Result<(), Fatal> {
    let outcome = File::open(module).and_then(|file| sys::load_module(file.as_fd()));
    match outcome {
        // It is loaded already, or built into the kernel.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(fatal(format!("cannot load the kernel module {module}"))),
    }
}

fn mount_root(config: &BootConfig, events: &OwnedFd) -> Result<(), Fatal> {
    let device = await_device(events, ROOT_DEADLINE, || root::find(&config.root))
        .map_err(fatal(format!("cannot find the root device {:?}", config.root)))?;
    let device = device.to_string_lossy();
    let flags = if config.read_only { sys::MS_RDONLY } else { 0 };
    sys::mount(&device, NEW_ROOT, &config.fs_type, flags, &config.options)
        .map_err(fatal(format!("cannot mount {device} as {}", config.fs_type)))
}

/// Takes the mounts along into the guest's root.
fn move_mounts() -> Result<(), Fatal> {
    for folder in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{folder}");
        // Absent in roots that were made for containers; a read-only one without it is refused by the move.
        let _ = std::fs::create_dir(&target);
        sys::mount(folder, &target, "", sys::MS_MOVE, "").map_err(fatal(format!("cannot move {folder}")))?;
    }
    Ok(())
}

/// Makes the guest's root the root.
fn switch_root() -> Result<(), Fatal> {
    free_initramfs(Path::new("/"));
    std::env::set_current_dir(NEW_ROOT).map_err(fatal("cannot enter the root"))?;
    sys::mount(".", "/", "", sys::MS_MOVE, "").map_err(fatal("cannot move the root"))?;
    enter(".")
}

fn enter(folder: &str) -> Result<(), Fatal> {
    chroot(folder).and_then(|()| std::env::set_current_dir("/")).map_err(fatal("cannot enter the root"))
}

/// Gives back the memory of the initramfs: its files, which nothing needs any more.
fn free_initramfs(folder: &Path) {
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|metadata| metadata.dev()).ok();
    let own = device(folder);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        // What is mounted there is not of the initramfs.
        if device(&path) != own {
            continue;
        }
        if kind.is_dir() {
            free_initramfs(&path);
        } else if kind.is_file() {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn serve() -> Result<std::convert::Infallible, Fatal> {
    move_mounts()?;
    switch_root()?;
    mount_rest();
    let channel = Channel::port().map_err(|absent| Fatal {
        action: "cannot open the port to the host".into(),
        error: match absent {
            Absent::Busy => io::ErrorKind::ResourceBusy.into(),
            Absent::Failed(error) => error,
        },
    })?;
    let server = Server::new(Source::Fixed(channel), Mode::Init, Reach::Kernel);
    let error = match server.and_then(Server::run) {
        Ok(()) => io::ErrorKind::UnexpectedEof.into(),
        Err(error) => error,
    };
    Err(Fatal { action: "cannot serve the host".into(), error })
}

/// What an init would set up; a guest can do without any one of these.
fn mount_rest() {
    let hardened = sys::MS_NOSUID | sys::MS_NODEV;
    let mounts = [
        ("devpts", "/dev/pts", sys::MS_NOSUID | sys::MS_NOEXEC, "mode=620,gid=5,ptmxmode=666"),
        ("tmpfs", "/dev/shm", hardened, "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", hardened | sys::MS_NOEXEC, ""),
        ("tmpfs", "/run", hardened, "mode=755"),
    ];
    for (kind, target, flags, data) in mounts {
        let _ = std::fs::create_dir(target);
        if let Err(error) = mount_unless_there(kind, target, flags, data) {
            crate::report(format_args!("cannot mount {target}: {error}"));
        }
    }
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (target, link) in links {
        let _ = symlink(target, link);
    }
    if let Err(error) = sys::raise_loopback() {
        crate::report(format_args!("cannot raise the loopback interface: {error}"));
    }
    let mut name = Vec::new();
    if let Ok(file) = File::open("/etc/hostname")
        && file.take(64).read_to_end(&mut name).is_ok()
        && let name = name.trim_ascii()
        && !name.is_empty()
    {
        let _ = sys::set_hostname(name);
    }
}

fn hand_over(init: &str) -> Result<std::convert::Infallible, Fatal> {
    move_mounts()?;
    // The companion finds the new root as its working directory: its path ends when process 1 moves it.
    std::env::set_current_dir(NEW_ROOT).map_err(fatal("cannot enter the root"))?;
    if sys::fork().map_err(fatal("cannot start the companion"))? == 0 {
        companion()
    }
    switch_root()?;
    let inits: &[&str] = if init.is_empty() { &INITS } else { &[init] };
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for init in inits.iter().filter(|init| Path::new(init).exists()) {
        failure = Command::new(init).env_clear().envs(init_environment()).exec();
    }
    Err(Fatal { action: format!("cannot execute the guest's init ({})", inits.join(", ")), error: failure })
}

/// What the kernel gives to process 1.
fn init_environment() -> [(&'static str, &'static str); 2] {
    [("HOME", "/"), ("TERM", "linux")]
}

/// Lives on beside the guest's init, in the guest's root.
fn companion() -> ! {
    sys::new_session();
    let outcome = enter(".").map_err(|failure| failure.error).and_then(|()| {
        release_console();
        mark_as_survivor()?;
        let channel = match Channel::port() {
            Ok(channel) => channel,
            Err(Absent::Busy) => return Ok(()),
            Err(Absent::Failed(error)) => return Err(error),
        };
        Server::new(Source::Fixed(channel), Mode::Companion, Reach::Init)?.run()
    });
    if let Err(error) = &outcome {
        crate::report(format_args!("the companion ends: {error}"));
    }
    std::process::exit(i32::from(outcome.is_err()))
}

/// The console belongs to the guest's init.
fn release_console() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for fd in 0..=2 {
            let _ = sys::duplicate_to(&null, fd);
        }
    }
}

/// Makes the first letter of the program's name an `@`: systemd leaves such processes alive to the last.
fn mark_as_survivor() -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The fields after the program's name, which may itself contain blanks: arg_start is the 48th of all.
    let fields = stat.rsplit_once(')').ok_or_else(invalid)?.1;
    let start: u64 =
        fields.split_ascii_whitespace().nth(45).ok_or_else(invalid)?.parse().map_err(|_| invalid())?;
    let memory = File::options().write(true).open("/proc/self/mem")?;
    memory.write_all_at(b"@", start)
}

/// Writes to the kernel's log, which the console shows.
pub(crate) fn kernel_log(line: &str) -> io::Result<()> {
    File::options().write(true).open("/dev/kmsg")?.write_all(line.as_bytes())
}
