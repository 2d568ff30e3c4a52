//! The VDI format, of VirtualBox.
//!
//! ```text
//! header (one sector) ─ block table ─ block ─ block …
//! ```

mod create;
mod layout;
mod resize;

#[cfg(test)]
mod crash_tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmwright_disk::{Disk, Extent};

use crate::blocks::{self, Backing, Blocks, Frame, Map, Shape, scan};
use crate::create::{bad_value, no_option, parse_bytes, parse_switch};
use crate::driver::{Driver, Place, Placing};
use crate::info::{CheckReport, FormatInfo, Repair, VdiInfo};
use crate::{Error, Format, ImageInfo, Layout, OpenOptions, Result, allocated};
pub(crate) use create::create;
use layout::{Header, Kind};

/// How a new VDI image is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiOptions {
    /// Whether every block has its place from the beginning.
    pub preallocated: bool,
    /// The size of blocks in bytes: a power of two from 4 KiB to 256 MiB. QEMU knows 1 MiB alone.
    pub block_size: u32,
    /// The id of the image, random if not given.
    pub uuid: Option<[u8; 16]>,
    /// The id of the state of its content, random if not given.
    pub snapshot_uuid: Option<[u8; 16]>,
}

impl Default for VdiOptions {
    fn default() -> Self {
        Self { preallocated: false, block_size: 1 << 20, uuid: None, snapshot_uuid: None }
    }
}

impl VdiOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[
        ("static", "on or off; on gives every block its place at once"),
        ("block_size", "a power of two from 4K to 256M; QEMU knows 1M alone"),
        ("uuid", "the id of the image"),
        ("snapshot_uuid", "the id of the state of its content"),
    ];

    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let uuid = |key| match uuid::Uuid::parse_str(value) {
            // VDI keeps the first fields as little-endian numbers.
            Ok(uuid) => Ok(Some(uuid.to_bytes_le())),
            Err(_) => Err(bad_value(key, value, "a UUID")),
        };
        match key {
            "static" => self.preallocated = parse_switch("static", value)?,
            "block_size" => {
                let bytes = u32::try_from(parse_bytes("block_size", value)?).ok();
                let fits = |bytes: &u32| bytes.is_power_of_two() && layout::BLOCK_SIZES.contains(bytes);
                let allowed = "a power of two from 4K to 256M";
                self.block_size =
                    bytes.filter(fits).ok_or_else(|| bad_value("block_size", value, allowed))?;
            }
            "uuid" => self.uuid = uuid("uuid")?,
            "snapshot_uuid" => self.snapshot_uuid = uuid("snapshot_uuid")?,
            _ => return Err(no_option(Format::Vdi, key)),
        }
        Ok(())
    }
}

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_vdi(head: &[u8]) -> bool {
    head.get(64..68) == Some(&layout::SIGNATURE.to_le_bytes())
}

fn read_header(file: &dyn Disk) -> Result<Header> {
    if file.len() < layout::HEADER {
        return Err(Error::corrupt("the header", 0, "a file of at least 512 bytes", file.len()));
    }
    let mut bytes = [0; layout::HEADER as usize];
    file.read_at(&mut bytes, 0)?;
    Header::parse(&bytes)
}

fn shape(header: &Header) -> Shape {
    Shape {
        block_size: header.block_size().into(),
        prefix: 0,
        unit: header.block_size().into(),
        zero_mark: Some(layout::ZERO),
        big_endian: false,
        tail: 0,
        preallocated: header.kind == Kind::Static,
    }
}

fn read_map(file: &dyn Disk, header: &Header) -> Result<Map> {
    let shape = shape(header);
    let (table_at, base) = (header.table_at(), header.data_at());
    let table = blocks::read_table(file, &shape, table_at, header.blocks())?;
    let mut map = Map {
        size: header.size(),
        table_at,
        table,
        base,
        reserved: std::iter::once(0..base).collect(),
        end: 0,
    };
    map.end = map.last_end(&shape);
    Ok(map)
}

/// Opens an image.
pub(crate) fn open(file: Arc<dyn Disk>, options: OpenOptions) -> Result<Box<dyn Driver>> {
    let header = read_header(&*file)?;
    let (shape, map) = (shape(&header), read_map(&*file, &header)?);
    let head = Head(Mutex::new(header));
    Ok(Box::new(Vdi { blocks: Blocks::new(file, head, shape, map, Backing::None, &options) }))
}

