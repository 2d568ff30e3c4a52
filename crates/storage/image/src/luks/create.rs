use std::sync::Arc;

use vmwright_crypt::{CryptDisk, Payload, luks1, luks2};
use vmwright_disk::Disk;

use super::LuksOptions;
use crate::error::Reason;
use crate::{CreateOptions, Error, Result};

/// Makes an image on `file`, whose former content is lost.
pub(crate) fn create(file: &Arc<dyn Disk>, options: &CreateOptions, layout: &LuksOptions) -> Result<()> {
    if options.backing.is_some() {
        return Err(Error::invalid("a new LUKS image", "the format has no backing files"));
    }
    let secret = options.secret.as_ref().ok_or(Reason::NeedsPassphrase)?;
    let (header, cipher) = match layout.version {
        1 => luks1::format(&layout.luks1()?, secret)?,
        _ => luks2::format(&layout.luks2()?, secret)?,
    };
    let sector_size = u64::from(layout.sector_size);
    let payload = Payload { offset: header.len() as u64, len: None, first_sector: 0, sector_size };
    let size = options.size.checked_next_multiple_of(payload.sector_size);
    let end = size.and_then(|size| size.checked_add(payload.offset));
    let end = end.ok_or_else(|| Error::invalid("a new LUKS image", "the disk is too large"))?;
    file.set_len(0)?;
    file.set_len(end)?;
    file.write_at(&header, 0)?;
    if layout.zeroed {
        CryptDisk::new(file.clone(), payload, cipher, false)?.zero_at(0, end - payload.offset)?;
    }
    Ok(())
}
