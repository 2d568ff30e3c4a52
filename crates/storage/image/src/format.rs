use serde::{Deserialize, Serialize};
use vmwright_disk::{Disk, ErrorKind};

use crate::error::Reason;
use crate::{Error, Result, qcow2};

/// An image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the disk and nothing else.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl Format {
    /// The name as QEMU writes it, such as `qcow2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
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

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Raw, Self::Qcow2];
        let found = all.into_iter().find(|format| format.name() == name);
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

/// Decides the format of an image by its first bytes; what has no known signature is raw.
pub fn probe(disk: &dyn Disk) -> Result<Format> {
    let mut magic = [0; 8];
    match disk.read_at(&mut magic, 0) {
        Ok(()) if qcow2::is_qcow2(&magic) => Ok(Format::Qcow2),
        Ok(()) => Ok(Format::Raw),
        // Shorter than any signature.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(Format::Raw),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::MemDisk;

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
        assert_eq!("qcow".parse::<Format>().unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
