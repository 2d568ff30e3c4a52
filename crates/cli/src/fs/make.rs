//! `vmwright fs make`

use anyhow::Context;
use serde::Serialize;
use uuid::{Builder, Uuid};
use vmwright_disk::Disk;
use vmwright_ext4::make::{Generation, Made, MakeOptions};
use vmwright_guest::fs::{Purpose, Target};
use vmwright_image::{CreateOptions, create_filled};
use vmwright_rootfs::{DiskOptions, Populated, Source, build, fill, fitted};

use super::check::Kind;
use super::source::{Editing, Place};
use super::uuid::New;
use crate::disk::{FormatName, options, or_force};
use crate::failure::Failure;
use crate::filling::{Filling, Size, stamp};
use crate::output::{json, line, parse_size, size};

/// What a new filesystem is.
#[derive(clap::Args)]
pub(crate) struct Making {
    /// Which filesystem
    #[arg(short = 't', long = "type", visible_alias = "fs", value_enum, default_value = "ext4")]
    kind: Kind,
    /// Its label
    #[arg(short = 'L', long)]
    label: Option<String>,
    /// Its UUID, or how one is made: random, time
    #[arg(long, default_value = "random", value_parser = New::parse)]
    uuid: New,
    /// The size of a block: 1K to 64K
    #[arg(short, long, value_parser = parse_size)]
    block_size: Option<u64>,
    /// Any other option of mke2fs, such as features=^has_journal, inode_ratio=65536; a wrong one is answered with the list
    #[arg(short, long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
}

/// What `fs make` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    making: Making,
    #[command(flatten)]
    filling: Filling,
    /// How long the new filesystem is; where there is no image, one of this size is made. auto: as small as --from allows
    #[arg(long, value_parser = Size::parse)]
    size: Option<Size>,
    /// The format of an image that is made
    #[arg(short = 'O', long, value_enum, default_value = "raw")]
    output_format: FormatName,
    /// Make it even though something is there, which is lost
    #[arg(long)]
    replace: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    editing: Editing,
}

#[derive(Serialize)]
struct Answer {
    #[serde(rename = "type")]
    kind: &'static str,
    uuid: String,
    size: u64,
    free: u64,
    block_size: u32,
    blocks: u64,
    groups: u32,
    inodes: u32,
    inode_size: u16,
    journal_blocks: Option<u64>,
    features: Vec<&'static str>,
    files: u64,
    directories: u64,
    bytes: u64,
}

/// Makes the filesystem.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot make a filesystem on {}", args.place.shown());
    let mut sources = args.filling.sources(&args.place.image).with_context(attempt)?;
    let (length, options) = sized(args, &mut sources).with_context(attempt)?;
    let fresh = !args.place.image.exists();
    if fresh {
        let bytes = length.ok_or_else(|| Failure::usage("there is no such image: --size makes one"));
        let bytes = bytes.with_context(attempt)?;
        if args.place.part.is_some() {
            return Err(Failure::usage("a new image has no partitions")).with_context(attempt);
        }
        if args.editing.is_dry_run() {
            return line(format!("would create {} ({})", args.place.image.display(), size(bytes)));
        }
        return print(fresh_image(args, bytes, options, &mut sources).with_context(attempt)?, args);
    }
    let made = make(args, options, &mut sources);
    print(made.with_context(attempt)?, args)
}

/// Makes an image that is the filesystem and nothing else.
fn fresh_image(
    args: &Args,
    bytes: u64,
    mut filesystem: MakeOptions,
    sources: &mut [Box<dyn Source>],
) -> anyhow::Result<(Made, Populated)> {
    filesystem.assume_zeroed = true;
    filesystem.length = None;
    filesystem.now = stamp()?;
    let wanted = DiskOptions {
        scheme: None,
        disk_id: Uuid::nil(),
        partition_id: Uuid::nil(),
        filesystem,
        populate: args.filling.options()?,
    };
    let layout = options::layout(args.output_format.into(), &[])?;
    let mut create = CreateOptions::laid_out(layout, bytes);
    if create.layout.is_encrypted() {
        create.secret = Some(args.editing.opening().new_secret(&args.place.image)?);
    }
    let mut made = None;
    or_force(create_filled::<anyhow::Error>(&args.place.image, &create, false, |image| {
        let disk: std::sync::Arc<dyn Disk> = image;
        let built = build(&disk, sources, &wanted)?;
        made = Some((built.made, built.populated));
        Ok(())
    }))?;
    made.context("nothing was made")
}

