//! The static program that runs inside a guest.
//!
//! As process 1 it boots the guest out of an initramfs; otherwise it serves a host over the virtio-serial
//! port, or over a unix socket when it is given one.
//!
//! ```text
//! vmwright-agent [--connect-unix PATH | --listen-unix PATH]
//! ```
#![deny(unsafe_code)]

mod channel;
mod files;
mod init;
mod process;
mod root;
mod server;
mod shutdown;
#[allow(unsafe_code, reason = "the calls to the kernel, each justified")]
mod sys;
mod task;
mod users;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use vmwright_agent_proto::Mode;

use channel::{Absent, Channel};
use server::{Reach, Server, Source};

/// Whether the agent was started by the kernel, or by itself as a companion.
static OWNS_MACHINE: AtomicBool = AtomicBool::new(false);

const USAGE: &str = "usage: vmwright-agent [--connect-unix PATH | --listen-unix PATH]";

fn main() -> ExitCode {
    if std::process::id() == 1 && Path::new(vmwright_agent_proto::BOOT_CONFIG_PATH).exists() {
        OWNS_MACHINE.store(true, Ordering::Relaxed);
        let failure = init::boot();
        report(format_args!("{}: {}", failure.action, failure.error));
        report(format_args!("the machine cannot be ended: {}", sys::reboot(true)));
        return ExitCode::FAILURE;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (source, reach) = match args[..] {
        [] => (Channel::port().map(Source::Fixed), Reach::Init),
        ["--connect-unix", path] => {
            let channel = Channel::connect(Path::new(path)).map_err(Absent::Failed);
            (channel.map(Source::Fixed), Reach::Process)
        }
        ["--listen-unix", path] => (channel::listen(Path::new(path)).map(Source::Listener), Reach::Process),
        _ => {
            report(format_args!("{USAGE}"));
            return ExitCode::from(2);
        }
    };
    let outcome = match source {
        Ok(source) => Server::new(source, Mode::Service, reach).and_then(Server::run),
        // Another agent serves the host already.
        Err(Absent::Busy) => return ExitCode::SUCCESS,
        Err(Absent::Failed(error)) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says something to whoever looks at the console, or at the standard error of a service.
fn report(line: std::fmt::Arguments<'_>) {
    let line = format!("vmwright-agent: {line}\n");
    // As process 1 or its companion, the kernel's log is what the host sees. There is nobody to tell else.
    if !OWNS_MACHINE.load(Ordering::Relaxed) || init::kernel_log(&line).is_err() {
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
