//! `vmwright completion SHELL`

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

/// What `completion` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell to complete for
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    clap_complete::generate(
        args.shell,
        &mut crate::Cli::command(),
        "vmwright",
        &mut std::io::stdout().lock(),
    );
    Ok(ExitCode::SUCCESS)
}
