//! Opens the volume that a verb works on.

use std::path::PathBuf;

use vmwright_disk::{ErrorKind, WriteMode};
use vmwright_guest::fs::{Purpose, Target};
use vmwright_guest::{Mode, OpenOptions};

use crate::failure::Failure;
use crate::gate::UserGate;
use crate::opening::{Caution, Journal, Opening, plan_lines, print_plan};
use crate::output::note;

/// Where a filesystem is.
#[derive(clap::Args)]
pub(crate) struct Place {
    /// The disk image
    pub(crate) image: PathBuf,
    /// The partition: its number, a name such as sda2, or UUID=…, LABEL=…, PARTUUID=…, PARTLABEL=…. Otherwise the
    /// whole image, or the only filesystem on it
    #[arg(short, long, value_name = "N")]
    pub(crate) part: Option<String>,
}

impl Place {
    /// The image, and the partition where one is named, for messages.
    pub(crate) fn shown(&self) -> String {
        match &self.part {
            Some(part) => format!("{} (partition {part})", self.image.display()),
            None => self.image.display().to_string(),
        }
    }

    fn open(
        &self,
        (opening, journal): (&Opening, &Journal),
        mode: Mode,
        write_mode: WriteMode,
        (purpose, ignore_mmp): (Purpose, bool),
    ) -> anyhow::Result<Target> {
        if purpose == Purpose::Space && journal.disk().is_some() {
            return Err(Failure::usage("--journal is for a filesystem that is there"));
        }
        let gate: UserGate = opening.gate(&self.image)?;
        let options = OpenOptions {
            mode,
            write_mode,
            format: opening.choice(),
            gate: &gate,
            redo_dir: opening.redo_dir(),
            secret: opening.secret(&self.image)?,
            journal: journal.disk(),
            ignore_mmp,
            lenient: opening.is_lenient(),
            ..OpenOptions::default()
        };
        let opened = Target::open(&self.image, self.part.as_deref(), purpose, &options);
        opened.map_err(|error| match (error.kind(), &self.part) {
            (ErrorKind::InvalidInput, None) => Failure::usage(format!("{error}, with --part")),
            _ => error.into(),
        })
    }
}

/// How a volume is opened for reading.
#[derive(clap::Args)]
pub(crate) struct Reading {
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    journal: Journal,
    /// Read even though somebody is writing; what is read may be torn
    #[arg(short = 'U', long, help_heading = "Opening the disk")]
    force_share: bool,
}

impl Reading {
    /// Opens the volume.
    pub(crate) fn open(&self, place: &Place) -> anyhow::Result<Target> {
        let mode = if self.force_share { Mode::ForceShare } else { Mode::Read };
        let from = (&self.opening, &self.journal);
        place.open(from, mode, WriteMode::default(), (Purpose::Filesystem, false))
    }
}

/// How a volume is opened for changing.
#[derive(clap::Args)]
pub(crate) struct Editing {
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    journal: Journal,
    #[command(flatten)]
    caution: Caution,
    /// Write in place, without a redo file: a crash may leave the edit half done
    #[arg(long, conflicts_with = "redo_dir", help_heading = "Opening the disk")]
    ordered: bool,
}

impl Editing {
    /// How the image is opened.
    pub(crate) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Opens the volume for reading only.
    pub(crate) fn read(&self, place: &Place) -> anyhow::Result<Target> {
        let from = (&self.opening, &self.journal);
        place.open(from, Mode::Read, WriteMode::default(), (Purpose::Filesystem, false))
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.caution.is_dry_run()
    }

    /// Lets `change` change the filesystem, and makes that durable, all of it or nothing; or says what it would have
    /// written, on standard error where the answer is `json`.
    pub(crate) fn edit<T>(
        &self,
        place: &Place,
        purpose: Purpose,
        json: bool,
        change: impl FnOnce(&Target) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.edit_guarded(place, (purpose, false), json, change)
    }

    /// The same, maybe with what guards the filesystem against several mounts overruled.
    pub(crate) fn edit_guarded<T>(
        &self,
        place: &Place,
        purpose: (Purpose, bool),
        json: bool,
        change: impl FnOnce(&Target) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.caution.allow(&place.image, &self.opening)?;
        let in_place = self.ordered && !self.is_dry_run();
        let how = if in_place { WriteMode::Ordered } else { WriteMode::Transaction };
        let target = place.open((&self.opening, &self.journal), Mode::Edit, how, purpose)?;
        let answer = change(&target)?;
        match (self.is_dry_run(), json) {
            (true, true) => plan_lines(&target.plan()?).iter().for_each(note),
            (true, false) => print_plan(&target.plan()?)?,
            (false, _) => drop(target.commit()?),
        }
        Ok(answer)
    }
}
