//! Making an empty image.

use std::sync::Arc;

use vmwright_disk::Disk;

use super::descriptor::{NO_PARENT, New};
use super::layout::{
    AT_END, COWD_ENTRIES, COWD_HEADER, CowdHeader, FLAG_COMPRESSED, FLAG_MARKERS, FLAG_NEWLINES,
    FLAG_REDUNDANT, FLAG_ZEROED, MAX_DIRECTORY, SECTOR, SparseHeader,
};
use super::{Extent, Vmdk, stream};
use crate::create::{CreateOptions, PartMaker, bad_value, no_option, parse_switch};
use crate::driver::ContentId;
use crate::{BackingFile, Error, Format, ParentId, Result};

/// The sectors of a grain: 64 KiB.
const GRAIN: u64 = 128;
/// The entries of a grain table.
const ENTRIES: u64 = 512;
/// Where an embedded descriptor is, and how much room it has, in sectors.
const DESCRIPTOR: (u64, u64) = (1, 20);
/// The sectors of an extent in images that are split: 2 GiB.
const PART: u64 = (2 << 30) / SECTOR;
/// The most sectors of a disk: 64 TiB.
const MAX_SECTORS: u64 = (64 << 40) / SECTOR;

/// How a new VMDK image is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmdkOptions {
    /// Which files there are, and how they are laid out.
    pub subformat: Subformat,
    /// The disk controller that the descriptor names.
    pub adapter_type: AdapterType,
    /// The virtual hardware version; 4 by default.
    pub hwversion: Option<String>,
    /// The version of VMware's tools in the guest; 2147483647, unknown, by default.
    pub toolsversion: Option<String>,
    /// Whether the hardware version is 6.
    pub compat6: bool,
    /// Whether a grain of zeros is recorded as such, instead of stored; a version 2 image.
    pub zeroed_grain: bool,
    /// The content id; random by default, and that of a stream decided by its content.
    pub cid: Option<u32>,
    /// The content id of the parent, for an image with a backing file, where [`CreateOptions::parent`] does not say it.
    pub parent_cid: Option<u32>,
}

/// Which files a VMDK has, and how they are laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subformat {
    /// One file that grows.
    #[default]
    MonolithicSparse,
    /// A descriptor, and a file with the plain bytes of the disk.
    MonolithicFlat,
    /// A descriptor, and files that grow, each for 2 GiB of the disk.
    TwoGbMaxExtentSparse,
    /// A descriptor, and files with the plain bytes of the disk, 2 GiB each.
    TwoGbMaxExtentFlat,
    /// One compressed file, written once from its beginning to its end, as OVF packages have it.
    StreamOptimized,
    /// A descriptor, and a file with the plain bytes of the disk, as on ESX Server.
    Vmfs,
    /// A descriptor, and a file that grows, as the snapshots of ESX Server.
    VmfsSparse,
}

impl Subformat {
    const ALL: [Self; 7] = [
        Self::MonolithicSparse,
        Self::MonolithicFlat,
        Self::TwoGbMaxExtentSparse,
        Self::TwoGbMaxExtentFlat,
        Self::StreamOptimized,
        Self::Vmfs,
        Self::VmfsSparse,
    ];

    /// The name as descriptors and `qemu-img` write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::MonolithicFlat => "monolithicFlat",
            Self::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
            Self::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            Self::StreamOptimized => "streamOptimized",
            Self::Vmfs => "vmfs",
            Self::VmfsSparse => "vmfsSparse",
        }
    }

    fn is_flat(self) -> bool {
        matches!(self, Self::MonolithicFlat | Self::TwoGbMaxExtentFlat | Self::Vmfs)
    }
}

/// The disk controller that a descriptor names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is its name")]
pub enum AdapterType {
    #[default]
    Ide,
    LsiLogic,
    BusLogic,
    LegacyEsx,
}

impl AdapterType {
    fn name(self) -> &'static str {
        match self {
            Self::Ide => "ide",
            Self::LsiLogic => "lsilogic",
            Self::BusLogic => "buslogic",
            Self::LegacyEsx => "legacyESX",
        }
    }
}

const SUBFORMATS: &str = "monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, streamOptimized, vmfs or vmfsSparse";
const ADAPTERS: &str = "ide, lsilogic, buslogic or legacyESX";
const NUMBER: &str = "a number";
const CID: &str = "up to 8 hexadecimal digits";

