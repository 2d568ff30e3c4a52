//! The ELF kernel out of a bzImage.
//!
//! A monitor that starts the ELF saves the guest from unpacking it. Layout and field offsets: the Linux
//! x86 boot protocol, <https://docs.kernel.org/arch/x86/boot.html>.

use crate::unpack::{Packing, unpack};
use crate::{Error, Result};

/// The largest kernel that is unpacked.
const KERNEL_LIMIT: usize = 512 << 20;

const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The first protocol version that says where the payload is.
const PAYLOAD_SINCE: u16 = 0x0208;

/// Whether these are the first bytes of a bzImage; needs 0x206 of them.
pub fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(b"\x55\xaa")
        && bytes.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS")
}

/// Unpacks the ELF kernel out of a bzImage; an ELF is answered as it is.
///
/// Kind `Corrupt` where the image contradicts its format, `Unsupported` where the kernel is packed in a way that
/// is not handled (bzip2, bare LZMA, LZO): such a kernel still boots as the bzImage it is.
pub fn extract_elf(kernel: &[u8]) -> Result<Vec<u8>> {
    const WHAT: &str = "the kernel";
    if kernel.starts_with(b"\x7fELF") {
        return Ok(kernel.to_vec());
    }
    if !is_bzimage(kernel) {
        return Err(Error::corrupt(WHAT, HEADER_MAGIC, "neither an ELF nor a bzImage"));
    }
    if u16_at(kernel, VERSION)? < PAYLOAD_SINCE {
        return Err(Error::corrupt(WHAT, VERSION, "the boot protocol is older than 2.08"));
    }
    let setup_sectors = match kernel[SETUP_SECTS] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(kernel, PAYLOAD_OFFSET)?;
    let payload = kernel.get(start..).and_then(|rest| rest.get(..u32_at(kernel, PAYLOAD_LENGTH).ok()?));
    let payload =
        payload.ok_or_else(|| Error::corrupt(WHAT, PAYLOAD_OFFSET, "the payload reaches past the end"))?;
    let elf = match Packing::detect(payload) {
        Some(packing) => unpack(payload, packing, WHAT, KERNEL_LIMIT)?,
        None => payload.to_vec(),
    };
    match elf.starts_with(b"\x7fELF") {
        true => Ok(elf),
        false => Err(Error::corrupt(WHAT, start, "the payload is no ELF")),
    }
}

/// Whether a 64-bit ELF kernel has the entry that PVH boot starts at, which QEMU and others need for an ELF.
///
/// It is told by an ELF note of the owner `Xen` and type 18 (`XEN_ELFNOTE_PHYS32_ENTRY`):
/// <https://xenbits.xen.org/docs/unstable/misc/pvh.html>.
pub fn has_pvh_entry(elf: &[u8]) -> bool {
    const PT_NOTE: u64 = 4;
    const PHYS32_ENTRY: u64 = 18;
    let word = |at: u64, len: usize| -> Option<u64> {
        let field = elf.get(usize::try_from(at).ok()?..)?.get(..len)?;
        Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let note_at = |mut at: u64, end: u64| -> Option<bool> {
        while at < end {
            let (name, content, kind) = (word(at, 4)?, word(at + 4, 4)?, word(at + 8, 4)?);
            if kind == PHYS32_ENTRY
                && name == 4
                && word(at + 12, 4)? == u64::from(u32::from_le_bytes(*b"Xen\0"))
            {
                return Some(true);
            }
            at += 12 + name.next_multiple_of(4) + content.next_multiple_of(4);
        }
        Some(false)
    };
    let search = || -> Option<bool> {
        let (table, size, count) = (word(32, 8)?, word(54, 2)?, word(56, 2)?);
        for index in 0..count {
            let header = table.checked_add(size * index)?;
            if word(header, 4)? == PT_NOTE {
                let (offset, len) = (word(header.checked_add(8)?, 8)?, word(header.checked_add(32)?, 8)?);
                if note_at(offset, offset.checked_add(len)?.min(elf.len() as u64)).unwrap_or(false) {
                    return Some(true);
                }
            }
        }
        Some(false)
    };
    elf.starts_with(b"\x7fELF\x02\x01") && search().unwrap_or(false)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let field = bytes.get(at..at + 2).and_then(|field| field.try_into().ok());
    field.map(u16::from_le_bytes).ok_or_else(|| Error::corrupt("the kernel", at, "the header is cut off"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize> {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    let value = field.map(u32::from_le_bytes);
    value.map(|value| value as usize).ok_or_else(|| Error::corrupt("the kernel", at, "the header is cut off"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vmwright_vfs::ErrorKind;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTS] = 1;
        image[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(b"\x55\xaa");
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend([0; 16]);
        image.extend(payload);
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_elf_comes_out_as_it_went_in() {
        let elf = b"\x7fELF and the rest".to_vec();
        assert_eq!(extract_elf(&bzimage(&gzip(&elf))).unwrap(), elf);
        assert_eq!(extract_elf(&bzimage(&elf)).unwrap(), elf);
        assert_eq!(extract_elf(&elf).unwrap(), elf);
    }

    #[test]
    fn damage_is_corrupt_and_never_a_panic() {
        let image = bzimage(&gzip(b"\x7fELF"));
        for len in 0..image.len() {
            assert_eq!(extract_elf(&image[..len]).unwrap_err().kind(), ErrorKind::Corrupt, "{len}");
        }
        assert_eq!(extract_elf(&bzimage(b"no kernel")).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(extract_elf(&bzimage(b"BZh91AY")).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
