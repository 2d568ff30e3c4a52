//! Opens the image that a verb works on.

use std::path::Path;
use std::sync::Arc;

use vmwright_disk::{Access, Disk, Sharing, Transaction, WriteMode};
use vmwright_image::chain::{ChainOptions, open_in};
use vmwright_image::{CheckReport, Format, FormatChoice, Image, Repair};

use super::FormatName;
use crate::opening::{Caution, Opening, print_plan};

/// How an image is opened for reading.
#[derive(clap::Args, Clone)]
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
    #[command(flatten)]
    caution: Caution,
}

impl Reading {
    /// How the image is opened, but for its locks.
    pub(crate) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// The same for another image, whose format is named or not by itself.
    pub(crate) fn with_format(&self, format: Option<FormatName>) -> Self {
        Self { opening: self.opening.with_format(format), ..self.clone() }
    }

    /// How its host files are opened.
    pub(crate) fn transaction(&self) -> Transaction {
        let sharing = if self.force_share { Sharing::Forced } else { Sharing::Locked };
        Transaction::begin(self.opening.transaction().sharing(sharing))
    }

    /// Opens the image for reading, with a change showing that a crash broke off after it became durable.
    pub(crate) fn open(&self, image: &Path) -> anyhow::Result<Image> {
        let how = ChainOptions { read_only: true, ..self.opening.chain(image)? };
        let gate = self.opening.gate(image)?;
        Ok(open_in(&self.transaction(), image, self.opening.choice(), &gate, how)?)
    }

    /// Opens an internal snapshot of the image, by its id or name, for reading.
    pub(crate) fn open_snapshot(&self, image: &Path, snapshot: &str) -> anyhow::Result<Image> {
        let snapshot = Some(snapshot.to_owned());
        let how = ChainOptions { read_only: true, snapshot, ..self.opening.chain(image)? };
        let gate = self.opening.gate(image)?;
        Ok(open_in(&self.transaction(), image, self.opening.choice(), &gate, how)?)
    }
}

impl Editing {
    /// How the image is opened.
    pub(crate) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.caution.is_dry_run()
    }

    /// Refuses an image that machines are built on, unless that was forced.
    pub(crate) fn allow(&self, image: &Path) -> anyhow::Result<()> {
        self.caution.allow(image, &self.opening)
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
            match self.is_dry_run() {
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
        if self.is_dry_run() {
            print_plan(&transaction.plan()?)?;
        } else {
            transaction.commit()?;
        }
        Ok(answer)
    }
}
