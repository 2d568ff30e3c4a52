//! Opens the image that a verb works on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_disk::{Access, Disk, Plan, Sharing, Transaction, TransactionOptions, WriteMode};
use vmwright_image::chain::{ChainOptions, open_in};
use vmwright_image::{CheckReport, Format, FormatChoice, Image, Repair, describe};

use super::{FormatName, choice};
use crate::gate::{Backing, UserGate};
use crate::guest::source::{print_plan, refuse_base, refuse_pending};
use crate::secret::Secret;

/// How an image is opened.
#[derive(clap::Args)]
pub(crate) struct Opening {
    /// The image's format, instead of looking at its first bytes
    #[arg(short, long, value_enum, help_heading = "Opening the disk")]
    format: Option<FormatName>,
    #[command(flatten)]
    backing: Backing,
    #[command(flatten)]
    secret: Secret,
    /// The folder for the redo file, where the image's own cannot hold it; it must outlast a crash, and be named again after one
    #[arg(long, value_name = "FOLDER", help_heading = "Opening the disk")]
    redo_dir: Option<PathBuf>,
    /// Overlook damages that other programs overlook, such as a wrong checksum of a VHD header
    #[arg(long, help_heading = "Opening the disk")]
    lenient: bool,
}

/// How an image is opened for reading.
#[derive(clap::Args)]
pub(crate) struct Reading {
    #[command(flatten)]
    opening: Opening,
    /// Read even though somebody is writing; what is read may be torn
    #[arg(short = 'U', long, help_heading = "Opening the disk")]
    force_share: bool,
}

/// How an image is opened for changing.
#[derive(clap::Args)]
pub(crate) struct Editing {
    #[command(flatten)]
    opening: Opening,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Change the image even though machines are built on it: they will refuse to start
    #[arg(long)]
    force: bool,
}

impl Opening {
    /// How the format is decided.
    pub(crate) fn choice(&self) -> FormatChoice {
        choice(self.format)
    }

    /// Which files the image may name.
    pub(crate) fn gate(&self, image: &Path) -> anyhow::Result<UserGate> {
        self.backing.gate(image, self.format.is_some())
    }

    /// Whether a folder for the redo file is named.
    pub(crate) fn has_redo_dir(&self) -> bool {
        self.redo_dir.is_some()
    }

    /// How its host files are opened.
    pub(crate) fn transaction(&self) -> TransactionOptions {
        let options = TransactionOptions::default();
        match &self.redo_dir {
            Some(folder) => options.redo_dir(folder),
            None => options,
        }
    }

    /// The passphrase, asked for where the image needs one and none was given.
    pub(crate) fn secret(&self, image: &Path) -> anyhow::Result<Option<vmwright_crypt::Passphrase>> {
        self.secret.find(&format!("passphrase of {}", image.display()), || {
            let how = self.transaction().sharing(Sharing::Forced);
            let file = Transaction::begin(how).open(image, Access::Read)?;
            Ok(describe(&*file, self.choice())?.encrypted)
        })
    }

    /// Everything but whether it is written.
    pub(crate) fn chain(&self, image: &Path) -> anyhow::Result<ChainOptions> {
        let (secret, lenient) = (self.secret(image)?, self.lenient);
        Ok(ChainOptions { secret, lenient, ..ChainOptions::default() })
    }
}

impl Reading {
    /// How the image is opened, but for its locks.
    pub(crate) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// How its host files are opened.
    pub(crate) fn transaction(&self) -> Transaction {
        let sharing = if self.force_share { Sharing::Forced } else { Sharing::Locked };
        Transaction::begin(self.opening.transaction().sharing(sharing))
    }

    /// Opens the image for reading, with a change showing that a crash broke off after it became durable.
    pub(crate) fn open(&self, image: &Path) -> anyhow::Result<Image> {
        self.open_as(image, None)
    }

    /// Opens an internal snapshot of the image, by its id or name, for reading.
    pub(crate) fn open_snapshot(&self, image: &Path, snapshot: &str) -> anyhow::Result<Image> {
        let snapshot = Some(snapshot.to_owned());
        let how = ChainOptions { read_only: true, snapshot, ..self.opening.chain(image)? };
        let gate = self.opening.gate(image)?;
        Ok(open_in(&self.transaction(), image, self.opening.choice(), &gate, how)?)
    }