impl VmdkOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[
        ("adapter_type", ADAPTERS),
        ("cid", CID),
        ("compat6", "on or off"),
        ("hwversion", NUMBER),
        ("subformat", SUBFORMATS),
        ("toolsversion", NUMBER),
        ("zeroed_grain", "on or off"),
    ];

    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let number = |key| match !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
            true => Ok(Some(value.to_owned())),
            false => Err(bad_value(key, value, NUMBER)),
        };
        match key {
            "subformat" => {
                let found =
                    Subformat::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(value));
                self.subformat = found.ok_or_else(|| bad_value("subformat", value, SUBFORMATS))?;
            }
            "adapter_type" => {
                use AdapterType::{BusLogic, Ide, LegacyEsx, LsiLogic};
                let mut all = [Ide, LsiLogic, BusLogic, LegacyEsx].into_iter();
                let found = all.find(|adapter| adapter.name().eq_ignore_ascii_case(value));
                self.adapter_type = found.ok_or_else(|| bad_value("adapter_type", value, ADAPTERS))?;
            }
            "hwversion" => self.hwversion = number("hwversion")?,
            "toolsversion" => self.toolsversion = number("toolsversion")?,
            "compat6" => self.compat6 = parse_switch("compat6", value)?,
            "zeroed_grain" => self.zeroed_grain = parse_switch("zeroed_grain", value)?,
            "cid" => {
                let cid = u32::from_str_radix(value, 16).map_err(|_| bad_value("cid", value, CID))?;
                self.cid = Some(cid);
            }
            _ => return Err(no_option(Format::Vmdk, key)),
        }
        Ok(())
    }
}

/// The CID of a stream of this many bytes that nothing was stored in.
pub(super) fn empty_stream_cid(len: u64) -> u32 {
    crc32c::crc32c(&len.to_le_bytes()) >> 1
}

/// A CID that nobody can guess.
pub(super) fn random() -> Result<u32> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| {
        let error = std::io::Error::other(error.to_string());
        Error::from(vmwright_disk::Error::host("get random bytes for", "the CID".as_ref(), error))
    })?;
    Ok(u32::from_le_bytes(random))
}

/// Makes an empty image.
pub(crate) fn create(
    file: &Arc<dyn Disk>,
    options: &CreateOptions,
    layout: &VmdkOptions,
    parts: &dyn PartMaker,
) -> Result<()> {
    let sectors = check(options, layout, parts.image_name())?;
    let subformat = layout.subformat;
    let (stem, extension) = match parts.image_name().rsplit_once('.') {
        Some((stem, extension)) => (stem, format!(".{extension}")),
        None => (parts.image_name(), String::new()),
    };
    let mut new = Making { options, layout, sectors, parts, extents: String::new() };
    let named = |suffix: &str| format!("{stem}-{suffix}{extension}");
    match subformat {
        Subformat::MonolithicSparse | Subformat::StreamOptimized => {
            new.line(sectors, "SPARSE", parts.image_name(), "");
            let text = new.descriptor()?;
            return match subformat {
                Subformat::StreamOptimized => write_stream(&**file, sectors, &text),
                _ => write_hosted(&**file, sectors, layout.zeroed_grain, Some(&text)),
            };
        }
        Subformat::MonolithicFlat => new.flat(sectors, "FLAT", &named("flat"), " 0")?,
        Subformat::Vmfs => new.flat(sectors, "VMFS", &named("flat"), "")?,
        Subformat::VmfsSparse => {
            new.line(sectors, "VMFSSPARSE", &named("delta"), "");
            write_cowd(&*parts.make(&named("delta"))?, sectors)?;
        }
        Subformat::TwoGbMaxExtentFlat | Subformat::TwoGbMaxExtentSparse => {
            for index in 0..sectors.div_ceil(PART) {
                let part = PART.min(sectors - index * PART);
                if subformat.is_flat() {
                    new.flat(part, "FLAT", &named(&format!("f{:03}", index + 1)), " 0")?;
                } else {
                    let name = named(&format!("s{:03}", index + 1));
                    new.line(part, "SPARSE", &name, "");
                    write_hosted(&*parts.make(&name)?, part, layout.zeroed_grain, None)?;
                }
            }
        }
    }
    let text = new.descriptor()?;
    file.set_len(0)?;
    file.set_len(text.len() as u64)?;
    Ok(file.write_at(text.as_bytes(), 0)?)
}

