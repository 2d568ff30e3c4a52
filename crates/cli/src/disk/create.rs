//! `vmwright disk create`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::HostFile;
use vmwright_image::{BackingFile, CreateOptions, describe};

use super::{FormatName, choice, options, or_force};
use crate::failure::Failure;
use crate::output::{line, parse_size, size};

/// What `disk create` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image to make
    image: PathBuf,
    /// Its size, such as 20G; an overlay takes its base's where none is given
    #[arg(value_parser = parse_size)]
    size: Option<u64>,
    /// The format
    #[arg(short = 'O', long, value_enum, default_value = "qcow2")]
    format: FormatName,
    /// Make an overlay: what is not written to the new image reads from this one
    #[arg(short, long, value_name = "BASE")]
    backing: Option<PathBuf>,
    /// The format of the base, instead of looking at its first bytes
    #[arg(short = 'F', long, value_enum, requires = "backing")]
    backing_format: Option<FormatName>,
    /// An option of the format: cluster_size, compat, refcount_bits, lazy_refcounts, preallocation
    #[arg(short, long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Replace an image that exists
    #[arg(long)]
    force: bool,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
}

/// Makes the image.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot create {}", args.image.display());
    let base = args.backing.as_deref().map(|base| describe_base(args, base)).transpose()?;
    let size_wanted = args.size.or(base.as_ref().map(|(_, size)| *size));
    let Some(bytes) = size_wanted else {
        return Err(Failure::usage("a size is needed, such as 20G")).with_context(attempt);
    };
    let mut wanted = CreateOptions::new(args.format.into(), bytes);
    wanted.backing = base.map(|(backing, _)| backing);
    for option in &args.options {
        options::apply(args.format.into(), &mut wanted.qcow2, option).with_context(attempt)?;
    }
    if args.dry_run {
        line(format!("would create {} ({}, {})", args.image.display(), wanted.format, size(bytes)))?;
        return Ok(ExitCode::SUCCESS);
    }
    or_force(vmwright_image::create(&args.image, &wanted, args.force)).with_context(attempt)?;
    Ok(ExitCode::SUCCESS)
}

/// The base as the overlay is to name it, and its virtual size. A relative name is relative to the overlay.
fn describe_base(args: &Args, base: &Path) -> anyhow::Result<(BackingFile, u64)> {
    let folder = args.image.parent().unwrap_or(Path::new(""));
    let path = folder.join(base);
    let attempt = || format!("cannot use {} as the base", path.display());
    let file = HostFile::open(&path, true).with_context(attempt)?;
    let info = describe(&file, choice(args.backing_format)).with_context(attempt)?;
    let name = base.to_str().with_context(|| format!("the name {} is not UTF-8", base.display()))?;
    Ok((
        BackingFile { name: name.to_owned(), format: Some(info.format.name().to_owned()) },
        info.virtual_size,
    ))
}
