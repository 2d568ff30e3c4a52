//! Destroying images.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use vmwright_crypt::{Cipher, Header, Mode, SECTOR};
use vmwright_disk::{Disk, Wipe};

use crate::chain::Gate;
use crate::copy::Progress;
use crate::{Error, Format, FormatChoice, Result, driver};

/// What the content is overwritten by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WipePattern {
    /// Zeros. Some devices and filesystems store those nowhere, and leave what was there as it is.
    Zeros,
    /// Random numbers, once: more passes do not help on any disk of this century.
    #[default]
    Random,
}

/// How an image is destroyed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WipeOptions {
    /// What the content is overwritten by.
    pub pattern: WipePattern,
    /// Whether files that have further names lose their content too.
    pub even_linked: bool,
}

/// What was destroyed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wiped {
    /// The files, symbolic links resolved.
    pub files: Vec<PathBuf>,
    /// The bytes that were overwritten.
    pub bytes: u64,
    /// Whether a filesystem among them may have written to new places, so that the old content is still there.
    pub may_leave_copies: bool,
}

/// Destroys an image with all its parts: overwrites what is not a hole, makes that durable, and removes the files.
///
/// Of a LUKS image the keys are overwritten first and made durable, so that the content is lost at once. All files are
/// locked before anything changes; one in use is refused. Parts are those that the `gate` allows; backing files stay.
///
/// An image so damaged that its parts cannot be found is refused; as [`Format::Raw`] the one file is destroyed.
/// Nothing can be promised of copies that the host keeps: see [`vmwright_disk::Wipe`].
pub fn wipe(
    path: &Path,
    choice: FormatChoice,
    gate: &dyn Gate,
    options: &WipeOptions,
    progress: Progress<'_>,
) -> Result<Wiped> {
    let image = Wipe::begin(path, options.even_linked)?;
    let file = image.file();
    let format = choice.resolve(&*file)?;
    let parts = driver::links(&*file, format)?.parts;
    let part =
        |name: &String| -> Result<Wipe> { Ok(Wipe::begin(&gate.admit(path, name)?, options.even_linked)?) };
    let parts: Vec<Wipe> = parts.iter().map(part).collect::<Result<_>>()?;
    // The file that names the others goes last.
    let wipes: Vec<Wipe> = parts.into_iter().chain([image]).collect();
    let mut wiped = Wiped::default();
    for wipe in &wipes {
        wiped.files.push(wipe.path().to_owned());
        wiped.bytes += wipe.bytes()?;
        wiped.may_leave_copies |= wipe.may_leave_copies();
    }
    if format == Format::Luks {
        destroy_keys(&*file)?;
    }
    drop(file);
    let fill = filler(options.pattern)?;
    let done = AtomicU64::new(0);
    for wipe in &wipes {
        wipe.overwrite(&fill, &|bytes| {
            progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, wiped.bytes);
        })?;
    }
    for wipe in wipes {
        wipe.remove()?;
    }
    Ok(wiped)
}

/// Overwrites the keys of an image whose header can be read; of another they go with the rest.
fn destroy_keys(file: &dyn Disk) -> Result<()> {
    match Header::read(file) {
        Ok(header) => Ok(header.destroy(file)?),
        Err(_) => Ok(()),
    }
}

/// What puts the pattern into a buffer for an offset.
fn filler(pattern: WipePattern) -> Result<impl Fn(&mut [u8], u64)> {
    let mut key = [0; 64];
    getrandom::fill(&mut key).map_err(|_| Error::invalid("wiping", "the system gives no random numbers"))?;
    // Encrypted zeros under a key that nobody keeps are random numbers, and fast.
    let cipher = Cipher::new(Mode::XtsPlain64, &key, SECTOR as u32)?;
    Ok(move |part: &mut [u8], offset: u64| {
        part.fill(0);
        if pattern == WipePattern::Random {
            let (whole, rest) = part.split_at_mut(part.len() - part.len() % SECTOR as usize);
            let mut last = [0; SECTOR as usize];
            let number = offset / SECTOR;
            let encrypted = cipher
                .encrypt(number, whole)
                .and_then(|()| cipher.encrypt(number + whole.len() as u64 / SECTOR, &mut last));
            debug_assert!(encrypted.is_ok(), "whole sectors are always encrypted");
            rest.copy_from_slice(&last[..rest.len()]);
        }
    })
}
