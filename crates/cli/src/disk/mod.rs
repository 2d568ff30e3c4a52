//! `vmwright disk …`: images as wholes.

pub(crate) mod bar;
mod bitmap;
mod check;
mod checksum;
mod commit;
mod compact;
mod compare;
mod convert;
mod create;
mod encrypt;
mod flatten;
mod formats;
mod free;
mod info;
mod key;
mod make;
mod map;
mod measure;
pub(crate) mod options;
mod rebase;
mod recover;
mod resize;
mod serve;
mod snapshot;
mod source;
mod wipe;

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use vmwright_disk::ErrorKind;
use vmwright_image::{Format, FormatChoice};

/// The verbs of `disk`.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Say what an image is: format, sizes, backing files, features
    Info(info::Args),
    /// Make a new, empty image, or an overlay over another
    Create(create::Args),
    /// Make a disk with a filesystem on it that holds a directory or an archive
    Make(make::Args),
    /// Copy an image into another format
    Convert(convert::Args),
    /// Change the size of the disk that a guest sees
    Resize(resize::Args),
    /// Check an image's own tables, and repair them
    Check(check::Args),
    /// Say which ranges an image holds, and where
    Map(map::Args),
    /// Say whether two images show the same
    Compare(compare::Args),
    /// Say the checksum of what a guest sees
    Checksum(checksum::Args),
    /// Write what an overlay holds into the image beneath
    Commit(commit::Args),
    /// Put an overlay onto another base
    Rebase(rebase::Args),
    /// Write an overlay anew with all that it shows, so that it needs no other image
    Flatten(flatten::Args),
    /// List, make, go back to and delete the snapshots inside an image
    #[command(subcommand)]
    Snapshot(snapshot::Verb),
    /// List and change the dirty bitmaps inside an image, which note what was written
    #[command(subcommand)]
    Bitmap(bitmap::Verb),
    /// Serve an image to any program that speaks NBD
    Serve(serve::Args),
    /// Write an image anew without what holds nothing
    Compact(compact::Args),
    /// Say how large a file a conversion would make
    Measure(measure::Args),
    /// Copy an image in encrypted form
    Encrypt(encrypt::Encrypt),
    /// Copy an encrypted image in plain form
    Decrypt(encrypt::Decrypt),
    /// List and change the passphrases of an encrypted image
    #[command(subcommand)]
    Key(key::Verb),
    /// Overwrite and remove an image, or overwrite what the filesystems on it do not use
    Wipe(wipe::Args),
    /// Say what each format can do, and why it cannot do the rest
    Formats(formats::Args),
    /// Finish or drop an edit that a crash broke off
    Recover(recover::Args),
}

/// Runs a verb.
pub(crate) fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Info(args) => info::run(&args),
        Verb::Create(args) => create::run(&args),
        Verb::Make(args) => make::run(&args),
        Verb::Convert(args) => convert::run(&args),
        Verb::Resize(args) => resize::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Map(args) => map::run(&args),
        Verb::Compare(args) => compare::run(&args),
        Verb::Checksum(args) => checksum::run(&args),
        Verb::Commit(args) => commit::run(&args),
        Verb::Rebase(args) => rebase::run(&args),
        Verb::Flatten(args) => flatten::run(&args),
        Verb::Snapshot(verb) => snapshot::run(&verb),
        Verb::Bitmap(verb) => bitmap::run(&verb),
        Verb::Serve(args) => serve::run(&args),
        Verb::Compact(args) => compact::run(&args),
        Verb::Measure(args) => measure::run(&args),
        Verb::Encrypt(args) => encrypt::encrypt(&args),
        Verb::Decrypt(args) => encrypt::decrypt(&args),
        Verb::Key(verb) => key::run(&verb),
        Verb::Wipe(args) => wipe::run(&args),
        Verb::Formats(args) => formats::run(&args),
        Verb::Recover(args) => recover::run(&args),
    }
}

/// The formats by the names the field uses.
#[derive(Clone, Copy, ValueEnum)]
#[allow(missing_docs)]
pub(crate) enum FormatName {
    Raw,
    Qcow2,
    Vmdk,
    #[value(alias = "vpc")]
    Vhd,
    Vhdx,
    Vdi,
    Luks,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Raw => Self::Raw,
            FormatName::Qcow2 => Self::Qcow2,
            FormatName::Vmdk => Self::Vmdk,
            FormatName::Vhd => Self::Vhd,
            FormatName::Vhdx => Self::Vhdx,
            FormatName::Vdi => Self::Vdi,
            FormatName::Luks => Self::Luks,
        }
    }
}

/// The format the user named, or permission to look at the image's first bytes.
pub(crate) fn choice(format: Option<FormatName>) -> FormatChoice {
    format.map_or(FormatChoice::Probe, |name| FormatChoice::Exact(name.into()))
}

/// Says how to replace a file that exists, where an error says no more than that it does.
pub(crate) fn or_force<T>(made: Result<T, impl Into<anyhow::Error>>) -> anyhow::Result<T> {
    made.map_err(|error| {
        let error = error.into();
        match error.downcast_ref::<vmwright_image::Error>() {
            Some(image) if image.kind() == ErrorKind::Exists => {
                error.context("it exists already; --force replaces it")
            }
            _ => error,
        }
    })
}
