//! What every verb that works on an image takes, however far into the image it looks.

use std::path::{Path, PathBuf};

use anyhow::Context;
use vmwright_disk::{Access, Plan, Sharing, Transaction, TransactionOptions, pending};
use vmwright_guest::JournalDisk;
use vmwright_image::chain::ChainOptions;
use vmwright_image::{FormatChoice, describe};

use crate::disk::{FormatName, choice};
use crate::failure::Failure;
use crate::gate::{Backing, UserGate};
use crate::output::{line, size};
use crate::secret::Secret;
use crate::vm::runtime;

/// How an image is opened.
#[derive(clap::Args, Clone)]
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

impl Opening {
    /// The same for another image, whose format is named or not by itself.
    pub(crate) fn with_format(&self, format: Option<FormatName>) -> Self {
        Self { format, ..self.clone() }
    }

    /// How the format is decided.
    pub(crate) fn choice(&self) -> FormatChoice {
        choice(self.format)
    }

    /// Which files the image may name.
    pub(crate) fn gate(&self, image: &Path) -> anyhow::Result<UserGate> {
        self.backing.gate(image, self.format.is_some())
    }

    /// The folder for the redo file, where one is named.
    pub(crate) fn redo_dir(&self) -> Option<&Path> {
        self.redo_dir.as_deref()
    }

    /// Whether damages that other programs overlook are overlooked.
    pub(crate) fn is_lenient(&self) -> bool {
        self.lenient
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

    /// The passphrase of an image that is made.
    pub(crate) fn new_secret(&self, image: &Path) -> anyhow::Result<vmwright_crypt::Passphrase> {
        self.secret.for_new(&format!("passphrase for {}", image.display()))
    }

    /// Everything but whether it is written.
    pub(crate) fn chain(&self, image: &Path) -> anyhow::Result<ChainOptions> {
        let (secret, lenient) = (self.secret(image)?, self.lenient);
        Ok(ChainOptions { secret, lenient, ..ChainOptions::default() })
    }
}

/// Where the journal is of a filesystem that has it on another disk.
#[derive(clap::Args, Clone)]
pub(crate) struct Journal {
    /// The image with the journal of a filesystem that has it on another disk, and its partition: IMG, IMG:2. One within the
    /// image itself is found without
    #[arg(long = "journal", value_name = "IMG[:PART]", help_heading = "Opening the disk")]
    place: Option<PathBuf>,
}

impl Journal {
    /// The disk that holds it. A name with a colon that is that of a file names the file.
    pub(crate) fn disk(&self) -> Option<JournalDisk<'_>> {
        let image = self.place.as_deref()?;
        let split = image.to_str().filter(|_| !image.exists()).and_then(|name| name.rsplit_once(':'));
        Some(match split {
            Some((image, part)) => JournalDisk { image: Path::new(image), part: Some(part) },
            None => JournalDisk { image, part: None },
        })
    }
}

/// What keeps a change from being made in error.
#[derive(clap::Args)]
pub(crate) struct Caution {
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Change the image even though machines are built on it: they will refuse to start
    #[arg(long)]
    force: bool,
}

impl Caution {
    /// Whether nothing is to be written.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Refuses an image that machines are built on, unless that was forced.
    pub(crate) fn allow(&self, image: &Path, opening: &Opening) -> anyhow::Result<()> {
        if !self.force {
            refuse_base(image)?;
        }
        if self.dry_run {
            refuse_pending(image, &opening.transaction())?;
        }
        Ok(())
    }
}

/// Refuses to change an image that machines were made on: what their overlays leave out would change beneath them.
pub(crate) fn refuse_base(image: &Path) -> anyhow::Result<()> {
    if !image.exists() {
        return Ok(());
    }
    let users = runtime()?.image_users(image).context("cannot find out whether machines use the image")?;
    if users.is_empty() {
        return Ok(());
    }
    let names = users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(Failure::refused(format!("machines are built on it: {names}; delete them first, or use --force")))
}

/// Refuses to try an edit on an image where opening it to edit would first finish an earlier one.
fn refuse_pending(image: &Path, options: &TransactionOptions) -> anyhow::Result<()> {
    let Some(pending) = pending(image, options)? else { return Ok(()) };
    Err(Failure::refused(format!(
        "an edit that was broken off is pending in {}, and a dry run does not finish it; \
         `vmwright disk recover {}` does",
        pending.redo.display(),
        image.display()
    )))
}

/// Writes what a transaction would write.
pub(crate) fn print_plan(plan: &Plan) -> anyhow::Result<()> {
    plan_lines(plan).iter().try_for_each(line)
}

/// What a transaction would write, in words.
pub(crate) fn plan_lines(plan: &Plan) -> Vec<String> {
    if plan.files.is_empty() {
        return vec!["nothing would be written".to_owned()];
    }
    let words = |file: &vmwright_disk::FilePlan| {
        let grown = match file.new_len.cmp(&file.old_len) {
            std::cmp::Ordering::Equal => String::new(),
            _ => format!(", from {} to {} bytes long", file.old_len, file.new_len),
        };
        let zeroed = if file.zeroed > 0 { format!(", zero {}", size(file.zeroed)) } else { String::new() };
        let (written, records, path) = (size(file.written), file.records, file.path.display());
        format!("would write {written} in {records} places{zeroed}{grown}: {path}")
    };
    plan.files.iter().map(words).collect()
}
