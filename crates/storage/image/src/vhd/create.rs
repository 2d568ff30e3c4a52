//! Making images.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use vmwright_disk::Disk;

use super::geometry::Geometry;
use super::layout::{FOOTER, Footer, HEADER, Header, Kind, Locator, MAX_SIZE, NewFooter};
use super::{EXACT, VhdOptions, VhdSubformat, locators};
use crate::blocks::SECTOR;
use crate::create::CreateOptions;
use crate::driver::ContentId;
use crate::{Error, Format, ParentId, Result};

/// The year 2000, when the time stamps of VHDs begin, in seconds since 1970.
const EPOCH: u64 = 946_684_800;

/// Makes an empty image.
pub(crate) fn create(file: &Arc<dyn Disk>, options: &CreateOptions, layout: &VhdOptions) -> Result<()> {
    if options.secret.is_some() {
        return Err(Error::unsupported("encryption in the VHD format"));
    }
    let too_large = || Error::invalid("the size of a VHD", "it must be at most 2040 GiB");
    let size = options.size.checked_next_multiple_of(SECTOR).filter(|size| *size <= MAX_SIZE);
    let size = size.ok_or_else(too_large)?;
    let (size, geometry, creator) = match layout.force_size {
        true => (size, Geometry::MAX, EXACT),
        // Readers that go by the geometry see all of the disk, and a little more.
        false => match Geometry::covering(size) {
            Some(geometry) if geometry != Geometry::MAX => (geometry.size(), geometry, *b"qemu"),
            _ => (size, Geometry::MAX, *b"qemu"),
        },
    };
    let kind = match (&options.backing, layout.subformat) {
        (None, VhdSubformat::Fixed) => Kind::Fixed,
        (None, VhdSubformat::Dynamic) => Kind::Dynamic,
        (Some(_), VhdSubformat::Dynamic) => Kind::Differencing,
        (Some(_), VhdSubformat::Fixed) => {
            return Err(Error::invalid("a new VHD", "an image of fixed size has no parent"));
        }
    };
    let id = match layout.uuid {
        Some(id) => id,
        None => random_id()?,
    };
    let footer = Footer::new(&NewFooter {
        kind,
        size,
        geometry,
        creator,
        id,
        time: layout.time.map_or_else(now, Ok)?,
    });
    file.set_len(0)?;
    if kind == Kind::Fixed {
        file.set_len(size + FOOTER)?;
        return Ok(file.write_at(&footer.encode(), size)?);
    }
    create_dynamic(&**file, &footer, size, options, layout)
}

fn create_dynamic(
    file: &dyn Disk,
    footer: &Footer,
    size: u64,
    options: &CreateOptions,
    layout: &VhdOptions,
) -> Result<()> {
    let entries = size.div_ceil(layout.block_size.into()).max(1);
    let table_at = FOOTER + HEADER;
    let table_len = (entries * 4).next_multiple_of(SECTOR);
    if table_len > crate::blocks::MAX_TABLE {
        return Err(Error::invalid(
            "the block size of a VHD",
            "so many blocks need a table of more than 128 MiB",
        ));
    }
    let entries = u32::try_from(entries).map_err(|_| Error::unsupported("so many blocks"))?;
    let mut header = Header::new(table_at, entries, layout.block_size);
    let mut end = table_at + table_len;
    let mut names = Vec::new();
    if let Some(backing) = &options.backing {
        if backing.format.as_deref().is_some_and(|format| format.parse::<Format>().ok() != Some(Format::Vhd))
        {
            return Err(Error::invalid("the parent of a VHD", "it must be a VHD too"));
        }
        let Some(ParentId(ContentId::Vhd(id))) = options.parent else {
            return Err(Error::invalid("the parent of a VHD", "its unique id must be known"));
        };
        let base = backing.name.rsplit('/').next().unwrap_or_default();
        header.set_parent(id, 0, base);
        let mut placed = Vec::new();
        for (code, bytes) in locators::for_name(&backing.name)? {
            let len = u32::try_from(bytes.len())
                .map_err(|_| Error::invalid("the name of the parent", "it is too long"))?;
            let space = len.next_multiple_of(512);
            placed.push(Locator { code, space, len, offset: end });
            names.push((bytes, end));
            end += u64::from(space);
        }
        header.set_locators(&placed);
    }
    file.set_len(end + FOOTER)?;
    file.write_at(&footer.encode(), 0)?;
    file.write_at(&header.encode(), FOOTER)?;
    // The table may be long: it is written in pieces.
    let piece = vec![0xff; (64 << 10).min(table_len as usize)];
    let mut done = 0;
    while done < table_len {
        let len = (table_len - done).min(piece.len() as u64);
        file.write_at(&piece[..len as usize], table_at + done)?;
        done += len;
    }
    for (bytes, at) in names {
        file.write_at(&bytes, at)?;
    }
    Ok(file.write_at(&footer.encode(), end)?)
}

fn random_id() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Error::unsupported("making an id without random numbers"))?;
    Ok(*uuid::Builder::from_random_bytes(bytes).as_uuid().as_bytes())
}

fn now() -> Result<u32> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    Ok(u32::try_from(now.saturating_sub(EPOCH)).unwrap_or(u32::MAX))
}
