use serde::{Deserialize, Serialize};
use vmwright_disk::Disk;

use crate::error::Reason;
use crate::{Error, Result, luks, qcow2, vdi, vhd, vhdx, vmdk};

/// An image format; serialises as QEMU names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the disk and nothing else.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// VMware's formats: one file or several, sparse or flat.
    Vmdk,
    /// Microsoft's older format, of Virtual PC.
    #[serde(rename = "vpc")]
    Vhd,
    /// Microsoft's newer format, of Hyper-V.
    Vhdx,
    /// VirtualBox's format.
    Vdi,
    /// A disk encrypted by LUKS, version 1 or 2.
    Luks,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 7] =
        [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhd, Self::Vhdx, Self::Vdi, Self::Luks];

    /// The name as the field writes it, such as `qcow2` or `vhd`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Luks => "luks",
        }
    }

    /// The name as QEMU writes it, also into images that name a backing file: VHD is `vpc`.
    pub fn qemu_name(self) -> &'static str {
        match self {
            Self::Vhd => "vpc",
            other => other.name(),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    /// Takes our name or QEMU's.
    fn from_str(name: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|format| format.name() == name || format.qemu_name() == name);
        found.ok_or_else(|| Reason::UnknownFormat { name: name.to_owned() }.into())
    }
}

/// How the format of an image is decided.
///
/// Whoever can write a raw disk from inside a guest can make it look like any format: an image whose format
/// is known is opened with [`FormatChoice::Exact`], and its first bytes then mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatChoice {
    /// The image has this format, whatever its first bytes say.
    Exact(Format),
    /// The first bytes decide, and an image without a known signature is raw.
    Probe,
}

impl FormatChoice {
    /// The format that this choice means for `disk`.
    pub fn resolve(self, disk: &dyn Disk) -> Result<Format> {
        match self {
            Self::Exact(format) => Ok(format),
            Self::Probe => probe(disk),
        }
    }
}

/// Decides the format of an image by its signature, at the beginning or, for a fixed VHD, at the end; what has none
/// is raw.
pub fn probe(disk: &dyn Disk) -> Result<Format> {
    let mut head = vec![0; disk.len().min(512) as usize];
    disk.read_at(&mut head, 0)?;
    let known = [
        (Format::Qcow2, qcow2::is_qcow2(&head)),
        (Format::Vmdk, vmdk::is_vmdk(&head)),
        (Format::Vhdx, vhdx::is_vhdx(&head)),
        (Format::Vhd, vhd::is_vhd(&head)),
        (Format::Vdi, vdi::is_vdi(&head)),
        (Format::Luks, luks::is_luks(&head)),
    ];
    if let Some((format, _)) = known.into_iter().find(|(_, matches)| *matches) {
        return Ok(format);
    }
    Ok(if vhd::is_fixed_vhd(disk)? { Format::Vhd } else { Format::Raw })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::{ErrorKind, MemDisk};

    #[test]
    fn an_exact_choice_never_looks_at_the_bytes() {
        let disk = MemDisk::from_bytes(b"QFI\xfb\0\0\0\x03 and more".to_vec());
        assert_eq!(FormatChoice::Probe.resolve(&disk).unwrap(), Format::Qcow2);
        assert_eq!(FormatChoice::Exact(Format::Raw).resolve(&disk).unwrap(), Format::Raw);
    }

    #[test]
    fn a_disk_shorter_than_a_signature_is_raw() {
        assert_eq!(probe(&MemDisk::new(3)).unwrap(), Format::Raw);
        assert_eq!(probe(&MemDisk::new(0)).unwrap(), Format::Raw);
    }

    #[test]
    fn names_parse_back() {
        assert_eq!("qcow2".parse::<Format>().unwrap(), Format::Qcow2);
        for format in Format::ALL {
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
            assert_eq!(format.qemu_name().parse::<Format>().unwrap(), format);
        }
        assert_eq!("qcow".parse::<Format>().unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
