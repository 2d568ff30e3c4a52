//! `vmwright vm logs`

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_runtime::VmName;

use super::runtime;
use crate::failure::escape;

/// What `vm logs` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine
    name: VmName,
    /// Go on with what is printed until the machine ends
    #[arg(short, long)]
    follow: bool,
}

/// Shows the console: as it is into a file or pipe, with control characters made visible on a terminal.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let on_terminal = out.is_terminal();
    let mut show = |bytes: &[u8]| {
        let written = match on_terminal {
            true => {
                let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n").replace('\r', "\n");
                out.write_all(escape(&text).as_bytes())
            }
            false => out.write_all(bytes),
        };
        match written.and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let shown = runtime()?.logs(&args.name, args.follow, &mut show);
    shown.with_context(|| format!("cannot show the console of {}", args.name))?;
    Ok(ExitCode::SUCCESS)
}
