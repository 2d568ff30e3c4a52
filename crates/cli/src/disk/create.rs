//! `vmwright disk create`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::HostFile;
use vmwright_image::{BackingFile, Compat, CreateOptions, Format, Preallocation, describe};

use super::{FormatName, choice};
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
    let mut options = CreateOptions::new(args.format.into(), bytes);
    options.backing = base.map(|(backing, _)| backing);
    for option in &args.options {
        apply_option(&mut options, option).with_context(attempt)?;
    }
    if args.dry_run {
        line(format!("would create {} ({}, {})", args.image.display(), options.format, size(bytes)))?;
        return Ok(ExitCode::SUCCESS);
    }
    vmwright_image::create(&args.image, &options, args.force).with_context(attempt)?;
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

fn apply_option(options: &mut CreateOptions, option: &str) -> anyhow::Result<()> {
    let Some((key, value)) = option.split_once('=') else {
        return Err(Failure::usage(format!("the option {option:?} is not of the form key=value")));
    };
    if options.format != Format::Qcow2 {
        return Err(Failure::usage(format!("the {} format has no option {key}", options.format)));
    }
    let number = || parse_size(value).map_err(Failure::usage);
    let wrong = |allowed: &str| Failure::usage(format!("{key} is {allowed}, not {value:?}"));
    let qcow2 = &mut options.qcow2;
    match key {
        "cluster_size" => qcow2.cluster_size = u32::try_from(number()?).map_err(|_| wrong("512 to 2M"))?,
        "refcount_bits" => qcow2.refcount_bits = u32::try_from(number()?).map_err(|_| wrong("1 to 64"))?,
        "compat" => {
            qcow2.compat = match value {
                "0.10" | "v2" => Compat::V0_10,
                "1.1" | "v3" => Compat::V1_1,
                _ => return Err(wrong("0.10 or 1.1")),
            }
        }
        "lazy_refcounts" => {
            qcow2.lazy_refcounts = match value {
                "on" | "true" => true,
                "off" | "false" => false,
                _ => return Err(wrong("on or off")),
            }
        }
        "preallocation" => {
            qcow2.preallocation = match value {
                "off" => Preallocation::Off,
                "metadata" => Preallocation::Metadata,
                _ => return Err(wrong("off or metadata")),
            }
        }
        _ => return Err(Failure::usage(format!("the qcow2 format has no option {key}"))),
    }
    Ok(())
}
