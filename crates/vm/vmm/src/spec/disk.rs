use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest serial number in bytes that virtio-blk can show.
pub const SERIAL_MAX: usize = 20;

/// A disk image that becomes a virtio block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image on the host.
    pub path: PathBuf,
    /// Its format, never guessed from its bytes: a guest could write another format's header.
    pub format: DiskFormat,
    /// The images beneath it, the nearest first.
    ///
    /// A monitor opens these and no others, whatever names the images hold; an image that names
    /// a backing file is refused unless one is listed here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backing: Vec<Backing>,
    /// Whether the guest is kept from writing.
    #[serde(default)]
    pub read_only: bool,
    /// The serial number that the guest reads, by which it can find the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// An image beneath another one; it is only read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backing {
    /// The image on the host.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DiskFormat {
    /// The bytes of the disk as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl std::fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// Why a disk makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// A path that says nothing.
    #[error("an image has an empty path")]
    EmptyPath,
    /// A raw image cannot lie on another one.
    #[error("a raw image has no backing image")]
    RawWithBacking,
    /// The serial number is too long or empty.
    #[error("a serial number has 1 to {SERIAL_MAX} bytes, not {len}")]
    SerialLength {
        /// How many it has.
        len: usize,
    },
    /// The serial number has a byte that a guest could misread.
    #[error("a serial number has letters, digits, '-', '_' and '.' only")]
    SerialCharacter,
}

impl Disk {
    /// Describes a writable disk without backing images and serial number.
    pub fn new(path: impl Into<PathBuf>, format: DiskFormat) -> Self {
        Self { path: path.into(), format, backing: Vec::new(), read_only: false, serial: None }
    }

    /// Checks what no monitor could serve.
    pub fn validate(&self) -> Result<(), DiskError> {
        let paths = std::iter::once(&self.path).chain(self.backing.iter().map(|backing| &backing.path));
        if paths.into_iter().any(|path| path.as_os_str().is_empty()) {
            return Err(DiskError::EmptyPath);
        }
        let formats = std::iter::once(self.format).chain(self.backing.iter().map(|backing| backing.format));
        let above_others = formats.take(self.backing.len());
        if above_others.into_iter().any(|format| format == DiskFormat::Raw) {
            return Err(DiskError::RawWithBacking);
        }
        match self.serial.as_deref() {
            Some(serial) if serial.is_empty() || serial.len() > SERIAL_MAX => {
                Err(DiskError::SerialLength { len: serial.len() })
            }
            Some(serial) if !serial.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) => {
                Err(DiskError::SerialCharacter)
            }
            _ => Ok(()),
        }
    }
}
