//! `vmwright disk bitmap …`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use vmwright_image::{BitmapInfo, Bitmaps, DirtyRun};

use super::source::{Editing, Reading};
use crate::output::{Table, json, parse_size, size};

/// The verbs of `disk bitmap`.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// List the dirty bitmaps of an image
    List {
        /// The image
        image: PathBuf,
        #[command(flatten)]
        reading: Reading,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a bitmap, which notes from now on what is written
    Add {
        #[command(flatten)]
        one: One,
        /// How many bytes of the disk one bit stands for: a power of two from 512 to 2G
        #[arg(short, long, value_parser = parse_size)]
        granularity: Option<u64>,
    },
    /// Remove a bitmap
    Remove(One),
    /// Forget what was written so far
    Clear(One),
    /// Note what is written from now on
    Enable(One),
    /// Note nothing more
    Disable(One),
    /// Also mark in one bitmap what is marked in another
    Merge {
        #[command(flatten)]
        one: One,
        /// The other bitmap, of the same image
        source: String,
    },
    /// Say which parts of the disk were written
    Export {
        /// The image
        image: PathBuf,
        /// The bitmap
        name: String,
        #[command(flatten)]
        reading: Reading,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
}

/// One bitmap to be changed.
#[derive(clap::Args)]
pub(crate) struct One {
    /// The image
    image: PathBuf,
    /// The bitmap
    name: String,
    #[command(flatten)]
    editing: Editing,
}

impl One {
    fn change(
        &self,
        change: impl FnOnce(&Bitmaps<'_>, &str) -> vmwright_image::Result<()>,
    ) -> anyhow::Result<()> {
        let attempt = || format!("cannot change bitmap {} of {}", self.name, self.image.display());
        let edit = |image: &vmwright_image::Image| Ok(change(&image.bitmaps()?, &self.name)?);
        self.editing.edit(&self.image, false, edit).with_context(attempt)
    }
}

/// Runs a verb.
pub(crate) fn run(verb: &Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::List { image, reading, json } => list(image, reading, *json)?,
        Verb::Export { image, name, reading, json } => export(image, name, reading, *json)?,
        Verb::Add { one, granularity } => one.change(|bitmaps, name| bitmaps.add(name, *granularity))?,
        Verb::Remove(one) => one.change(|bitmaps, name| bitmaps.remove(name))?,
        Verb::Clear(one) => one.change(|bitmaps, name| bitmaps.clear(name))?,
        Verb::Enable(one) => one.change(|bitmaps, name| bitmaps.enable(name))?,
        Verb::Disable(one) => one.change(|bitmaps, name| bitmaps.disable(name))?,
        Verb::Merge { one, source } => one.change(|bitmaps, name| bitmaps.merge(name, source))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(image: &Path, reading: &Reading, as_json: bool) -> anyhow::Result<()> {
    let attempt = || format!("cannot list the bitmaps of {}", image.display());
    let all: Vec<BitmapInfo> =
        reading.open(image).and_then(|image| Ok(image.bitmaps()?.list()?)).with_context(attempt)?;
    if as_json {
        return json(&all);
    }
    let mut table = Table::new(["NAME", "GRANULARITY", "STATE"]).right(1);
    for one in &all {
        let state = match (one.flags.contains(&"in-use"), one.flags.contains(&"auto")) {
            (true, _) => "out of date",
            (_, true) => "enabled",
            _ => "disabled",
        };
        table.row([one.name.clone(), size(one.granularity), state.into()]);
    }
    table.print()
}

fn export(image: &Path, name: &str, reading: &Reading, as_json: bool) -> anyhow::Result<()> {
    let attempt = || format!("cannot read bitmap {name} of {}", image.display());
    let runs: Vec<DirtyRun> =
        reading.open(image).and_then(|image| Ok(image.bitmaps()?.dirty(name)?)).with_context(attempt)?;
    if as_json {
        return json(&runs);
    }
    let mut table = Table::new(["START", "LENGTH"]).right(0).right(1);
    for run in &runs {
        table.row([format!("{:#x}", run.start), size(run.length)]);
    }
    table.print()
}
