//! The smallest command line over the runtime: what tests start, kill and look at from outside.
//!
//! ```text
//! vm HOME create NAME DISK AGENT     a fake machine, played by the program AGENT
//! vm HOME start|stop|delete NAME
//! vm HOME run DISK AGENT             boots, says so, and waits to be killed or for its input to end
//! vm --listen-unix SOCKET            is an agent that sends nothing but nonsense, as fast as it can
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::{Read, Write};
use std::process::ExitCode;

use vmwright_runtime::{
    BackendChoice, CreateRequest, Options, Result, RunRequest, Runtime, StartOptions, StopOptions, VmName,
    shim,
};
use vmwright_vmm::fake::Fake;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|first| first == shim::ARGUMENT).is_some() {
        return shim::main(args);
    }
    let args: Vec<String> = args.filter_map(|arg| arg.into_string().ok()).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<()> {
    if let ["--listen-unix", socket] = args {
        return babble(socket);
    }
    let home = args.first().copied().unwrap_or_default();
    let runtime = Runtime::open(Options { binary: std::env::current_exe().ok(), ..Options::new(home) })?;
    match args.get(1..).unwrap_or_default() {
        ["create", name, disk, agent] => {
            runtime.create(&CreateRequest { name: Some(name.parse()?), ..fake(disk, agent) }).map(drop)
        }
        ["start", name] => runtime.start(&vm(name)?, &StartOptions::default()).map(drop),
        ["stop", name] => runtime.stop(&vm(name)?, &StopOptions::default()).map(drop),
        ["delete", name] => runtime.delete(&vm(name)?, false),
        ["run", disk, agent] => {
            let ephemeral = runtime.run(&RunRequest::new(fake(disk, agent)))?;
            println!("{}", ephemeral.name());
            // Whoever reads it looks at the pipe, not at this.
            let _ = std::io::stdout().flush();
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            ephemeral.finish()
        }
        _ => {
            eprintln!("usage: vm HOME create|start|stop|delete|run …");
            Ok(())
        }
    }
}

/// Answers every connection with bytes that are no protocol, without an end.
fn babble(socket: &str) -> Result<()> {
    let Ok(listener) = std::os::unix::net::UnixListener::bind(socket) else { return Ok(()) };
    let nonsense: Vec<u8> =
        (0..65_536u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for mut stream in listener.incoming().flatten() {
        while stream.write_all(&nonsense).is_ok() {}
    }
    Ok(())
}

fn vm(name: &str) -> Result<VmName> {
    name.parse()
}

fn fake(disk: &str, agent: &str) -> CreateRequest {
    CreateRequest { backend: BackendChoice::Fake(Fake::new(agent)), ..CreateRequest::new(disk) }
}
