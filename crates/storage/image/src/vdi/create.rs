//! Making images.

use std::sync::Arc;

use vmwright_disk::Disk;

use super::VdiOptions;
use super::layout::{HEADER, Header, Kind};
use crate::blocks::{MAX_TABLE, SECTOR};
use crate::create::CreateOptions;
use crate::{Error, Result};

/// Makes an empty image.
pub(crate) fn create(file: &Arc<dyn Disk>, options: &CreateOptions, layout: &VdiOptions) -> Result<()> {
    if options.secret.is_some() {
        return Err(Error::unsupported("encryption in the VDI format"));
    }
    if options.backing.is_some() {
        return Err(Error::unsupported(
            "a differencing VDI, which names its parent by an id that only VirtualBox's registry can find,",
        ));
    }
    let block_size = u64::from(layout.block_size);
    let size = options.size.checked_next_multiple_of(SECTOR);
    let count = size.and_then(|size| u32::try_from(size.div_ceil(block_size)).ok());
    let count = count.filter(|count| u64::from(*count) * 4 <= MAX_TABLE);
    let (Some(size), Some(count)) = (size, count) else {
        return Err(Error::invalid("the size of a VDI", "its block table would be longer than 128 MiB"));
    };
    let kind = if layout.preallocated { Kind::Static } else { Kind::Dynamic };
    let (id, snapshot) = (id(layout.uuid)?, id(layout.snapshot_uuid)?);
    let mut header = Header::new(kind, size, layout.block_size, id, snapshot);
    // Blocks begin at a multiple of their size, as VirtualBox has it: the table has room to grow.
    let data_at = (HEADER + u64::from(count) * 4).next_multiple_of(block_size);
    header.set_places(HEADER, data_at)?;
    header.set_size(size, count);
    let used = if layout.preallocated { count } else { 0 };
    header.set_allocated(used.into());
    file.set_len(0)?;
    file.set_len(data_at + u64::from(used) * block_size)?;
    file.write_at(&header.encode(), 0)?;
    write_table(&**file, count, layout.preallocated)
}

/// Writes a table where every block has its own number or none, in pieces, since it may be long.
fn write_table(file: &dyn Disk, count: u32, preallocated: bool) -> Result<()> {
    const PIECE: u32 = 16 << 10;
    let mut first = 0;
    while first < count {
        let end = first.saturating_add(PIECE).min(count);
        let raw = |block: u32| if preallocated { block } else { u32::MAX };
        let bytes: Vec<u8> = (first..end).flat_map(|block| raw(block).to_le_bytes()).collect();
        file.write_at(&bytes, HEADER + u64::from(first) * 4)?;
        first = end;
    }
    Ok(())
}

fn id(given: Option<[u8; 16]>) -> Result<[u8; 16]> {
    if let Some(id) = given {
        return Ok(id);
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Error::unsupported("making an id without random numbers"))?;
    Ok(uuid::Builder::from_random_bytes(bytes).as_uuid().to_bytes_le())
}
