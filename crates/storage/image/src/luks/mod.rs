//! LUKS as a disk image: a header with key slots, and behind it the encrypted sectors.
//!
//! ```text
//! header, key material │ sectors of the disk, each encrypted with its number ─ up to the end of the file
//! ```
//!
//! QEMU's `luks` format is version 1. A place that was never written is not zeros: it holds whatever its bytes decrypt
//! to. So zeroing and growing write encrypted zeros, and discarding does nothing.

mod create;
mod info;
mod options;

use std::sync::Arc;

use vmwright_crypt::{CryptDisk, Header, Limits, Payload};
use vmwright_disk::{Disk, Extent, ExtentKind, check_range};

use crate::driver::Driver;
use crate::error::Reason;
use crate::info::{CheckReport, ImageInfo, Repair};
use crate::{Layout, OpenOptions, Result};

pub(crate) use create::create;
pub(crate) use info::describe;
pub(crate) use info::luks1;
pub use options::{Chaining, IvGenerator, LuksKdf, LuksOptions};

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_luks(head: &[u8]) -> bool {
    head.starts_with(b"LUKS\xba\xbe")
}

/// Opens an image; without a secret all but its content.
pub(crate) fn open(file: Arc<dyn Disk>, options: OpenOptions) -> Result<Box<dyn Driver>> {
    let header = Header::read(&*file)?;
    let payload = header.payload()?;
    let read_only = options.read_only || file.is_read_only();
    let content = match &options.secret {
        Some(secret) => Some(header.open(file.clone(), secret, &Limits::default(), read_only)?),
        None => None,
    };
    Ok(Box::new(Luks { file, header, payload, content, read_only }))
}

/// An open image.
struct Luks {
    file: Arc<dyn Disk>,
    header: Header,
    payload: Payload,
    /// What the passphrase opened, if one was given.
    content: Option<CryptDisk>,
    read_only: bool,
}

impl Luks {
    fn content(&self) -> Result<&CryptDisk> {
        self.content.as_ref().ok_or_else(|| Reason::NeedsPassphrase.into())
    }

    fn writable(&self) -> Result<&CryptDisk> {
        match self.read_only {
            true => Err(Reason::ReadOnly { what: "the image" }.into()),
            false => self.content(),
        }
    }
}

impl Driver for Luks {
    fn info(&self) -> Result<ImageInfo> {
        describe(&*self.file)
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        check(&*self.file, repair)
    }

    fn layout(&self) -> Layout {
        Layout::Luks(LuksOptions::like(&self.header))
    }

    fn new_shows_zeros(&self) -> bool {
        false
    }
}

/// Checks the headers, and writes one of version 2 anew by the other where `repair` allows everything.
fn check(file: &dyn Disk, repair: Repair) -> Result<CheckReport> {
    let mut header = Header::read(file)?;
    let before = header.check(file);
    let mut left = before.len();
    if repair == Repair::All && header.repair(file)? {
        left = header.check(file).len();
    }
    Ok(CheckReport {
        corruptions: left as u64,
        corruptions_fixed: (before.len() - left.min(before.len())) as u64,
        findings: before.iter().map(ToString::to_string).take(100).collect(),
        ..CheckReport::default()
    })
}

impl Disk for Luks {
    fn len(&self) -> u64 {
        self.payload.len_in(self.file.len())
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        self.content()?.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        self.writable()?.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.writable()?.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.writable()?.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        self.writable()?.set_len(len)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        self.file.flush()
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        check_range(offset, 1, self.len())?;
        Ok(Extent { start: offset, len: self.len() - offset, kind: ExtentKind::Opaque, depth: 0 })
    }
}
