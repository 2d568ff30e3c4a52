//! Opens the disk that a verb works on.

use std::path::Path;

use vmwright_disk::WriteMode;
use vmwright_guest::{Guest, Mode, OpenOptions};
use vmwright_vfs::Root;

use crate::gate::UserGate;
use crate::opening::{Caution, Journal, Opening, print_plan};

/// How the root on a disk is opened.
#[derive(clap::Args)]
struct Rooted {
    #[command(flatten)]
    opening: Opening,
    /// The volume to take as the root, where there are several: sda2, UUID=…, LABEL=…
    #[arg(long, value_name = "VOLUME", help_heading = "Opening the disk")]
    root: Option<String>,
    #[command(flatten)]
    journal: Journal,
}

/// How a disk is opened for reading.
#[derive(clap::Args)]
pub(crate) struct Reading {
    #[command(flatten)]
    rooted: Rooted,
    /// Read even though somebody is writing; what is read may be torn
    #[arg(short = 'U', long, help_heading = "Opening the disk")]
    force_share: bool,
}

/// How a disk is opened for changing.
#[derive(clap::Args)]
pub(crate) struct Editing {
    #[command(flatten)]
    rooted: Rooted,
    #[command(flatten)]
    caution: Caution,
    /// Write in place, without a redo file: a crash may leave the edit half done
    #[arg(long, conflicts_with = "redo_dir", help_heading = "Opening the disk")]
    ordered: bool,
}

impl Rooted {
    fn read(&self, image: &Path, force_share: bool) -> anyhow::Result<Guest> {
        let gate = self.opening.gate(image)?;
        let mode = if force_share { Mode::ForceShare } else { Mode::Read };
        Ok(Guest::open(&[image], &self.options(image, mode, &gate)?)?)
    }

    fn options<'a>(
        &'a self,
        image: &Path,
        mode: Mode,
        gate: &'a UserGate,
    ) -> anyhow::Result<OpenOptions<'a>> {
        Ok(OpenOptions {
            mode,
            format: self.opening.choice(),
            gate,
            root: self.root.as_deref(),
            journal: self.journal.disk(),
            redo_dir: self.opening.redo_dir(),
            secret: self.opening.secret(image)?,
            lenient: self.opening.is_lenient(),
            ..OpenOptions::default()
        })
    }
}

impl Reading {
    /// Opens the disk.
    pub(crate) fn open(&self, image: &Path) -> anyhow::Result<Guest> {
        self.rooted.read(image, self.force_share)
    }
}

impl Editing {
    /// Opens the disk, lets `change` change it, and makes that durable, or says what it would have written.
    pub(crate) fn edit<T>(
        &self,
        image: &Path,
        change: impl FnOnce(&mut Root) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let opening = &self.rooted.opening;
        self.caution.allow(image, opening)?;
        let gate = opening.gate(image)?;
        let mut options = self.rooted.options(image, Mode::Edit, &gate)?;
        options.write_mode =
            if self.ordered && !self.is_dry_run() { WriteMode::Ordered } else { WriteMode::Transaction };
        let mut guest = Guest::open(&[image], &options)?;
        let answer = change(guest.root_mut())?;
        if self.is_dry_run() {
            print_plan(&guest.plan()?)?;
        } else {
            guest.commit()?;
        }
        Ok(answer)
    }

    /// Opens the disk for reading, for a verb that can do both.
    pub(crate) fn open_for_reading(&self, image: &Path, force_share: bool) -> anyhow::Result<Guest> {
        self.rooted.read(image, force_share)
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.caution.is_dry_run()
    }
}
