//! Regular files out of tar archives, in the formats of POSIX and GNU.

use std::io::Read;

use crate::error::Reason;
use crate::{Error, Result};

const BLOCK: usize = 512;
/// The longest path that is followed.
const PATH_LIMIT: u64 = 64 << 10;

/// Calls `visit` with the path (without a leading `./`), the size and the content of each regular file.
pub(crate) fn each(
    mut archive: impl Read,
    what: &'static str,
    visit: &mut dyn FnMut(&str, u64, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut long_path = None;
    let mut at = 0usize;
    loop {
        let mut header = [0; BLOCK];
        archive.read_exact(&mut header).map_err(|source| Reason::Unpack { what, source })?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let size = number(&header[124..136])
            .ok_or_else(|| Error::corrupt(what, at, "the size of a file in its tar is no number"))?;
        let mut content = archive.by_ref().take(size);
        match header[156] {
            b'L' => long_path = Some(trimmed(&self::content(&mut content, size, what, PATH_LIMIT)?)),
            b'x' => {
                let records = self::content(&mut content, size, what, PATH_LIMIT)?;
                long_path = pax_path(&records).or(long_path);
            }
            b'0' | 0 => {
                let path = long_path.take().unwrap_or_else(|| path_of(&header));
                let path = path.trim_start_matches("./").trim_start_matches('/');
                visit(path, size, &mut content)?;
            }
            _ => long_path = None,
        }
        // What was not read, and what fills the last block.
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        let rest = content.limit() + padding;
        let skipped = std::io::copy(&mut archive.by_ref().take(rest), &mut std::io::sink());
        if skipped.map_err(|source| Reason::Unpack { what, source })? < rest {
            return Err(Error::corrupt(what, at, "its tar is cut off"));
        }
        at = at.saturating_add(BLOCK);
    }
}

/// Reads the whole content of a file, if it is no larger than `limit`.
pub(crate) fn content(content: &mut dyn Read, size: u64, what: &'static str, limit: u64) -> Result<Vec<u8>> {
    if size > limit {
        return Err(Reason::TooLarge { what: "a file in the package", limit: limit as usize }.into());
    }
    let mut bytes = Vec::new();
    content.read_to_end(&mut bytes).map_err(|source| Reason::Unpack { what, source })?;
    match bytes.len() as u64 == size {
        true => Ok(bytes),
        false => Err(Error::corrupt(what, bytes.len(), "its tar is cut off")),
    }
}

/// Octal digits, or GNU's binary form with the highest bit set. Sizes that cannot be are refused.
fn number(field: &[u8]) -> Option<u64> {
    let value = if field[0] & 0x80 != 0 {
        let [first, rest @ ..] = field else { return None };
        let digits = std::iter::once(first & 0x7F).chain(rest.iter().copied());
        digits.into_iter().try_fold(0u64, |value, byte| value.checked_mul(256)?.checked_add(byte.into()))?
    } else {
        let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
        if text.is_empty() { 0 } else { u64::from_str_radix(text, 8).ok()? }
    };
    (value < 1 << 62).then_some(value)
}

fn path_of(header: &[u8; BLOCK]) -> String {
    let name = trimmed(&header[..100]);
    let prefix = trimmed(&header[345..500]);
    match header[257..263] == *b"ustar\0" && !prefix.is_empty() {
        true => format!("{prefix}/{name}"),
        false => name,
    }
}

fn trimmed(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Records such as `30 path=some/long/path\n`.
fn pax_path(mut records: &[u8]) -> Option<String> {
    while let Some(space) = records.iter().position(|byte| *byte == b' ') {
        let len: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..len)?;
        if let Some(path) = record.strip_prefix(b"path=") {
            return Some(trimmed(path.strip_suffix(b"\n").unwrap_or(path)));
        }
        records = &records[len..];
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One entry of an archive.
    pub(crate) fn entry(path: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        bytes[156] = kind;
        bytes[257..263].copy_from_slice(b"ustar\0");
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn list(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut found = Vec::new();
        each(archive, "it", &mut |path, size, reader| {
            // Every other content is left unread, which must not matter.
            let bytes = if found.len() % 2 == 0 { content(reader, size, "it", 1000)? } else { Vec::new() };
            found.push((path.to_owned(), bytes));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn files_come_out_whichever_way_their_path_is_written() {
        let archive = [
            entry("./a", b'0', b"one"),
            entry("dir/", b'5', b""),
            entry("././@LongLink", b'L', b"some/long/path\0"),
            entry("some/lo", b'0', b"two"),
            entry("pax", b'x', b"18 mtime=12345678\n21 path=other/long/p\n"),
            entry("other", b'0', &[7; 600]),
            vec![0; 1024],
        ];
        let found = list(&archive.concat()).unwrap();
        let paths: Vec<_> = found.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["a", "some/long/path", "other/long/p"]);
        assert_eq!((found[0].1.as_slice(), found[2].1.len()), (&b"one"[..], 600));
    }

    #[test]
    fn a_size_beyond_all_archives_is_corrupt() {
        let mut archive = entry("a", b'0', b"");
        archive[124..136].fill(0xFF);
        assert_eq!(list(&archive).unwrap_err().kind(), vmwright_vfs::ErrorKind::Corrupt);
    }
}