/// Checks the options; answers the length of the disk in sectors.
fn check(options: &CreateOptions, layout: &VmdkOptions, name: &str) -> Result<u64> {
    let what = "the options of a new VMDK";
    let sectors = options.size.div_ceil(SECTOR);
    let limit = if layout.subformat == Subformat::VmfsSparse { u64::from(u32::MAX) } else { MAX_SECTORS };
    if sectors > limit {
        return Err(Error::invalid(
            what,
            "the disk is larger than the format can hold: 64 TiB, vmfsSparse 2 TiB",
        ));
    }
    if layout.compat6 && layout.hwversion.is_some() {
        return Err(Error::invalid(what, "compat6 is the hardware version 6, so there cannot be another"));
    }
    let sparse = matches!(layout.subformat, Subformat::MonolithicSparse | Subformat::TwoGbMaxExtentSparse);
    if layout.zeroed_grain && !sparse {
        return Err(Error::invalid(what, "zeroed grains are for monolithicSparse and twoGbMaxExtentSparse"));
    }
    if name.contains(['"', '\n', '\r', '\0']) {
        return Err(Error::invalid(what, "the name of the file cannot stand in a descriptor"));
    }
    let Some(BackingFile { name, format }) = &options.backing else { return Ok(sectors) };
    if !sparse && layout.subformat != Subformat::VmfsSparse {
        return Err(Error::invalid(what, "flat and stream-optimized images have no backing file"));
    }
    if format.as_deref().is_some_and(|format| format != "vmdk") {
        return Err(Error::invalid(what, "a backing file must be a VMDK, since it is known by its CID"));
    }
    if parent_cid(options, layout).is_none() {
        return Err(Error::invalid(what, "the CID of the backing file must be given"));
    }
    if name.is_empty() || name.len() > 1023 || name.contains(['"', '\n', '\r', '\0']) {
        return Err(Error::invalid(what, "the name of the backing file cannot stand in a descriptor"));
    }
    Ok(sectors)
}

/// The CID of the backing file, if there is one.
fn parent_cid(options: &CreateOptions, layout: &VmdkOptions) -> Option<u32> {
    options.backing.as_ref()?;
    match options.parent {
        Some(ParentId(ContentId::Vmdk(cid))) => Some(cid),
        _ => layout.parent_cid,
    }
}

/// The options that make an image like this one.
pub(super) fn like(image: &Vmdk) -> VmdkOptions {
    let descriptor = image.descriptor();
    let kind = descriptor.create_type.clone().unwrap_or_default();
    let is_compressed = image.extents.iter().filter_map(Extent::sparse).any(|sparse| sparse.packed.is_some());
    let subformat = match Subformat::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(&kind)) {
        _ if is_compressed => Subformat::StreamOptimized,
        Some(known) => known,
        None if image.extents.iter().all(|extent| extent.sparse().is_none()) => Subformat::MonolithicFlat,
        None => Subformat::MonolithicSparse,
    };
    let mut options = VmdkOptions { subformat, ..VmdkOptions::default() };
    options.zeroed_grain = image.extents.iter().filter_map(Extent::sparse).any(|sparse| sparse.zeroed);
    for (key, value) in descriptor.database() {
        match key.as_str() {
            "ddb.virtualhwversion" => drop(options.set("hwversion", &value)),
            "ddb.toolsversion" => drop(options.set("toolsversion", &value)),
            "ddb.adaptertype" => drop(options.set("adapter_type", &value)),
            _ => {}
        }
    }
    options
}

/// An image that is being made.
struct Making<'a> {
    options: &'a CreateOptions,
    layout: &'a VmdkOptions,
    sectors: u64,
    parts: &'a dyn PartMaker,
    /// The lines so far.
    extents: String,
}

impl Making<'_> {
    fn line(&mut self, sectors: u64, kind: &str, name: &str, rest: &str) {
        self.extents.push_str(&format!("RW {sectors} {kind} \"{name}\"{rest}\n"));
    }

    fn flat(&mut self, sectors: u64, kind: &str, name: &str, rest: &str) -> Result<()> {
        self.line(sectors, kind, name, rest);
        let part = self.parts.make(name)?;
        part.set_len(0)?;
        Ok(part.set_len(sectors * SECTOR)?)
    }

    fn descriptor(&self) -> Result<String> {
        let cid = match (self.layout.cid, self.layout.subformat) {
            (Some(cid), _) => cid,
            (None, Subformat::StreamOptimized) => empty_stream_cid(self.sectors * SECTOR),
            (None, _) => {
                // Never one of those that mean something else.
                random()? >> 1
            }
        };
        let hardware =
            if self.layout.compat6 { "6" } else { self.layout.hwversion.as_deref().unwrap_or("4") };
        let new = New {
            cid,
            parent_cid: parent_cid(self.options, self.layout).unwrap_or(NO_PARENT),
            create_type: self.layout.subformat.name(),
            hint: self.options.backing.as_ref().map(|backing| backing.name.as_str()),
            extents: &self.extents,
            hardware,
            tools: self.layout.toolsversion.as_deref().unwrap_or("2147483647"),
            adapter: self.layout.adapter_type.name(),
            sectors: self.sectors,
        };
        Ok(new.compose())
    }
}

