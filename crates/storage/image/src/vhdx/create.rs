//! Making an empty image.

use std::sync::Arc;

use vmwright_disk::Disk;

use super::header::{Header, new_guid};
use super::layout::{
    BLOCK_SIZES, FILE_SIGNATURE, Guid, MAX_SIZE, MIB, REGION_BAT, REGION_METADATA, REGION_TABLES, TABLE_LEN,
    state as bat,
};
use super::locator::Locator;
use super::metadata::{NewMetadata, Params};
use super::region::{self, Place};
use super::state::State;
use crate::create::{CreateOptions, ParentId, bad_value, no_option, parse_bytes, parse_switch};
use crate::driver::ContentId;
use crate::{BackingFile, Error, Format, Result};

/// How a new VHDX image is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhdxOptions {
    /// Whether blocks are allocated at once; as they are written by default.
    pub subformat: VhdxSubformat,
    /// The unit of allocation in bytes: a power of two from 1 MiB to 256 MiB, or zero for one that suits the size of
    /// the disk.
    pub block_size: u32,
    /// The room for the log in bytes, a multiple of 1 MiB; 1 MiB by default.
    pub log_size: u32,
    /// Whether blocks that were never written are recorded as zeros, as QEMU does by default, or as not present.
    pub block_state_zero: bool,
    /// The sector size that a guest sees, 512 or 4096 bytes; 512 by default.
    pub logical_sector_size: u32,
    /// The sector size of the medium as a guest sees it, 512 or 4096 bytes; 512 by default.
    pub physical_sector_size: u32,
    /// The identity of the disk as a guest sees it, as the bytes stand in the file; random by default.
    pub disk_id: Option<[u8; 16]>,
}

/// Whether the blocks of a new VHDX image have their places from the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VhdxSubformat {
    /// Blocks are allocated when they are written.
    #[default]
    Dynamic,
    /// All blocks are allocated, one after the other.
    Fixed,
}

impl Default for VhdxOptions {
    fn default() -> Self {
        Self {
            subformat: VhdxSubformat::Dynamic,
            block_size: 0,
            log_size: 1 << 20,
            block_state_zero: true,
            logical_sector_size: 512,
            physical_sector_size: 512,
            disk_id: None,
        }
    }
}

impl VhdxOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[
        ("block_size", "1M to 256M, or 0"),
        ("block_state_zero", "on or off"),
        ("log_size", "1M to 4095M"),
        ("logical_sector_size", "512 or 4096"),
        ("physical_sector_size", "512 or 4096"),
        ("subformat", "dynamic or fixed"),
    ];

    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let number = |key, allowed| {
            u32::try_from(parse_bytes(key, value)?).map_err(|_| bad_value(key, value, allowed))
        };
        match key {
            "block_size" => self.block_size = number("block_size", "1M to 256M, or 0")?,
            "log_size" => self.log_size = number("log_size", "1M to 4095M")?,
            "logical_sector_size" => self.logical_sector_size = number("logical_sector_size", "512 or 4096")?,
            "physical_sector_size" => {
                self.physical_sector_size = number("physical_sector_size", "512 or 4096")?;
            }
            "block_state_zero" => self.block_state_zero = parse_switch("block_state_zero", value)?,
            "subformat" => {
                self.subformat = match value {
                    "dynamic" => VhdxSubformat::Dynamic,
                    "fixed" => VhdxSubformat::Fixed,
                    _ => return Err(bad_value("subformat", value, "dynamic or fixed")),
                }
            }
            _ => return Err(no_option(Format::Vhdx, key)),
        }
        Ok(())
    }

    /// Refuses what makes no sense, before anything is made.
    fn check(&self, options: &CreateOptions) -> Result<()> {
        let wrong = |why| Err(Error::invalid("a new VHDX image", why));
        if self.block_size != 0
            && !(self.block_size.is_power_of_two() && BLOCK_SIZES.contains(&self.block_size))
        {
            return wrong("the block size must be a power of two from 1 MiB to 256 MiB");
        }
        if self.log_size == 0 || !u64::from(self.log_size).is_multiple_of(MIB) {
            return wrong("the size of the log must be a multiple of 1 MiB");
        }
        if ![self.logical_sector_size, self.physical_sector_size]
            .iter()
            .all(|size| [512, 4096].contains(size))
        {
            return wrong("sectors must have 512 or 4096 bytes");
        }
        if options.size > MAX_SIZE {
            return wrong("the disk must have at most 64 TiB");
        }
        if options.secret.is_some() {
            return wrong("the VHDX format has no encryption");
        }
        match (&options.backing, linkage_of(options)) {
            (None, None) => Ok(()),
            (Some(_), None) => wrong("what identifies the content of its parent must be given"),
            (None, Some(_)) => Ok(()),
            (Some(_), Some(_)) if self.subformat == VhdxSubformat::Fixed => {
                wrong("an image with a parent cannot be fixed")
            }
            (Some(BackingFile { format: Some(format), .. }), _) if format != "vhdx" => {
                wrong("the parent must be VHDX too")
            }
            (Some(backing), Some(_)) if backing.name.is_empty() || backing.name.len() > 16_000 => {
                wrong("the name of the parent must have 1 to 16000 bytes")
            }
            (Some(_), Some(_)) => Ok(()),
        }
    }

    /// The block size that QEMU would choose, unless one is given.
    fn block_size_for(&self, size: u64) -> u32 {
        match size {
            _ if self.block_size != 0 => self.block_size,
            size if size > 32 << 40 => 64 << 20,
            size if size > 100 << 30 => 32 << 20,
            size if size > 1 << 30 => 16 << 20,
            _ => 8 << 20,
        }
    }
}

