//! What a kernel module says of itself: the section `.modinfo` of a 64-bit ELF object.

use crate::{Error, Result};

const WHAT: &str = "a kernel module";
const SECTION_HEADER: usize = 64;

/// The names of the modules that this one needs.
pub(crate) fn depends(object: &[u8]) -> Result<Vec<String>> {
    let section = section(object, b".modinfo")?;
    let entries = section.split(|byte| *byte == 0);
    let depends = entries.filter_map(|entry| entry.strip_prefix(b"depends="));
    let names = depends.flat_map(|names| names.split(|byte| *byte == b','));
    let names = names.filter(|name| !name.is_empty()).map(|name| String::from_utf8_lossy(name).into_owned());
    Ok(names.collect())
}

fn section<'a>(object: &'a [u8], wanted: &[u8]) -> Result<&'a [u8]> {
    if !object.starts_with(b"\x7fELF\x02\x01") {
        return Err(Error::corrupt(WHAT, 0, "it is no 64-bit little-endian ELF"));
    }
    let headers = number::<8>(object, 40)?;
    let size = number::<2>(object, 58)?;
    let count = number::<2>(object, 60)?;
    let names_index = number::<2>(object, 62)?;
    if size < SECTION_HEADER {
        return Err(Error::corrupt(WHAT, 58, "its section headers are too small"));
    }
    let content = |index: usize| -> Result<(usize, &'a [u8])> {
        let beyond = || Error::corrupt(WHAT, headers, "a section reaches past the end");
        let header = index.checked_mul(size).and_then(|at| at.checked_add(headers)).ok_or_else(beyond)?;
        let (offset, len) = (
            number::<8>(object, header.saturating_add(24))?,
            number::<8>(object, header.saturating_add(32))?,
        );
        let end = offset.checked_add(len).ok_or_else(beyond)?;
        // A section without content, such as .bss, may claim any place.
        Ok((number::<4>(object, header)?, object.get(offset..end).unwrap_or_default()))
    };
    let (_, names) = content(names_index)?;
    for index in 0..count {
        let (name, bytes) = content(index)?;
        let name = names.get(name..).unwrap_or_default();
        if name.strip_prefix(wanted).is_some_and(|rest| rest.first() == Some(&0)) {
            return Ok(bytes);
        }
    }
    Err(Error::corrupt(WHAT, headers, "it has no section .modinfo"))
}

/// A little-endian number of `N` bytes.
fn number<const N: usize>(object: &[u8], at: usize) -> Result<usize> {
    let field = object.get(at..).and_then(|rest| rest.first_chunk::<N>());
    let field = field.ok_or_else(|| Error::corrupt(WHAT, at, "a header is cut off"))?;
    let mut bytes = [0; 8];
    bytes[..N].copy_from_slice(field);
    usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| Error::corrupt(WHAT, at, "a number is too large"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An object that consists of `.modinfo` alone.
    pub(crate) fn object(entries: &[&str]) -> Vec<u8> {
        let info: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes().chain([0])).collect();
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut object = vec![0; 64];
        object[..6].copy_from_slice(b"\x7fELF\x02\x01");
        object[58] = SECTION_HEADER as u8;
        object[60] = 3;
        object[62] = 2;
        let info_at = object.len();
        object.extend(&info);
        let names_at = object.len();
        object.extend(names);
        let headers = object.len() as u64;
        object[40..48].copy_from_slice(&headers.to_le_bytes());
        for (name, offset, len) in [(0, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
            let mut header = [0; SECTION_HEADER];
            header[0] = name;
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            object.extend(header);
        }
        object
    }

    #[test]
    fn what_a_module_needs_is_read() {
        let object = object(&["license=GPL", "depends=virtio,virtio-ring", "name=x"]);
        assert_eq!(depends(&object).unwrap(), ["virtio", "virtio-ring"]);
        for len in 0..object.len() {
            // Only the unused end of the last header can be missing.
            assert!(depends(&object[..len]).is_err() || len >= object.len() - 24, "{len}");
        }
    }
}
