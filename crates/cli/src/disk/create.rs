//! `vmwright disk create`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use vmwright_disk::{Access, Disk, Transaction, TransactionOptions};
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
    let size_wanted = args.size.or(base.as_ref().map(|base| base.size));
    let Some(bytes) = size_wanted else {
        return Err(Failure::usage("a size is needed, such as 20G")).with_context(attempt);
    };
    let mut wanted = CreateOptions::new(args.format.into(), bytes);
    wanted.backing = base.as_ref().map(|base| base.backing.clone());
    for option in &args.options {
        options::apply(&mut wanted.layout, option).with_context(attempt)?;
    }
    if args.dry_run {
        line(format!("would create {} ({}, {})", args.image.display(), wanted.layout.format(), size(bytes)))?;
        return Ok(ExitCode::SUCCESS);
    }
    or_force(vmwright_image::create(&args.image, &wanted, args.force)).with_context(attempt)?;
    Ok(ExitCode::SUCCESS)
}

/// What an overlay shows until it is written.
struct Base {
    /// As the overlay is to name it.
    backing: BackingFile,
    /// Its virtual size.
    size: u64,
    /// Locked until the overlay is made, so that it cannot take the place of its own base.
    _file: Arc<dyn Disk>,
}

/// Looks at the base. A relative name is relative to the overlay.
fn describe_base(args: &Args, base: &Path) -> anyhow::Result<Base> {
    let folder = args.image.parent().unwrap_or(Path::new(""));
    let path = folder.join(base);
    let attempt = || format!("cannot use {} as the base", path.display());
    let transaction = Transaction::begin(TransactionOptions::default());
    let file = transaction.open(&path, Access::Read).with_context(attempt)?;
    let info = describe(&*file, choice(args.backing_format)).with_context(attempt)?;
    let name = base.to_str().with_context(|| format!("the name {} is not UTF-8", base.display()))?;
    let backing = BackingFile { name: name.to_owned(), format: Some(info.format.qemu_name().to_owned()) };
    Ok(Base { backing, size: info.virtual_size, _file: file })
}
