use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_disk::{Disk, FileId, Plan, Sharing, Transaction, TransactionOptions};
use vmwright_image::FormatChoice;
use vmwright_image::chain::{ChainOptions, open_in};

use crate::guest::{Mode, OpenOptions};
use crate::journals;
use crate::{Error, ErrorKind, Result};

/// The images of a guest, beneath one transaction.
///
/// Reading goes through a transaction too: a change that a crash interrupted then shows through it.
pub(crate) struct Session {
    transaction: Transaction,
    images: Vec<Arc<dyn Disk>>,
    journal: Option<Arc<dyn Disk>>,
}

impl Session {
    pub(crate) fn open(paths: &[PathBuf], options: &OpenOptions<'_>) -> Result<Self> {
        let sharing = if options.mode == Mode::ForceShare { Sharing::Forced } else { Sharing::Locked };
        let mut how = TransactionOptions::default().sharing(sharing).mode(options.write_mode);
        if let Some(dir) = options.redo_dir {
            how = how.redo_dir(dir);
        }
        let transaction = Transaction::begin(how);
        let mut ids = Vec::new();
        let mut images = Vec::new();
        for path in paths {
            let id = identity(path)?;
            if ids.contains(&id) {
                // Two disks over one file would not know of each other's changes.
                let path = path.display().to_string();
                return Err(Error::plain(ErrorKind::InvalidInput, path, "the same image is given twice"));
            }
            images.push(open_image(&transaction, path, options.format, options)?);
            ids.push(id);
        }
        let journal = match options.journal {
            Some(journal) => {
                let id = identity(journal.image)?;
                let image = match ids.iter().position(|other| *other == id) {
                    Some(index) => images[index].clone(),
                    None => open_image(&transaction, journal.image, FormatChoice::Probe, options)?,
                };
                Some(journals::find(&image, &journal)?)
            }
            None => None,
        };
        Ok(Self { transaction, images, journal })
    }

    /// The disk with the journal that was named.
    pub(crate) fn journal(&self) -> Option<Arc<dyn Disk>> {
        self.journal.clone()
    }

    /// The disks that the guest sees.
    pub(crate) fn disks(&self) -> Vec<Arc<dyn Disk>> {
        self.images.clone()
    }

    pub(crate) fn plan(&self) -> Result<Plan> {
        Ok(self.transaction.plan()?)
    }

    pub(crate) fn commit(self) -> Result<Plan> {
        let Self { transaction, images, journal } = self;
        drop((images, journal));
        Ok(transaction.commit()?)
    }
}

fn identity(path: &Path) -> Result<FileId> {
    let metadata = std::fs::metadata(path).map_err(Error::host("open", path))?;
    Ok(FileId { device: metadata.dev(), inode: metadata.ino() })
}

fn open_image(
    transaction: &Transaction,
    path: &Path,
    format: FormatChoice,
    options: &OpenOptions<'_>,
) -> Result<Arc<dyn Disk>> {
    let write = options.mode == Mode::Edit;
    let how = ChainOptions {
        read_only: !write,
        cache_bytes: options.cache_bytes,
        secret: options.secret.clone(),
        lenient: options.lenient,
        ..ChainOptions::default()
    };
    let opened = open_in(transaction, path, format, options.gate, how);
    Ok(Arc::new(opened.map_err(Error::image("open the image", path))?))
}
