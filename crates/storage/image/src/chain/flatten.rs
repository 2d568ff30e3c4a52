use std::path::Path;

use vmwright_crypt::Passphrase;
use vmwright_disk::{Disk, Transaction, TransactionOptions};

use super::{ChainOptions, Gate, open_in};
use crate::copy::{Progress, copy_data};
use crate::create::FreshImage;
use crate::{CreateOptions, Error, FormatChoice, Image, OpenOptions, Result};

/// How an image is flattened.
#[derive(Debug, Clone)]
pub struct FlattenOptions {
    /// How many threads work; at least one does.
    pub threads: usize,
    /// What opens encrypted images of the chain; the new image opens with it too.
    pub secret: Option<Passphrase>,
    /// Whether damages that other programs overlook are overlooked.
    pub lenient: bool,
}

impl Default for FlattenOptions {
    fn default() -> Self {
        Self { threads: 4, secret: None, lenient: false }
    }
}

/// Makes an image anew so that it holds all that it shows and needs nothing beneath it.
///
/// It takes the place of the old one only when it is complete and durable. An image with internal snapshots or dirty
/// bitmaps is refused, since they would be lost; [`rebase`](super::rebase()) onto nothing keeps them.
pub fn flatten(
    path: &Path,
    choice: FormatChoice,
    gate: &dyn Gate,
    options: &FlattenOptions,
    progress: Progress<'_>,
) -> Result<()> {
    let transaction = Transaction::begin(TransactionOptions::default());
    let how =
        ChainOptions { secret: options.secret.clone(), lenient: options.lenient, ..ChainOptions::default() };
    let image = open_in(&transaction, path, choice, gate, how)?;
    if image.backing_file().is_none() {
        return Err(Error::invalid("flattening", "the image has no backing file"));
    }
    refuse_loss(&image)?;
    let secret = if image.info()?.encrypted { options.secret.clone() } else { None };
    let create =
        CreateOptions { secret: secret.clone(), ..CreateOptions::laid_out(image.layout(), image.len()) };
    let fresh = FreshImage::replacing(&transaction, path, &create)?;
    let exact = FormatChoice::Exact(image.format());
    let target = Image::open(
        fresh.file(),
        exact,
        OpenOptions { parts: fresh.parts(), secret, ..OpenOptions::default() },
    )?;
    copy_data(&image, &target, false, options.threads, progress)?;
    target.flush()?;
    drop(target);
    drop(image);
    fresh.commit()
}

/// Refuses an image of which a rewrite would lose something that no guest sees.
pub(crate) fn refuse_loss(image: &Image) -> Result<()> {
    let info = image.info()?;
    if !info.snapshots.is_empty() {
        return Err(Error::unsupported(
            "rewriting an image that has internal snapshots, which would be lost,",
        ));
    }
    match info.format_specific {
        Some(crate::FormatInfo::Qcow2(qcow2)) if !qcow2.bitmaps.is_empty() => {
            Err(Error::unsupported("rewriting an image that has dirty bitmaps, which would be lost,"))
        }
        _ => Ok(()),
    }
}