fn check_room(text: &str) -> Result<()> {
    if text.len() as u64 > DESCRIPTOR.1 * SECTOR {
        return Err(Error::invalid("a new VMDK", "its descriptor is longer than 10 KiB"));
    }
    Ok(())
}

/// Writes an empty extent with all of its grain tables, as other programs expect it.
fn write_hosted(file: &dyn Disk, sectors: u64, zeroed: bool, text: Option<&str>) -> Result<()> {
    check_room(text.unwrap_or_default())?;
    let tables = sectors.div_ceil(GRAIN * ENTRIES);
    let gd_sectors = (tables * 4).div_ceil(SECTOR);
    let table_sectors = ENTRIES * 4 / SECTOR;
    let copy = gd_sectors + tables * table_sectors;
    // The room of the descriptor is there in extents without one too, as QEMU leaves it.
    let rgd = DESCRIPTOR.0 + DESCRIPTOR.1;
    let header = SparseHeader {
        version: if zeroed { 2 } else { 1 },
        flags: FLAG_NEWLINES | FLAG_REDUNDANT | if zeroed { FLAG_ZEROED } else { 0 },
        capacity: sectors,
        grain: GRAIN,
        descriptor_at: if text.is_some() { DESCRIPTOR.0 } else { 0 },
        descriptor_len: if text.is_some() { DESCRIPTOR.1 } else { 0 },
        entries: ENTRIES as u32,
        rgd,
        gd: rgd + copy,
        overhead: (rgd + 2 * copy).next_multiple_of(GRAIN),
        unclean: false,
        compressed: false,
    };
    if tables > MAX_DIRECTORY || header.overhead > u64::from(u32::MAX) {
        return Err(Error::invalid("a new VMDK", "an extent of this size has too many grain tables"));
    }
    file.set_len(0)?;
    file.set_len(header.overhead * SECTOR)?;
    file.write_at(&header.encode(), 0)?;
    file.write_at(text.unwrap_or_default().as_bytes(), DESCRIPTOR.0 * SECTOR)?;
    for directory in [header.rgd, header.gd] {
        let entries = (0..tables).map(|index| (directory + gd_sectors + index * table_sectors) as u32);
        let bytes: Vec<u8> = entries.flat_map(u32::to_le_bytes).collect();
        file.write_at(&bytes, directory * SECTOR)?;
    }
    Ok(())
}

/// Writes an empty stream.
fn write_stream(file: &dyn Disk, sectors: u64, text: &str) -> Result<()> {
    check_room(text)?;
    let header = SparseHeader {
        version: 3,
        flags: FLAG_NEWLINES | FLAG_COMPRESSED | FLAG_MARKERS,
        capacity: sectors,
        grain: GRAIN,
        descriptor_at: DESCRIPTOR.0,
        descriptor_len: DESCRIPTOR.1,
        entries: ENTRIES as u32,
        rgd: 0,
        gd: AT_END,
        overhead: GRAIN,
        unclean: false,
        compressed: true,
    };
    let gd = vec![0; header.directory_len() as usize];
    let tail = stream::tail(&gd, header.overhead, &header);
    file.set_len(0)?;
    file.set_len(header.overhead * SECTOR + tail.len() as u64)?;
    file.write_at(&header.encode(), 0)?;
    file.write_at(text.as_bytes(), DESCRIPTOR.0 * SECTOR)?;
    Ok(file.write_at(&tail, header.overhead * SECTOR)?)
}

/// Writes an empty extent of ESX Server, whose grains are sectors.
fn write_cowd(file: &dyn Disk, sectors: u64) -> Result<()> {
    let directory_len = sectors.div_ceil(COWD_ENTRIES);
    let gd = COWD_HEADER / SECTOR;
    let end = gd + (directory_len * 4).div_ceil(SECTOR);
    let header = CowdHeader {
        capacity: sectors,
        grain: 1,
        gd,
        directory_len,
        free: end as u32,
        names_parent: false,
        unclean: false,
    };
    file.set_len(0)?;
    file.set_len(end * SECTOR)?;
    Ok(file.write_at(&header.encode(), 0)?)
}
