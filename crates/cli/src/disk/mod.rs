//! `vmwright disk …`: images as wholes.

mod convert;
mod create;
mod info;
mod options;
mod recover;

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
    /// Copy an image into another format
    Convert(convert::Args),
    /// Finish or drop an edit that a crash broke off
    Recover(recover::Args),
}

/// Runs a verb.
pub(crate) fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Info(args) => info::run(&args),
        Verb::Create(args) => create::run(&args),
        Verb::Convert(args) => convert::run(&args),
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
pub(crate) fn or_force<T>(made: vmwright_image::Result<T>) -> anyhow::Result<T> {
    made.map_err(|error| match error.kind() {
        ErrorKind::Exists => anyhow::Error::new(error).context("it exists already; --force replaces it"),
        _ => error.into(),
    })
}
