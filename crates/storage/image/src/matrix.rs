//! What each format can do here, and why it cannot do the rest.

use serde::Serialize;

use crate::Format;

/// Something that is done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Operation {
    /// Recognising the format by its signature.
    Probe,
    /// Describing the image without opening its content.
    Info,
    /// Reading what the guest sees.
    Read,
    /// Saying where the bytes are.
    Map,
    /// Making a new image.
    Create,
    /// Writing in place.
    Write,
    /// Giving space back in place.
    Discard,
    /// Making the disk larger.
    Grow,
    /// Making the disk smaller.
    Shrink,
    /// Making an image out of another disk.
    Convert,
    /// Making a compressed image, and reading one.
    Compress,
    /// Lying over another image.
    Overlay,
    /// Giving what an overlay holds to the image beneath.
    Commit,
    /// Lying over another image than before.
    Rebase,
    /// Being written anew without what holds nothing.
    Compact,
    /// Internal snapshots.
    Snapshots,
    /// Persistent dirty bitmaps.
    Bitmaps,
    /// Encrypted content.
    Encrypt,
    /// Checking the image's own tables.
    Check,
    /// Repairing them.
    Repair,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 20] = [
        Self::Probe,
        Self::Info,
        Self::Read,
        Self::Map,
        Self::Create,
        Self::Write,
        Self::Discard,
        Self::Grow,
        Self::Shrink,
        Self::Convert,
        Self::Compress,
        Self::Overlay,
        Self::Commit,
        Self::Rebase,
        Self::Compact,
        Self::Snapshots,
        Self::Bitmaps,
        Self::Encrypt,
        Self::Check,
        Self::Repair,
    ];

    /// The name, as the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Info => "info",
            Self::Read => "read",
            Self::Map => "map",
            Self::Create => "create",
            Self::Write => "write",
            Self::Discard => "discard",
            Self::Grow => "grow",
            Self::Shrink => "shrink",
            Self::Convert => "convert",
            Self::Compress => "compress",
            Self::Overlay => "overlay",
            Self::Commit => "commit",
            Self::Rebase => "rebase",
            Self::Compact => "compact",
            Self::Snapshots => "snapshots",
            Self::Bitmaps => "bitmaps",
            Self::Encrypt => "encrypt",
            Self::Check => "check",
            Self::Repair => "repair",
        }
    }
}

/// Whether a format can do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Support {
    /// It can.
    Done,
    /// It can, in some of its kinds or with a limit: which.
    Partly(&'static str),
    /// It is refused: why.
    Refused(&'static str),
}

use Support::{Done, Partly, Refused};

const NO_TABLES: &str = "the format has no tables of its own that could be wrong";
const NO_COMPRESSION: &str = "the format has no compression";
const NO_PARENT: &str = "the format has no place for the name of another image";
const NO_SNAPSHOTS: &str = "the format has no internal snapshots";
const NO_BITMAPS: &str = "the format has no dirty bitmaps";
const NO_ENCRYPTION: &str = "the format has no encryption; LUKS beneath or inside the disk has";
const PARENT_IS_IDENTITY: &str = "a child names its parent by an identity that another image does not have";

/// Whether `format` can do `operation`.
pub fn support(format: Format, operation: Operation) -> Support {
    use Operation as Op;
    match (operation, format) {
        (Op::Probe, Format::Raw) => Partly("what has no known signature is raw"),
        (Op::Probe | Op::Info | Op::Read | Op::Create | Op::Convert, _) => Done,
        (Op::Map, Format::Luks) => Partly("where the encrypted bytes are says nothing of zeros"),
        (Op::Map, _) => Done,
        (Op::Write | Op::Discard | Op::Compact, Format::Vmdk) => {
            Partly("not in streamOptimized and seSparse images, which are written once")
        }
        (Op::Discard, Format::Luks) => Partly("nothing is given back: a hole would decrypt to garbage"),
        (Op::Compact, Format::Luks) => {
            Refused("which sectors hold nothing cannot be told from what is encrypted")
        }
        (Op::Write | Op::Discard | Op::Compact, _) => Done,
        (Op::Grow | Op::Shrink, Format::Qcow2) => Partly("not with snapshots in version 2"),
        (Op::Grow | Op::Shrink, Format::Vmdk) => Partly(
            "the last extent, up to 2 GiB where the disk is split; not streamOptimized, vmfsSparse, seSparse",
        ),
        (Op::Commit, Format::Vmdk) => {
            Partly("into the next image only, which the one above knows by its CID")
        }
        (Op::Shrink, Format::Vhd | Format::Vdi) => Partly("fixed images"),
        (Op::Shrink, Format::Vhdx) => Partly("not differencing images"),
        (Op::Grow | Op::Shrink, _) => Done,
        (Op::Compress, Format::Qcow2) => Done,
        (Op::Compress, Format::Vmdk) => Partly("streamOptimized images"),
        (Op::Compress, _) => Refused(NO_COMPRESSION),
        (Op::Overlay, Format::Qcow2 | Format::Vmdk | Format::Vhd | Format::Vhdx) => Done,
        (Op::Overlay, Format::Vdi) => {
            Refused("differencing VDIs name their parent by a registry that VirtualBox keeps")
        }
        (Op::Overlay | Op::Commit | Op::Rebase, Format::Raw | Format::Luks) => Refused(NO_PARENT),
        (Op::Commit | Op::Rebase, Format::Vdi) => Refused(NO_PARENT),
        (Op::Commit, _) => Done,
        (Op::Rebase, Format::Qcow2) => Done,
        (Op::Rebase, _) => Refused(PARENT_IS_IDENTITY),
        (Op::Snapshots, Format::Qcow2) => Done,
        (Op::Snapshots, _) => Refused(NO_SNAPSHOTS),
        (Op::Bitmaps, Format::Qcow2) => Done,
        (Op::Bitmaps, _) => Refused(NO_BITMAPS),
        (Op::Encrypt, Format::Qcow2 | Format::Luks) => Done,
        (Op::Encrypt, _) => Refused(NO_ENCRYPTION),
        (Op::Check | Op::Repair, Format::Raw) => Refused(NO_TABLES),
        (Op::Check | Op::Repair, _) => Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_reason() {
        for format in Format::ALL {
            for operation in Operation::ALL {
                if let Partly(reason) | Refused(reason) = support(format, operation) {
                    assert!(reason.len() > 10, "{format} {operation:?}");
                }
            }
        }
    }
}