/// How long the filesystem is, if that is said, and all of its options.
fn sized(args: &Args, sources: &mut [Box<dyn Source>]) -> anyhow::Result<(Option<u64>, MakeOptions)> {
    let length = match args.size {
        Some(Size::Bytes(bytes)) => Some(bytes),
        None => None,
        Some(Size::Auto) if sources.is_empty() => {
            return Err(Failure::usage("--size auto needs --from"));
        }
        Some(Size::Auto) => {
            let options = fitted(sources, &args.making.options(None)?, args.filling.slack)?;
            return Ok((options.length, options));
        }
    };
    Ok((length, args.making.options(length)?))
}

fn make(
    args: &Args,
    mut options: MakeOptions,
    sources: &mut [Box<dyn Source>],
) -> anyhow::Result<(Made, Populated)> {
    args.editing.edit(&args.place, Purpose::Space, args.json, |target: &Target| {
        let there = target.volume().content.as_ref().filter(|_| !args.replace);
        if let Some(content) = there {
            let volume = target.volume();
            let place = if volume.partition.is_some() { volume.device.as_str() } else { "the disk" };
            return Err(Failure::refused(format!(
                "{place} holds {} already, which would be lost: --replace makes it anyway",
                content.kind
            )));
        }
        options.now = stamp()?;
        let made = target.make_ext(&options)?;
        let mut populated = Populated::default();
        if !sources.is_empty() {
            let mut filesystem = target.filesystem()?;
            populated = fill(&mut *filesystem, sources, &args.filling.options()?)?;
            filesystem.sync()?;
        }
        Ok((made, populated))
    })
}

impl Making {
    /// The options for the library; `length` is that of the filesystem, all of its place if `None`.
    pub(crate) fn options(&self, length: Option<u64>) -> anyhow::Result<MakeOptions> {
        let uuid = self.uuid.make()?;
        let mut options = MakeOptions {
            generation: match self.kind {
                Kind::Ext2 => Generation::Ext2,
                Kind::Ext3 => Generation::Ext3,
                Kind::Ext4 => Generation::Ext4,
            },
            label: self.label.clone().unwrap_or_default().into_bytes(),
            uuid,
            hash_seed: self.derived(uuid, 0)?,
            length,
            ..MakeOptions::default()
        };
        if let Some(bytes) = self.block_size {
            options.block_size =
                Some(u32::try_from(bytes).map_err(|_| Failure::usage("the block size is too large"))?);
        }
        for option in &self.options {
            let Some((key, value)) = option.split_once('=') else {
                return Err(Failure::usage(format!("the option {option:?} is not of the form key=value")));
            };
            options.set(key, value).map_err(|error| {
                let known: Vec<String> =
                    MakeOptions::keys().map(|(key, what): (&str, &str)| format!("  {key}: {what}")).collect();
                Failure::usage(format!("{error}; the options are:\n{}", known.join("\n")))
            })?;
        }
        Ok(options)
    }

    /// Another UUID: random, or derived from the filesystem's where that was given, so that the same is made each time.
    pub(crate) fn derived(&self, uuid: Uuid, tag: u8) -> anyhow::Result<Uuid> {
        let New::This(_) = self.uuid else { return New::Random.make() };
        let mut bytes = *uuid.as_bytes();
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte ^= tag.wrapping_mul(29).wrapping_add(at as u8);
        }
        Ok(Builder::from_custom_bytes(bytes).into_uuid())
    }
}

fn print((made, populated): (Made, Populated), args: &Args) -> anyhow::Result<()> {
    let bytes = |blocks: u64| blocks.saturating_mul(made.block_size.into());
    let answer = Answer {
        kind: made.generation,
        uuid: made.uuid.to_string(),
        size: bytes(made.blocks),
        free: bytes(made.free_blocks),
        block_size: made.block_size,
        blocks: made.blocks,
        groups: made.groups,
        inodes: made.inodes,
        inode_size: made.inode_size,
        journal_blocks: made.journal_blocks,
        features: made.features.clone(),
        files: populated.files,
        directories: populated.directories,
        bytes: populated.bytes,
    };
    if args.json {
        return json(&answer);
    }
    let journal = made
        .journal_blocks
        .map_or("no journal".to_owned(), |blocks| format!("a journal of {}", size(bytes(blocks))));
    let verb = if args.editing.is_dry_run() { "would be made" } else { "was made" };
    line(format!(
        "{} of {} {verb}: {} blocks of {}, {} inodes, {journal}, {} free{}",
        made.generation,
        size(answer.size),
        made.blocks,
        size(made.block_size.into()),
        made.inodes,
        size(answer.free),
        match args.filling.from.is_empty() {
            true => String::new(),
            false => format!(" before {} files ({}) went in", populated.files, size(populated.bytes)),
        }
    ))?;
    line(format!("UUID {}", made.uuid))
}
