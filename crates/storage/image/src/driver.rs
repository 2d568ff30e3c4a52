//! The contract of a format, and which format does what.
//!
//! A format is a folder with a driver (an open image) and four functions that need no open image:
//!
//! | function | what |
//! |---|---|
//! | `open` | a driver over the file and what it names |
//! | `describe` | what is known without opening the content |
//! | `links` | the other files that the image names |
//! | `create` | a new image, empty |

use std::sync::Arc;

use vmwright_disk::Disk;

use crate::create::{CreateOptions, Layout, PartMaker};
use crate::info::{CheckReport, ImageInfo, Repair};
use crate::qcow2::Qcow2;
use crate::{BackingFile, Format, OpenOptions, Result, luks, qcow2, raw, vdi, vhd, vhdx, vmdk};

/// An open image, as its format does it.
///
/// A format does what it can through [`Disk`], `set_len` (resize) among it, and refuses the rest with an error of kind
/// unsupported. What only some formats have is a facet.
pub(crate) trait Driver: Disk {
    /// Describes the image as it stands in the file.
    fn info(&self) -> Result<ImageInfo>;

    /// Checks the image's own tables as they stand in the file, and repairs what `repair` allows.
    ///
    /// An error of kind corrupt where the tables cannot even be followed.
    fn check(&self, repair: Repair) -> Result<CheckReport>;

    /// The unit of allocation in bytes, where the format has one.
    fn cluster_size(&self) -> Option<u64> {
        None
    }

    /// The backing file or parent as the image names it.
    fn backing_file(&self) -> Option<BackingFile> {
        None
    }

    /// The options that make another image like this one, but for its names, times and backing file.
    fn layout(&self) -> Layout;

    /// Changes the name of the backing file; `None` for none. What the image shows is the caller's affair.
    fn set_backing_file(&self, _backing: Option<&BackingFile>) -> Result<()> {
        Err(crate::Error::unsupported("changing the backing file in this format"))
    }

    /// Drops everything that the image holds, so that it shows its backing file.
    fn make_empty(&self) -> Result<()> {
        Err(crate::Error::unsupported("emptying an image of this format"))
    }

    /// Takes the new identity now that the first change would give the content; answers it, where it has changed.
    fn announce_change(&self) -> Result<Option<ContentId>> {
        Ok(None)
    }

    /// Notes, durably, that what lies beneath is known by this identity from now on.
    fn set_parent_id(&self, _id: ContentId) -> Result<()> {
        Ok(())
    }

    /// What identifies the content, so that a child knows its parent again.
    fn content_id(&self) -> Result<Option<ContentId>> {
        Ok(None)
    }

    /// Gives a range that holds nothing so far its place in the file, appended to `places`; who asked then writes what
    /// is not zeros of it as the answer says, from any thread. The range is of whole units, or reaches up to the end,
    /// unless the answer is [`Placing::Parts`].
    ///
    /// Places are asked for in rising order from one thread at a time, so that the same source always makes the same
    /// image. A length of zero asks only how.
    fn place(&self, _offset: u64, _len: u64, _places: &mut Vec<Place>) -> Result<Placing> {
        Ok(Placing::InOrder)
    }

    /// Whether a new image shows zeros where nothing was written. Where not, a copy writes zeros too.
    fn new_shows_zeros(&self) -> bool {
        true
    }

    /// Writing in compressed form.
    fn packer(&self) -> Option<&dyn Packer> {
        None
    }

    /// Whether the content can be written by the packer alone.
    fn packs_only(&self) -> bool {
        false
    }

    /// The image as qcow2: snapshots, bitmaps.
    fn qcow2(&self) -> Option<&Qcow2> {
        None
    }
}

/// Writing in compressed form, for images that are made anew.
///
/// Each thread packs with a compressor of its own; storing happens in rising order of offsets, from one thread at a
/// time, so that the same source always makes the same image.
pub(crate) trait Packer: Send + Sync {
    /// The length of a unit in bytes; the last of the disk may be shorter.
    fn unit(&self) -> usize;

    /// What one thread packs with, at a level on the scale of the image's algorithm; `None` for the default.
    fn compressor(&self, level: Option<i32>) -> Result<Box<dyn Compressor>>;

    /// Stores a unit that is not all zeros at `offset`, which was never written before: `packed` is what
    /// [`Compressor::pack`] made of `data`, `None` where that said to store it as it is.
    fn store(&self, offset: u64, data: &[u8], packed: Option<&[u8]>) -> Result<()>;
}