/// Describes an image without opening its content.
pub(crate) fn describe(file: &dyn Disk) -> Result<ImageInfo> {
    let header = read_header(file)?;
    let mut info = ImageInfo::new(Format::Vdi, header.size(), allocated(file)?);
    info.cluster_size = Some(header.block_size().into());
    info.format_specific = Some(FormatInfo::Vdi(VdiInfo {
        subformat: header.kind.name(),
        uuid: uuid::Uuid::from_bytes_le(header.id()).to_string(),
        blocks: header.blocks(),
        blocks_allocated: header.allocated(),
    }));
    Ok(info)
}

/// The header as it is now, which counts the blocks.
struct Head(Mutex<Header>);

impl Head {
    fn header(&self) -> MutexGuard<'_, Header> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frame for Head {
    fn say_end(&self, file: &dyn Disk, _end: u64, blocks: u64) -> Result<()> {
        let mut header = self.header();
        header.set_allocated(blocks);
        let at = layout::AT_ALLOCATED as usize;
        Ok(file.write_at(&header.encode()[at..at + 4], layout::AT_ALLOCATED)?)
    }
}

/// An open image.
struct Vdi {
    blocks: Blocks<Head>,
}

/// Compares the table with the number of blocks as both stand in the file.
fn check(file: &dyn Disk) -> Result<CheckReport> {
    let header = read_header(file)?;
    let (shape, map) = (shape(&header), read_map(file, &header)?);
    let found = scan(file, &shape, &map);
    let mut report = CheckReport {
        total_clusters: Some(header.blocks()),
        allocated_clusters: Some(found.allocated),
        fragmented_clusters: Some(found.fragmented),
        corruptions: found.damages,
        findings: found.findings,
        ..CheckReport::default()
    };
    // Others give the next block the number that the header counts: if a block has it already, they overwrite that.
    let (needed, counted) = ((map.end - map.base) / shape.block_size, header.allocated());
    if counted < needed {
        report.corruptions += 1;
        report
            .findings
            .push(format!("the header counts {counted} blocks, but number {} is in use", needed - 1));
    }
    let wasted = counted.saturating_sub(needed) + found.gaps.len() as u64;
    if wasted > 0 {
        report.leaks += wasted;
        report.findings.push(format!("{wasted} places for blocks are not in use"));
    }
    Ok(report)
}

impl Driver for Vdi {
    fn info(&self) -> Result<ImageInfo> {
        describe(&*self.blocks.file)
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        let before = check(&*self.blocks.file)?;
        let table_is_sound =
            scan(&*self.blocks.file, &self.blocks.shape, &self.blocks.read_state().map).damages == 0;
        if repair == Repair::Nothing || self.blocks.is_read_only() || before.is_clean() || !table_is_sound {
            return Ok(before);
        }
        if repair == Repair::Leaks && !before.is_safe() {
            return Ok(before);
        }
        self.blocks.close_all_gaps()?;
        let mut after = check(&*self.blocks.file)?;
        after.corruptions_fixed = before.corruptions.saturating_sub(after.corruptions);
        after.leaks_fixed = before.leaks.saturating_sub(after.leaks);
        Ok(after)
    }

    fn cluster_size(&self) -> Option<u64> {
        Some(self.blocks.shape.block_size)
    }

    fn layout(&self) -> Layout {
        Layout::Vdi(VdiOptions {
            preallocated: self.blocks.shape.preallocated,
            block_size: self.blocks.shape.block_size as u32,
            ..VdiOptions::default()
        })
    }

    fn place(&self, offset: u64, len: u64, places: &mut Vec<Place>) -> Result<Placing> {
        self.blocks.place(offset, len, places)
    }
}

impl Disk for Vdi {
    fn len(&self) -> u64 {
        self.blocks.size()
    }

    fn is_read_only(&self) -> bool {
        self.blocks.is_read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        self.blocks.read(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        self.blocks.write(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.blocks.zero(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.blocks.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        Ok(self.resize(len)?)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        Ok(self.blocks.sync()?)
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        self.blocks.extent(offset)
    }
}
