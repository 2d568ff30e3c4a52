//! `vmwright disk resize`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::Disk;

use super::source::Editing;
use crate::failure::Failure;
use crate::output::{line, parse_size, size};

/// What `disk resize` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Its new size such as 20G, or a change such as +5G or -5G
    #[arg(allow_hyphen_values = true, value_parser = Change::parse)]
    size: Change,
    /// Let the image become smaller: what lies past its new end is lost
    #[arg(long)]
    shrink: bool,
    #[command(flatten)]
    editing: Editing,
}

/// A new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    To(u64),
    Grow(u64),
    Shrink(u64),
}

impl Change {
    fn parse(text: &str) -> Result<Self, String> {
        match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => parse_size(more).map(Self::Grow),
            (_, Some(less)) => parse_size(less).map(Self::Shrink),
            _ => parse_size(text).map(Self::To),
        }
    }

    fn apply(self, old: u64) -> Option<u64> {
        let new = match self {
            Self::To(new) => Some(new),
            Self::Grow(more) => old.checked_add(more),
            Self::Shrink(less) => old.checked_sub(less),
        };
        // A disk consists of whole sectors.
        new?.checked_next_multiple_of(512)
    }
}

/// Changes the size of the disk that a guest sees.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot resize {}", args.image.display());
    let change = |image: &vmwright_image::Image| {
        let old = image.len();
        let new = args.size.apply(old).ok_or_else(|| {
            Failure::usage(format!("the disk has {old} bytes, which this change does not fit"))
        })?;
        if new < old && !args.shrink {
            return Err(Failure::refused(format!(
                "the disk would shrink from {} to {}, and what lies past its new end be lost: shrink the partitions \
                 and filesystems on it first, then give --shrink",
                size(old),
                size(new)
            )));
        }
        if new != old {
            image.set_len(new)?;
        }
        Ok((old, new))
    };
    let (old, new) = args.editing.edit(&args.image, true, change).with_context(attempt)?;
    let verb = if args.editing.is_dry_run() { "would go" } else { "went" };
    line(format!("the disk {verb} from {} ({old} bytes) to {} ({new} bytes)", size(old), size(new)))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_relative() {
        assert_eq!(Change::parse("20G").unwrap().apply(1), Some(20 << 30));
        assert_eq!(Change::parse("+1M").unwrap().apply(1 << 20), Some(2 << 20));
        assert_eq!(Change::parse("-1M").unwrap().apply(3 << 20), Some(2 << 20));
        assert_eq!(Change::parse("-2M").unwrap().apply(1 << 20), None);
        assert_eq!(Change::parse("1000").unwrap().apply(0), Some(1024));
        assert!(Change::parse("much").is_err());
    }
}