/// What one thread packs with.
pub(crate) trait Compressor: Send {
    /// Compresses one unit to `out`, whose former content is lost; false where the unit is to be stored as it is.
    fn pack(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<bool>;
}

/// How what [`Driver::place`] gave a place is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placing {
    /// There are no places: writing in order gives them.
    InOrder,
    /// To the disk, because the file does not hold its bytes plainly.
    Through,
    /// To the file of the image, plainly. New places are zeros, so that zeros need not be written.
    Plain,
    /// As [`Placing::Plain`], and parts of units can be given their places one after the other.
    Parts,
}

/// Where a range of the disk is in the file of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where it begins in the disk.
    pub(crate) offset: u64,
    /// Where it begins in the file.
    pub(crate) host: u64,
    /// Its length in the disk.
    pub(crate) len: u64,
}

/// What identifies the content of an image among those of its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentId {
    /// The CID of a VMDK.
    Vmdk(u32),
    /// The unique id of a VHD.
    Vhd([u8; 16]),
    /// The data write GUID of a VHDX.
    Vhdx([u8; 16]),
    /// Of what is expected of a VHDX: one of two data write GUIDs.
    VhdxEither([u8; 16], [u8; 16]),
}

impl ContentId {
    /// Whether `found` is what this expects.
    pub(crate) fn accepts(&self, found: &Self) -> bool {
        match (self, found) {
            (Self::VhdxEither(one, other), Self::Vhdx(found)) => [one, other].contains(&found),
            _ => self == found,
        }
    }
}

/// The other files that an image names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// The files that hold parts of it, in its order; [`OpenOptions::parts`] are these. A name may occur more than
    /// once.
    pub(crate) parts: Vec<String>,
    /// What lies beneath it.
    pub(crate) parent: Option<ParentLink>,
}

/// What an image says of the image beneath it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParentLink {
    /// Where it may be, best first; with `/` between folders, relative to the folder of the image or absolute.
    pub(crate) names: Vec<String>,
    /// The name of its format, where the image says so.
    pub(crate) format: Option<String>,
    /// What its content must be.
    pub(crate) expects: Option<ContentId>,
}

/// Opens an image.
pub(crate) fn open(file: Arc<dyn Disk>, format: Format, options: OpenOptions) -> Result<Box<dyn Driver>> {
    if options.snapshot.is_some() && format != Format::Qcow2 {
        return Err(crate::Error::unsupported("internal snapshots in this format"));
    }
    Ok(match format {
        Format::Raw => Box::new(raw::Raw::open(file, &options)),
        Format::Qcow2 => Box::new(Qcow2::open(file, options)?),
        Format::Vmdk => vmdk::open(file, options)?,
        Format::Vhd => vhd::open(file, options)?,
        Format::Vhdx => vhdx::open(file, options)?,
        Format::Vdi => vdi::open(file, options)?,
        Format::Luks => luks::open(file, options)?,
    })
}

/// Describes an image without opening its content.
pub(crate) fn describe(file: &dyn Disk, format: Format) -> Result<ImageInfo> {
    match format {
        Format::Raw => raw::info(file),
        Format::Qcow2 => qcow2::info::info(file, &qcow2::open::read_header(file)?),
        Format::Vmdk => vmdk::describe(file),
        Format::Vhd => vhd::describe(file),
        Format::Vhdx => vhdx::describe(file),
        Format::Vdi => vdi::describe(file),
        Format::Luks => luks::describe(file),
    }
}

/// The other files that an image names.
pub(crate) fn links(file: &dyn Disk, format: Format) -> Result<Links> {
    match format {
        Format::Raw | Format::Luks | Format::Vdi => Ok(Links::default()),
        Format::Qcow2 => qcow2::links(file),
        Format::Vmdk => vmdk::links(file),
        Format::Vhd => vhd::links(file),
        Format::Vhdx => vhdx::links(file),
    }
}

/// Makes an empty image on `file`, whose former content is lost; `parts` makes the further files of formats that
/// are spread over several. The caller flushes.
pub(crate) fn create(file: &Arc<dyn Disk>, options: &CreateOptions, parts: &dyn PartMaker) -> Result<()> {
    match &options.layout {
        Layout::Raw(layout) => raw::create(&**file, options, layout),
        Layout::Qcow2(layout) => qcow2::create::create_image(file, options, layout, parts),
        Layout::Vmdk(layout) => vmdk::create(file, options, layout, parts),
        Layout::Vhd(layout) => vhd::create(file, options, layout),
        Layout::Vhdx(layout) => vhdx::create(file, options, layout),
        Layout::Vdi(layout) => vdi::create(file, options, layout),
        Layout::Luks(layout) => luks::create(file, options, layout),
    }
}