    /// Opens another image in the same way, but for its format.
    pub(crate) fn open_as(&self, image: &Path, choice: Option<FormatChoice>) -> anyhow::Result<Image> {
        let how = ChainOptions { read_only: true, ..self.opening.chain(image)? };
        let gate = self.opening.gate(image)?;
        let choice = choice.unwrap_or(self.opening.choice());
        Ok(open_in(&self.transaction(), image, choice, &gate, how)?)
    }
}

impl Editing {
    /// How the image is opened.
    pub(crate) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Refuses an image that machines are built on, unless that was forced.
    pub(crate) fn allow(&self, image: &Path) -> anyhow::Result<()> {
        if !self.force {
            refuse_base(image)?;
        }
        if self.dry_run {
            refuse_pending(image, &self.opening.transaction())?;
        }
        Ok(())
    }

    /// Checks the image, also where it is so damaged that it does not open, and repairs it in one transaction.
    pub(crate) fn check(&self, image: &Path, repair: Repair) -> anyhow::Result<CheckReport> {
        let transaction = Transaction::begin(self.opening.transaction());
        let access = if repair == Repair::Nothing { Access::Read } else { Access::Write };
        if access == Access::Write {
            self.allow(image)?;
        }
        let file = transaction.open(image, access)?;
        let report = if self.opening.choice().resolve(&*file)? == Format::Qcow2 {
            vmwright_image::check(file.clone(), FormatChoice::Exact(Format::Qcow2), repair)?
        } else {
            let how = ChainOptions {
                read_only: access == Access::Read,
                without_backing: true,
                ..self.opening.chain(image)?
            };
            let gate = self.opening.gate(image)?;
            let opened = open_in(&transaction, image, self.opening.choice(), &gate, how)?;
            if access == Access::Write { opened.repair(repair)? } else { opened.check()? }
        };
        if access == Access::Write {
            file.flush()?;
            drop(file);
            match self.dry_run {
                true => print_plan(&transaction.plan()?)?,
                false => drop(transaction.commit()?),
            }
        }
        Ok(report)
    }

    /// Opens the image with what lies beneath it for reading.
    pub(crate) fn open_to_read(&self, image: &Path) -> anyhow::Result<Image> {
        let how = ChainOptions { read_only: true, ..self.opening.chain(image)? };
        let gate = self.opening.gate(image)?;
        Ok(open_in(
            &Transaction::begin(self.opening.transaction()),
            image,
            self.opening.choice(),
            &gate,
            how,
        )?)
    }

    /// Opens the image with what lies beneath it so that changes are made at once, each in its format's own order.
    pub(crate) fn open_in_place(&self, image: &Path) -> anyhow::Result<Arc<dyn Disk>> {
        let how = self.opening.chain(image)?;
        let gate = self.opening.gate(image)?;
        let transaction = Transaction::begin(self.opening.transaction().mode(WriteMode::Ordered));
        Ok(Arc::new(open_in(&transaction, image, self.opening.choice(), &gate, how)?))
    }

    /// Opens the image alone, lets `change` change it, and makes that durable, all of it or nothing; or says what it
    /// would have written. With what lies beneath it where `change` needs that.
    pub(crate) fn edit<T>(
        &self,
        image: &Path,
        with_backing: bool,
        change: impl FnOnce(&Image) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.allow(image)?;
        let gate = self.opening.gate(image)?;
        let how = ChainOptions { without_backing: !with_backing, ..self.opening.chain(image)? };
        let transaction = Transaction::begin(self.opening.transaction());
        let opened = open_in(&transaction, image, self.opening.choice(), &gate, how)?;
        let answer = change(&opened)?;
        opened.flush()?;
        drop(opened);
        let plan: Plan;
        if self.dry_run {
            plan = transaction.plan()?;
            print_plan(&plan)?;
        } else {
            transaction.commit()?;
        }
        Ok(answer)
    }
}
