//! The end of a guest.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use vmwright_agent_proto::{Goodbye, Shutdown};

use crate::sys;

/// How long processes may take to end when they are asked to.
const POLITE: Duration = Duration::from_secs(3);
/// How long the kernel may take to end them.
const HARD: Duration = Duration::from_secs(2);
/// systemd's signals for poweroff.target and reboot.target, counted from SIGRTMIN.
const SYSTEMD_POWER_OFF: i32 = 4;
const SYSTEMD_REBOOT: i32 = 5;

/// What the host is told.
pub(crate) fn reason(how: Shutdown) -> Goodbye {
    match how {
        Shutdown::PowerOff => Goodbye::PowerOff,
        Shutdown::Reboot => Goodbye::Reboot,
    }
}

/// Tells the guest's own init to end the guest; answers the command that does so, where one was needed.
pub(crate) fn ask_init(how: Shutdown) -> io::Result<Option<Child>> {
    // The documented sign that systemd is process 1.
    if Path::new("/run/systemd/system").exists() {
        let signal = match how {
            Shutdown::PowerOff => SYSTEMD_POWER_OFF,
            Shutdown::Reboot => SYSTEMD_REBOOT,
        };
        return sys::kill(1, sys::realtime_signal(signal)).map(|()| None);
    }
    let command = match how {
        Shutdown::PowerOff => "/sbin/poweroff",
        Shutdown::Reboot => "/sbin/reboot",
    };
    Command::new(command).spawn().map(Some)
}

/// Ends all processes, writes the disks and ends the machine. Comes back only if the kernel refuses.
pub(crate) fn end_machine(signals: &File, power_off: bool) -> io::Error {
    sys::sync();
    for (signal, patience) in [(sys::SIGTERM, POLITE), (sys::SIGKILL, HARD)] {
        // Fails where no process is left, which is what is wanted.
        let _ = sys::kill(-1, signal);
        if await_children(signals, patience) {
            break;
        }
    }
    sys::sync();
    // A root that is read-only is clean. One that cannot become so has been written out at least.
    let _ = sys::mount("", "/", "", sys::MS_REMOUNT | sys::MS_RDONLY, "");
    sys::reboot(power_off)
}

/// Reaps until no child is left; false where the time was too short.
fn await_children(mut signals: &File, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        while sys::reap().is_some() {}
        if !sys::has_children() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let _ = sys::wait_readable(signals, left.as_millis() as i32 + 1);
        let _ = signals.read(&mut [0; 4096]);
    }
}
