//! What an image must not ask QEMU to open.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Reason, Result};
use crate::spec::{Disk, DiskFormat};

/// The bytes of a qcow2 header up to and with the incompatible features (qcow2 specification, "Header").
const HEADER: usize = 80;

/// The bytes of the shortest header, that of version 2.
const HEADER_V2: usize = 72;

/// The incompatible feature by which an image keeps its data in a file that it names.
const EXTERNAL_DATA: u64 = 1 << 2;

/// Refuses images that need a file which the specification does not list.
///
/// QEMU is told of every file by name, so such an image would not open it but show other bytes than it holds.
pub(super) fn check(disk: &Disk) -> Result<()> {
    let images = std::iter::once((&disk.path, disk.format));
    let images = images.chain(disk.backing.iter().map(|backing| (&backing.path, backing.format)));
    let last = disk.backing.len();
    for (depth, (path, format)) in images.enumerate() {
        let file = File::open(path).map_err(|source| Error::host("open", path, source))?;
        if format == DiskFormat::Qcow2 {
            qcow2(path, file, depth < last)?;
        }
    }
    Ok(())
}

fn qcow2(path: &Path, file: File, has_backing: bool) -> Result<()> {
    let mut header = Vec::with_capacity(HEADER);
    let read = file.take(HEADER as u64).read_to_end(&mut header);
    read.map_err(|source| Error::host("read", path, source))?;
    let problem = |problem| Err(Reason::Image { path: path.to_owned(), problem }.into());
    if header.get(..4) != Some(b"QFI\xfb") {
        return problem("is no qcow2 image");
    }
    if header.len() < HEADER_V2 {
        return problem("is cut off within its header");
    }
    if number(&header, 8) != Some(0) && !has_backing {
        return problem("has a backing file, and none is listed for it");
    }
    let version = number(&header, 4).map(|word| word >> 32);
    let features = number(&header, 72).unwrap_or(0);
    if version >= Some(3) && features & EXTERNAL_DATA != 0 {
        return problem("keeps its data in another file");
    }
    Ok(())
}

/// The big-endian number of 8 bytes at an offset.
fn number(header: &[u8], offset: usize) -> Option<u64> {
    let bytes = header.get(offset..offset + 8)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests;
