//! `vmwright fs resize`

use anyhow::Context;
use vmwright_guest::fs::{NewSize, Purpose, Target};

use super::source::{Editing, Place};
use crate::failure::Failure;
use crate::output::{json, line, parse_size, size};

/// What `fs resize` takes.
#[derive(clap::Args)]
#[command(
    after_help = "The partition and the image stay as they are: to make a filesystem larger than its partition, lengthen the \
                  image with `vmwright disk resize` and then the partition; to make an image smaller, shrink the \
                  filesystem first."
)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// The new size: 20G, a change such as +5G or -5G, max for all of the partition, min for as little as can be
    #[arg(short, long, default_value = "max", allow_hyphen_values = true, value_parser = Size::parse)]
    size: Size,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    editing: Editing,
}

/// A new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    To(u64),
    Grow(u64),
    Shrink(u64),
    Max,
    Min,
}

impl Size {
    fn parse(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix('+'), text.strip_prefix('-')) {
            ("max", ..) => Ok(Self::Max),
            ("min", ..) => Ok(Self::Min),
            (_, Some(more), _) => parse_size(more).map(Self::Grow),
            (.., Some(less)) => parse_size(less).map(Self::Shrink),
            _ => parse_size(text).map(Self::To),
        }
    }

    /// What it comes to for a filesystem of some bytes.
    fn of(self, old: u64) -> Option<NewSize> {
        match self {
            Self::To(bytes) => Some(NewSize::Bytes(bytes)),
            Self::Grow(more) => old.checked_add(more).map(NewSize::Bytes),
            Self::Shrink(less) => old.checked_sub(less).map(NewSize::Bytes),
            Self::Max => Some(NewSize::Largest),
            Self::Min => Some(NewSize::Smallest),
        }
    }
}

/// Resizes the filesystem.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot resize the filesystem on {}", args.place.shown());
    let change = |target: &Target| {
        let old = target.info()?.description.usage.size;
        let to = args.size.of(old).ok_or_else(|| {
            Failure::usage(format!("the filesystem has {old} bytes, which this change does not fit"))
        })?;
        let room = target.volume().size;
        if let NewSize::Bytes(bytes) = to
            && bytes > room
        {
            let what = if target.volume().partition.is_some() { "partition" } else { "disk" };
            return Err(Failure::refused(format!(
                "its {what} has only {} ({room} bytes): make that larger first",
                size(room)
            )));
        }
        Ok(target.resize(to)?)
    };
    let edited = args.editing.edit(&args.place, Purpose::Filesystem, args.json, change);
    let done = edited.with_context(attempt)?;
    if args.json {
        return json(&done);
    }
    let (old, new) = (size(done.old_size), size(done.new_size));
    if done.old_size == done.new_size {
        return line(format!("the filesystem has {new} ({} bytes) already", done.new_size));
    }
    let verb = if args.editing.is_dry_run() { "would go" } else { "went" };
    line(format!(
        "the filesystem {verb} from {old} ({} bytes) to {new} ({} bytes)",
        done.old_size, done.new_size
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_relative_or_as_far_as_it_goes() {
        assert_eq!(Size::parse("20G").unwrap().of(1), Some(NewSize::Bytes(20 << 30)));
        assert_eq!(Size::parse("+1M").unwrap().of(1 << 20), Some(NewSize::Bytes(2 << 20)));
        assert_eq!(Size::parse("-1M").unwrap().of(3 << 20), Some(NewSize::Bytes(2 << 20)));
        assert_eq!(Size::parse("-2M").unwrap().of(1 << 20), None);
        assert_eq!(Size::parse("max").unwrap().of(1), Some(NewSize::Largest));
        assert_eq!(Size::parse("min").unwrap().of(1), Some(NewSize::Smallest));
        assert!(Size::parse("much").is_err());
    }
}
