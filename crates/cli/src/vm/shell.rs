//! `vmwright vm shell`

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::Context;
use vmwright_runtime::VmName;

use super::runtime;
use super::session::{Streams, attach};

/// What `vm shell` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine
    name: VmName,
    /// Log in as this user
    #[arg(short, long)]
    user: Option<String>,
    /// The shell; bash where there is one, and sh otherwise
    #[arg(long)]
    shell: Option<OsString>,
}

/// Opens a shell and answers its exit code.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let tty = io::stdin().is_terminal();
    let terminal = std::env::var("TERM").ok().filter(|_| tty);
    let env = terminal.map(|value| ("TERM".to_owned(), value)).into_iter().collect();
    let streams = Streams { interactive: true, tty, env, workdir: None, user: args.user };
    let command = match args.shell {
        Some(shell) => vec![shell, "-l".into()],
        None => ["/bin/sh", "-c", "command -v bash >/dev/null && exec bash -l; exec sh -l"]
            .map(Into::into)
            .to_vec(),
    };
    let session = runtime()?.exec(&args.name, &streams.request(&command));
    attach(session.with_context(|| format!("cannot open a shell in {}", args.name))?, &streams)
}
