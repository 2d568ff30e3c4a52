//! Finding the footer, the header and the table.

use vmwright_disk::Disk;

use super::geometry::{self, SizeBy};
use super::layout::{COOKIE, FOOTER, Footer, HEADER, Header, Kind};
use crate::blocks::{self, Map, SECTOR, Shape};
use crate::{Error, Result};

/// The footer of an image, and what became of its copies.
#[derive(Debug)]
pub(super) struct Ends {
    /// The one that counts.
    pub(super) footer: Footer,
    /// The copy at the head; images of fixed size have none.
    pub(super) head: Option<Result<Footer>>,
    /// The footer at the end.
    pub(super) end: Result<Footer>,
    /// Where the footer at the end begins.
    pub(super) end_at: u64,
    pub(super) size: u64,
    pub(super) size_by: SizeBy,
}

impl Ends {
    /// Whether the footer at the end is damaged or missing, and the copy at the head stands in for it.
    pub(super) fn end_is_lost(&self) -> bool {
        !self.end.as_ref().is_ok_and(Footer::is_sound)
    }
}

/// Reads the footer at the end: 512 bytes, or 511 by old programs. Answers where it begins.
fn read_end(file: &dyn Disk, lenient: bool) -> Result<(Result<Footer>, u64)> {
    let len = file.len();
    if len < FOOTER - 1 {
        let error = Error::corrupt("the footer", 0, "a file of at least 512 bytes", len);
        return Ok((Err(error), len));
    }
    let mut bytes = vec![0; FOOTER.min(len) as usize];
    let at = len - bytes.len() as u64;
    file.read_at(&mut bytes, at)?;
    // Whole ones stand at a multiple of a sector.
    match bytes.get(1..) {
        Some(short) if !bytes.starts_with(COOKIE) && short.starts_with(COOKIE) => {
            Ok((Footer::parse(short, at + 1, lenient), at + 1))
        }
        _ => Ok((Footer::parse(&bytes, at, lenient), at)),
    }
}

/// Finds the footer that counts.
///
/// At the end of an image of fixed size is what no guest can write, so it goes before everything that the beginning
/// says. Otherwise the copy at the head counts, as in QEMU, and the one at the end where that is damaged.
pub(super) fn read_ends(file: &dyn Disk, lenient: bool) -> Result<Ends> {
    let (end, end_at) = read_end(file, lenient)?;
    let fixed = end.as_ref().is_ok_and(|footer| footer.kind == Kind::Fixed);
    let mut head = None;
    if !fixed && file.len() >= FOOTER {
        let mut bytes = [0; FOOTER as usize];
        file.read_at(&mut bytes, 0)?;
        head = Some(Footer::parse(&bytes, 0, lenient).and_then(|footer| match footer.kind {
            Kind::Fixed => Err(Error::corrupt("the copy of the footer", 60, "no disk of fixed size", 2)),
            _ => Ok(footer),
        }));
    }
    let sound = |found: &&Footer| found.is_sound();
    let (at_head, at_end) = (head.as_ref().and_then(|head| head.as_ref().ok()), end.as_ref().ok());
    let best = at_head.filter(sound).or(at_end.filter(sound)).or(at_head).or(at_end);
    let Some(footer) = best.cloned() else {
        return Err(match head {
            // Where the head is a copy at all, what is wrong with it says more.
            Some(Err(error)) if starts_with_cookie(file)? => error,
            _ => end.err().unwrap_or_else(|| Error::corrupt("the footer", end_at, "conectix", 0)),
        });
    };
    let (size, size_by) = geometry::size(&footer)?;
    if footer.kind == Kind::Fixed && size > end_at {
        return Err(Error::corrupt(
            "the length of the file",
            end_at,
            "the whole disk before the footer",
            size,
        ));
    }
    Ok(Ends { footer, head, end, end_at, size, size_by })
}

