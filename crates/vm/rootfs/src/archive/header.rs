//! A header of 512 bytes: POSIX `ustar`, GNU and the ones before.

use crate::{Error, Result};

pub(super) const BLOCK: usize = 512;

/// The fields that matter, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) mode: u16,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) modified: i64,
    pub(super) kind: u8,
    pub(super) link: Vec<u8>,
    pub(super) major: u64,
    pub(super) minor: u64,
    pub(super) is_gnu: bool,
}

impl Header {
    /// Decodes a block that is not all zeros; `at` is where it is.
    pub(super) fn parse(block: &[u8; BLOCK], at: u64) -> Result<Self> {
        let sum =
            number(&block[148..156]).ok_or_else(|| Error::damaged(at, "a header's checksum is no number"))?;
        let outside = block[..148].iter().chain(&block[156..]);
        let unsigned: i64 = outside.clone().map(|byte| i64::from(*byte)).sum::<i64>() + 8 * 32;
        // Some old programs summed up signed characters.
        let signed: i64 = outside.map(|byte| i64::from(*byte as i8)).sum::<i64>() + 8 * 32;
        if sum != unsigned && sum != signed {
            return Err(Error::damaged(at, "a header's checksum is wrong"));
        }
        let is_gnu = &block[257..265] == b"ustar  \0";
        let is_posix = &block[257..262] == b"ustar" && !is_gnu;
        let mut name = text(&block[..100]);
        if is_posix && block[345] != 0 {
            name = [&text(&block[345..500])[..], b"/", &name].concat();
        }
        let field = |range: std::ops::Range<usize>, what| {
            number(&block[range]).ok_or_else(|| Error::damaged(at, what))
        };
        let count = |value: i64, what| u64::try_from(value).map_err(|_| Error::damaged(at, what));
        // Fields beyond the size are filled with anything by some programs where they mean nothing.
        let device =
            |range: std::ops::Range<usize>| number(&block[range]).and_then(|n| u64::try_from(n).ok());
        Ok(Self {
            name,
            mode: (field(100..108, "a mode is no number")? & 0o7777) as u16,
            uid: count(field(108..116, "an owner is no number")?, "an owner is negative")?,
            gid: count(field(116..124, "a group is no number")?, "a group is negative")?,
            size: count(field(124..136, "a size is no number")?, "a size is negative")?,
            modified: field(136..148, "a time is no number")?,
            kind: block[156],
            link: text(&block[157..257]),
            major: if is_gnu || is_posix { device(329..337).unwrap_or(0) } else { 0 },
            minor: if is_gnu || is_posix { device(337..345).unwrap_or(0) } else { 0 },
            is_gnu,
        })
    }
}

/// The bytes before the first zero.
pub(super) fn text(field: &[u8]) -> Vec<u8> {
    field.iter().take_while(|byte| **byte != 0).copied().collect()
}

/// Reads octal digits between spaces, or a big-endian number whose first bit is set; nothing is zero.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement, of which the first bit is the mark.
        let start: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let first = i128::from(first & 0x7f) | (start << 7);
        let value = field[1..]
            .iter()
            .try_fold(first, |value, byte| value.checked_mul(256)?.checked_add(i128::from(*byte)))?;
        return i64::try_from(value).ok();
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ');
    let mut value: i64 = 0;
    for byte in digits {
        match byte {
            b'0'..=b'7' => value = value.checked_mul(8)?.checked_add(i64::from(byte - b'0'))?,
            0 | b' ' => break,
            _ => return None,
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(b"12x45"), None);
    }
}
