//! `vmwright disk create`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::Disk;
use vmwright_image::chain::{ChainOptions, backing_name, open};
use vmwright_image::{BackingFile, CreateOptions, Image, ParentId};

use super::{FormatName, choice, options, or_force};
use crate::failure::Failure;
use crate::gate::Backing;
use crate::output::{line, parse_size, size};
use crate::secret::Secret;

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
    /// An option of the format, by the name that qemu-img has for it; a wrong one is answered with the list
    #[arg(short, long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Replace an image that exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    secret: Secret,
    #[command(flatten)]
    gate: Backing,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
}

/// Makes the image.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot create {}", args.image.display());
    let base = args.backing.as_deref().map(|base| open_base(args, base)).transpose()?;
    let size_wanted = args.size.or(base.as_ref().map(|base| base.image.len()));
    let Some(bytes) = size_wanted else {
        return Err(Failure::usage("a size is needed, such as 20G")).with_context(attempt);
    };
    let layout = options::layout(args.format.into(), &args.options).with_context(attempt)?;
    let mut wanted = CreateOptions::laid_out(layout, bytes);
    if let Some(base) = &base {
        wanted.backing = Some(base.backing.clone());
        wanted.parent = ParentId::of(&base.image).with_context(attempt)?;
    }
    if args.dry_run {
        line(format!("would create {} ({}, {})", args.image.display(), wanted.layout.format(), size(bytes)))?;
        return Ok(ExitCode::SUCCESS);
    }
    if wanted.layout.is_encrypted() {
        let what = format!("passphrase for {}", args.image.display());
        wanted.secret = Some(args.secret.for_new(&what).with_context(attempt)?);
    }
    or_force(vmwright_image::create(&args.image, &wanted, args.force)).with_context(attempt)?;
    Ok(ExitCode::SUCCESS)
}

/// What an overlay shows until it is written.
struct Base {
    /// As the overlay is to name it.
    backing: BackingFile,
    /// The image, locked until the overlay is made, so that it cannot take the place of its own base.
    image: Image,
}

/// Looks at the base. A relative name is relative to the overlay.
fn open_base(args: &Args, base: &Path) -> anyhow::Result<Base> {
    let folder = args.image.parent().unwrap_or(Path::new(""));
    let path = folder.join(base);
    let attempt = || format!("cannot use {} as the base", path.display());
    let how = ChainOptions { without_backing: true, ..ChainOptions::read_only() };
    let gate = args.gate.gate(&path, args.backing_format.is_some()).with_context(attempt)?;
    let image = open(&path, choice(args.backing_format), &gate, how).with_context(attempt)?;
    let name = backing_name(base).with_context(attempt)?;
    let backing = BackingFile { name, format: Some(image.format().qemu_name().to_owned()) };
    Ok(Base { backing, image })
}