fn starts_with_cookie(file: &dyn Disk) -> Result<bool> {
    let mut bytes = [0; COOKIE.len()];
    if file.len() < bytes.len() as u64 {
        return Ok(false);
    }
    file.read_at(&mut bytes, 0)?;
    Ok(bytes == *COOKIE)
}

/// Whether a file ends as an image of fixed size does: the checksum is right and the size is that of what is before.
pub(super) fn ends_fixed(file: &dyn Disk) -> Result<bool> {
    let (Ok(footer), at) = read_end(file, false)? else { return Ok(false) };
    let sizes = [footer.current_size(), geometry::size(&footer).map_or(0, |(size, _)| size)];
    Ok(footer.kind == Kind::Fixed && sizes.contains(&at))
}

/// Reads the header of a dynamic or differencing image.
pub(super) fn read_header(file: &dyn Disk, footer: &Footer, lenient: bool) -> Result<Header> {
    let at = footer.data_offset();
    if !at.is_multiple_of(SECTOR) || at < FOOTER || at.checked_add(HEADER).is_none_or(|end| end > file.len())
    {
        return Err(Error::corrupt("the offset of the dynamic header", 16, "a header within the file", at));
    }
    let mut bytes = [0; HEADER as usize];
    file.read_at(&mut bytes, at)?;
    Header::parse(&bytes, at, lenient)
}

/// How the blocks of an image are kept.
pub(super) fn shape(header: &Header) -> Shape {
    let bitmap = header.block_size() / SECTOR / 8;
    Shape {
        block_size: header.block_size(),
        prefix: bitmap.next_multiple_of(SECTOR),
        unit: SECTOR,
        zero_mark: None,
        big_endian: true,
        tail: FOOTER,
        preallocated: false,
    }
}

/// Reads the table, and finds where everything is.
pub(super) fn read_map(file: &dyn Disk, footer: &Footer, header: &Header, size: u64) -> Result<Map> {
    let shape = shape(header);
    let entries = header.entries();
    if entries < size.div_ceil(shape.block_size) {
        let at = footer.data_offset() + 28;
        return Err(Error::corrupt("the length of the block table", at, "an entry for every block", entries));
    }
    let table_at = header.table_offset();
    let table = blocks::read_table(file, &shape, table_at, entries)?;
    let mut reserved = vec![
        0..FOOTER,
        footer.data_offset()..footer.data_offset() + HEADER,
        table_at..table_at + (entries * 4).next_multiple_of(SECTOR),
    ];
    for locator in header.locators().filter(|locator| locator.len > 0) {
        let end = locator.offset.saturating_add(locator.len.into());
        if end > file.len() {
            let expected = "a name within the file";
            return Err(Error::corrupt("a name of the parent", locator.offset, expected, locator.len.into()));
        }
        reserved.push(locator.offset..end.next_multiple_of(SECTOR));
    }
    reserved.extend(batmap(file, table_at + (entries * 4).next_multiple_of(SECTOR))?);
    let mut map = Map { size, table_at, table, base: 0, reserved, end: 0 };
    map.end = map.last_end(&shape).next_multiple_of(SECTOR);
    Ok(map)
}

/// Where Xen's map of full blocks is, which may follow the table.
///
/// It goes on being right: bits of sectors are only ever set.
fn batmap(file: &dyn Disk, at: u64) -> Result<Vec<std::ops::Range<u64>>> {
    let mut bytes = [0; 512];
    if at.checked_add(512).is_none_or(|end| end > file.len()) {
        return Ok(Vec::new());
    }
    file.read_at(&mut bytes, at)?;
    if !bytes.starts_with(b"tdbatmap") {
        return Ok(Vec::new());
    }
    let [_, offset, rest, ..] = *bytes.as_chunks::<8>().0 else { return Ok(Vec::new()) };
    let offset = u64::from_be_bytes(offset);
    let sectors = u64::from_be_bytes(rest) >> 32;
    let end = offset.saturating_add(sectors * SECTOR);
    let map = (offset < end && end <= file.len()).then_some(offset..end);
    Ok(std::iter::once(at..at + 512).chain(map).collect())
}