/// The data write GUID of the parent.
fn linkage_of(options: &CreateOptions) -> Option<Guid> {
    match options.parent {
        Some(ParentId(ContentId::Vhdx(guid))) => Some(guid),
        _ => None,
    }
}

/// The options that make another image like this one.
pub(super) fn options_of(state: &State) -> VhdxOptions {
    let params = &state.params;
    VhdxOptions {
        subformat: if params.fixed { VhdxSubformat::Fixed } else { VhdxSubformat::Dynamic },
        block_size: params.block_size as u32,
        log_size: u32::try_from(state.header.log().1).unwrap_or(0).max(MIB as u32),
        block_state_zero: true,
        logical_sector_size: params.sector as u32,
        physical_sector_size: params.physical_sector,
        disk_id: Some(params.disk_id),
    }
}

/// Makes an empty image.
pub(crate) fn create(file: &Arc<dyn Disk>, options: &CreateOptions, layout: &VhdxOptions) -> Result<()> {
    layout.check(options)?;
    let sector = u64::from(layout.logical_sector_size);
    let size = options.size.next_multiple_of(sector);
    let parent = match (&options.backing, linkage_of(options)) {
        (Some(backing), Some(linkage)) => Some(Locator::new(linkage, &backing.name)),
        _ => None,
    };
    let fixed = layout.subformat == VhdxSubformat::Fixed;
    let block_size = layout.block_size_for(size);
    let disk_id = layout.disk_id.map_or_else(new_guid, Ok)?;
    let params = Params {
        block_size: block_size.into(),
        fixed,
        size,
        size_at: 0,
        sector,
        physical_sector: layout.physical_sector_size,
        disk_id,
        parent,
    };
    let metadata = NewMetadata {
        block_size,
        fixed,
        size,
        disk_id,
        logical_sector: layout.logical_sector_size,
        physical_sector: layout.physical_sector_size,
        parent: params.parent.as_ref().map(Locator::encode),
    };
    let log = Place { offset: MIB, len: layout.log_size.into() };
    let metadata_at = Place { offset: log.end(), len: MIB };
    let table_len = (params.entries_for(size) * 8).next_multiple_of(MIB).max(MIB);
    let table_at = Place { offset: metadata_at.end(), len: table_len };

    file.set_len(0)?;
    let blocks = if fixed { params.blocks() * params.block_size } else { 0 };
    file.set_len(table_at.end() + blocks)?;
    file.write_at(&metadata.encode(), metadata_at.offset)?;
    write_table(&**file, &params, table_at, layout.block_state_zero)?;
    let table = region::encode(&[(REGION_BAT, table_at), (REGION_METADATA, metadata_at)]);
    for at in REGION_TABLES {
        file.write_at(&table, at)?;
    }
    let mut header = Header::new(log.offset, layout.log_size, [new_guid()?, new_guid()?]);
    header.write(&**file, |_| {})?;
    header.write(&**file, |_| {})?;
    Ok(file.write_at(&identifier(), 0)?)
}

/// The first bytes of the file, which also say who made it.
fn identifier() -> Vec<u8> {
    let creator = concat!("vmwright ", env!("CARGO_PKG_VERSION"));
    let mut bytes = FILE_SIGNATURE.to_vec();
    bytes.extend(creator.encode_utf16().flat_map(u16::to_le_bytes));
    bytes.resize(8 + 512, 0);
    bytes
}

/// Writes the entries of a new table, where they are not zeros as the file is.
fn write_table(file: &dyn Disk, params: &Params, at: Place, block_state_zero: bool) -> Result<()> {
    let entry = |block: u64| match params.fixed {
        true => (at.end() + block * params.block_size) | bat::FULLY_PRESENT,
        false => bat::ZERO,
    };
    if params.parent.is_some() || !params.fixed && !block_state_zero {
        return Ok(());
    }
    let mut bytes = vec![0; TABLE_LEN];
    let mut block = 0;
    for start in (0..at.len).step_by(TABLE_LEN) {
        let end = (start + TABLE_LEN as u64) / 8;
        bytes.fill(0);
        while block < params.blocks() && params.entry_of(block) < end {
            let place = (params.entry_of(block) * 8 - start) as usize;
            bytes[place..place + 8].copy_from_slice(&entry(block).to_le_bytes());
            block += 1;
        }
        file.write_at(&bytes, at.offset + start)?;
        if block == params.blocks() {
            break;
        }
    }
    Ok(())
}
