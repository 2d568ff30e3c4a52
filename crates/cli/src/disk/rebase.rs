//! `vmwright disk rebase`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::{Access, Sharing, Transaction};
use vmwright_image::chain::{NewBase, RebaseOptions, rebase, resolve};
use vmwright_image::describe;

use super::bar::Bar;
use super::source::Editing;
use super::{FormatName, choice};
use crate::failure::Failure;
use crate::output::{line, size};

/// What `disk rebase` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The overlay
    image: PathBuf,
    /// The new base, as the overlay is to name it: relative to the overlay's folder where it is relative
    #[arg(short, long, value_name = "BASE", required_unless_present = "no_base")]
    base: Option<String>,
    /// The format of the new base, instead of looking at its first bytes
    #[arg(short = 'F', long, value_enum, requires = "base", value_name = "FORMAT")]
    base_format: Option<FormatName>,
    /// Copy everything into the overlay, so that it needs no base
    #[arg(long, conflicts_with = "base")]
    no_base: bool,
    /// Only change the name in the overlay, since the same base has another name now
    #[arg(short = 'u', long)]
    name_only: bool,
    #[command(flatten)]
    editing: Editing,
}

/// Puts an overlay onto another base.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot rebase {}", args.image.display());
    args.editing.allow(&args.image).with_context(attempt)?;
    let base = args.base.as_ref().map(|name| new_base(args, name)).transpose().with_context(attempt)?;
    let onto = args.base.as_ref().map_or_else(|| "no base".to_owned(), |base| format!("the base {base}"));
    if args.editing.is_dry_run() {
        line(format!("would put {} onto {onto}", args.image.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let opening = args.editing.opening();
    let how = opening.chain(&args.image).with_context(attempt)?;
    let options = RebaseOptions { base, name_only: args.name_only, secret: how.secret, lenient: how.lenient };
    let gate = opening.gate(&args.image).with_context(attempt)?;
    let bar = Bar::new();
    let done = rebase(&args.image, opening.choice(), &gate, &options, &|done, total| bar.show(done, total));
    bar.end();
    let done = done.with_context(attempt)?;
    line(format!("{} lies over {onto} now; {} were copied into it", args.image.display(), size(done.bytes)))?;
    Ok(ExitCode::SUCCESS)
}

fn new_base(args: &Args, name: &str) -> anyhow::Result<NewBase> {
    if let Some(format) = args.base_format {
        return Ok(NewBase { name: name.to_owned(), format: format.into() });
    }
    let path = resolve(&args.image, name)?;
    let looked = || -> anyhow::Result<_> {
        let how = args.editing.opening().transaction().sharing(Sharing::Forced);
        Ok(describe(&*Transaction::begin(how).open(&path, Access::Read)?, choice(None))?)
    };
    match looked() {
        Ok(info) => Ok(NewBase { name: name.to_owned(), format: info.format }),
        Err(_) if args.name_only => {
            Err(Failure::usage("the new base cannot be looked at: give its format with --base-format"))
        }
        Err(error) => Err(error),
    }
}
