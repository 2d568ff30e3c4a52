//! Opens the disk that a verb works on.

use std::path::{Path, PathBuf};

use anyhow::Context;
use vmwright_disk::{Access, Plan, Sharing, Transaction, TransactionOptions, WriteMode, pending};
use vmwright_guest::{Guest, Mode, OpenOptions};
use vmwright_image::describe;
use vmwright_vfs::Root;

use crate::disk::{FormatName, choice};
use crate::failure::Failure;
use crate::gate::{Backing, UserGate};
use crate::output::{line, size};
use crate::secret::Secret;
use crate::vm::runtime;

/// How the disk is opened.
#[derive(clap::Args)]
pub(crate) struct Opening {
    /// The image's format, instead of looking at its first bytes
    #[arg(short, long, value_enum, help_heading = "Opening the disk")]
    format: Option<FormatName>,
    /// The volume to take as the root, where there are several: sda2, UUID=…, LABEL=…
    #[arg(long, value_name = "VOLUME", help_heading = "Opening the disk")]
    root: Option<String>,
    #[command(flatten)]
    backing: Backing,
    /// The folder for the redo file, where the image's own cannot hold it; it must outlast a crash, and be named again after one
    #[arg(long, value_name = "FOLDER", help_heading = "Opening the disk")]
    redo_dir: Option<PathBuf>,
    #[command(flatten)]
    secret: Secret,
    /// Overlook damages that other programs overlook, such as a wrong checksum of a VHD header
    #[arg(long, help_heading = "Opening the disk")]
    lenient: bool,
}

/// How a disk is opened for reading.
#[derive(clap::Args)]
pub(crate) struct Reading {
    #[command(flatten)]
    opening: Opening,
    /// Read even though somebody is writing; what is read may be torn
    #[arg(short = 'U', long, help_heading = "Opening the disk")]
    force_share: bool,
}

/// How a disk is opened for changing.
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
    /// Write in place, without a redo file: a crash may leave the edit half done
    #[arg(long, conflicts_with = "redo_dir", help_heading = "Opening the disk")]
    ordered: bool,
}

impl Opening {
    fn read(&self, image: &Path, force_share: bool) -> anyhow::Result<Guest> {
        let gate = self.backing.gate(image, self.format.is_some())?;
        let mode = if force_share { Mode::ForceShare } else { Mode::Read };
        Ok(Guest::open(&[image], &self.options(image, mode, &gate)?)?)
    }

    fn options<'a>(
        &'a self,
        image: &Path,
        mode: Mode,
        gate: &'a UserGate,
    ) -> anyhow::Result<OpenOptions<'a>> {
        let secret = self.secret.find(&format!("passphrase of {}", image.display()), || {
            let how = TransactionOptions::default().sharing(Sharing::Forced);
            let file = Transaction::begin(how).open(image, Access::Read)?;
            Ok(describe(&*file, choice(self.format))?.encrypted)
        })?;
        Ok(OpenOptions {
            mode,
            format: choice(self.format),
            gate,
            root: self.root.as_deref(),
            redo_dir: self.redo_dir.as_deref(),
            secret,
            lenient: self.lenient,
            ..OpenOptions::default()
        })
    }
}

impl Reading {
    /// Opens the disk.
    pub(crate) fn open(&self, image: &Path) -> anyhow::Result<Guest> {
        self.opening.read(image, self.force_share)
    }
}

impl Editing {
    /// Opens the disk, lets `change` change it, and makes that durable, or says what it would have written.
    pub(crate) fn edit<T>(
        &self,
        image: &Path,
        change: impl FnOnce(&mut Root) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        if !self.force {
            refuse_base(image)?;
        }
        if self.dry_run {
            let mut options = TransactionOptions::default();
            if let Some(folder) = &self.opening.redo_dir {
                options = options.redo_dir(folder);
            }
            refuse_pending(image, &options)?;
        }
        let gate = self.opening.backing.gate(image, self.opening.format.is_some())?;
        let mut options = self.opening.options(image, Mode::Edit, &gate)?;
        options.write_mode =
            if self.ordered && !self.dry_run { WriteMode::Ordered } else { WriteMode::Transaction };
        let mut guest = Guest::open(&[image], &options)?;
        let answer = change(guest.root_mut())?;
        if self.dry_run {
            print_plan(&guest.plan()?)?;
        } else {
            guest.commit()?;
        }
        Ok(answer)
    }

    /// Opens the disk for reading, for a verb that can do both.
    pub(crate) fn open_for_reading(&self, image: &Path, force_share: bool) -> anyhow::Result<Guest> {
        self.opening.read(image, force_share)
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
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
pub(crate) fn refuse_pending(image: &Path, options: &TransactionOptions) -> anyhow::Result<()> {
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
    if plan.files.is_empty() {
        return line("nothing would be written");
    }
    for file in &plan.files {
        let grown = match file.new_len.cmp(&file.old_len) {
            std::cmp::Ordering::Equal => String::new(),
            _ => format!(", from {} to {} bytes long", file.old_len, file.new_len),
        };
        let zeroed = if file.zeroed > 0 { format!(", zero {}", size(file.zeroed)) } else { String::new() };
        line(format!(
            "would write {} in {} places{zeroed}{grown}: {}",
            size(file.written),
            file.records,
            file.path.display()
        ))?;
    }
    Ok(())
}
