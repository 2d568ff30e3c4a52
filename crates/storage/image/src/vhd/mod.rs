//! The VHD format, of Virtual PC and the first Hyper-V.
//!
//! ```text
//! fixed    disk ──────────────────────────────────────────── footer
//! dynamic  copy of the footer ─ header ─ table ─ [names of the parent] ─ block ─ block … ─ footer
//!                                                                        └ sector bitmap, data
//! ```

mod check;
mod create;
mod dynamic;
mod fixed;
mod geometry;
mod layout;
mod locators;
mod open;

#[cfg(test)]
mod crash_tests;

use std::sync::Arc;

use vmwright_disk::Disk;

use crate::create::{bad_value, no_option, parse_bytes, parse_switch};
use crate::driver::{ContentId, Driver, Links, ParentLink};
use crate::info::{FormatInfo, VhdInfo};
use crate::{Format, ImageInfo, OpenOptions, Result, allocated};
pub(crate) use create::create;
use geometry::Geometry;
use layout::{Footer, Kind};

/// The creator whose mark says that the size is the one in the size field.
const EXACT: [u8; 4] = *b"qem2";

/// Whether a VHD takes all of its space at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VhdSubformat {
    /// Space is taken where there is data.
    #[default]
    Dynamic,
    /// The bytes of the disk in order.
    Fixed,
}

/// How a new VHD image is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhdOptions {
    /// Whether all space is taken at once; a child of another image is always dynamic.
    pub subformat: VhdSubformat,
    /// Whether the disk has exactly the size that was asked for, which is the default. Without, it is rounded up to
    /// whole cylinders, and the geometry says its size, as Virtual PC wants it.
    pub force_size: bool,
    /// The size of blocks in bytes: a power of two from 4 KiB to 256 MiB. Most programs know 2 MiB alone, some
    /// 512 KiB.
    pub block_size: u32,
    /// The unique id, random if not given.
    pub uuid: Option<[u8; 16]>,
    /// When the image was made, in seconds since the year 2000; now if not given.
    pub time: Option<u32>,
}

impl Default for VhdOptions {
    fn default() -> Self {
        Self {
            subformat: VhdSubformat::Dynamic,
            force_size: true,
            block_size: 2 << 20,
            uuid: None,
            time: None,
        }
    }
}

impl VhdOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[
        ("subformat", "dynamic or fixed"),
        ("force_size", "on or off; off rounds the size up to whole cylinders"),
        ("block_size", "a power of two from 4K to 256M"),
        ("uuid", "the unique id"),
        ("time", "when the image was made, in seconds since the year 2000"),
    ];

    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "subformat" => {
                self.subformat = match value {
                    "dynamic" => VhdSubformat::Dynamic,
                    "fixed" => VhdSubformat::Fixed,
                    _ => return Err(bad_value("subformat", value, "dynamic or fixed")),
                }
            }
            "force_size" => self.force_size = parse_switch("force_size", value)?,
            "block_size" => {
                let bytes = u32::try_from(parse_bytes("block_size", value)?).ok();
                let fits = |bytes: &u32| bytes.is_power_of_two() && layout::BLOCK_SIZES.contains(bytes);
                let allowed = "a power of two from 4K to 256M";
                self.block_size =
                    bytes.filter(fits).ok_or_else(|| bad_value("block_size", value, allowed))?;
            }
            "uuid" => {
                let id = uuid::Uuid::parse_str(value).map_err(|_| bad_value("uuid", value, "a UUID"))?;
                self.uuid = Some(*id.as_bytes());
            }
            "time" => {
                let wrong = |_| bad_value("time", value, "a number of seconds since the year 2000");
                self.time = Some(value.parse().map_err(wrong)?);
            }
            _ => return Err(no_option(Format::Vhd, key)),
        }
        Ok(())
    }
}

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_vhd(head: &[u8]) -> bool {
    head.starts_with(layout::COOKIE)
}

/// Whether a file ends as an image of fixed size does.
pub(crate) fn is_fixed_vhd(file: &dyn Disk) -> Result<bool> {
    open::ends_fixed(file)
}

/// Opens an image.
pub(crate) fn open(file: Arc<dyn Disk>, options: OpenOptions) -> Result<Box<dyn Driver>> {
    let ends = open::read_ends(&*file, options.lenient)?;
    Ok(match ends.footer.kind {
        Kind::Fixed => Box::new(fixed::Fixed::open(file, ends, &options)),
        Kind::Dynamic | Kind::Differencing => Box::new(dynamic::Dynamic::open(file, ends, options)?),
    })
}

/// Describes an image without opening its content.
pub(crate) fn describe(file: &dyn Disk) -> Result<ImageInfo> {
    // What is overlooked here is no danger: nothing is read or written by it.
    describe_with(file, true)
}

fn describe_with(file: &dyn Disk, lenient: bool) -> Result<ImageInfo> {
    let ends = open::read_ends(file, lenient)?;
    let mut info = ImageInfo::new(Format::Vhd, ends.size, allocated(file)?);
    if ends.footer.kind != Kind::Fixed {
        let header = open::read_header(file, &ends.footer, lenient)?;
        info.cluster_size = Some(header.block_size());
        if ends.footer.kind == Kind::Differencing {
            info.backing_filename = locators::names(file, &header)?.into_iter().next();
            info.backing_filename_format = Some(Format::Vhd.qemu_name().to_owned());
        }
    }
    let creator = ends.footer.creator();
    info.format_specific = Some(FormatInfo::Vpc(VhdInfo {
        subformat: ends.footer.kind.name(),
        creator: String::from_utf8_lossy(&creator).trim_end_matches(['\0', ' ']).to_owned(),
        size_by: ends.size_by.name(),
        unique_id: uuid::Uuid::from_bytes(ends.footer.id()).to_string(),
        saved_state: ends.footer.has_saved_state(),
        footer_lost: ends.end_is_lost(),
    }));
    Ok(info)
}

/// The other files that an image names.
pub(crate) fn links(file: &dyn Disk) -> Result<Links> {
    // Whether damages are overlooked is decided where the image is opened.
    let ends = open::read_ends(file, true)?;
    if ends.footer.kind != Kind::Differencing {
        return Ok(Links::default());
    }
    let header = open::read_header(file, &ends.footer, true)?;
    let parent = ParentLink {
        names: locators::names(file, &header)?,
        format: Some(Format::Vhd.qemu_name().to_owned()),
        expects: Some(ContentId::Vhd(header.parent_id())),
    };
    Ok(Links { parts: Vec::new(), parent: Some(parent) })
}

/// The same disk of another size, which every program reads as exactly that: those that go by the geometry do not
/// where it is the largest.
fn exact(footer: &Footer, size: u64) -> Footer {
    let creator = if geometry::is_by_geometry(footer.creator()) { EXACT } else { footer.creator() };
    footer.resized(size, Geometry::MAX, creator)
}
