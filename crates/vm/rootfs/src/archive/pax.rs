//! Extended headers: records of `length key=value`, which say what the header has no room for.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use vmwright_vfs::Timestamp;

use super::acl;
use crate::{Error, Result};

/// Records by their key; the last of a key counts.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// What GNU tar's older form of sparse files repeats.
pub(super) const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
pub(super) const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";

/// Adds the records in `bytes` to those that are there. The pairs of a sparse file that are listed one by one are put
/// together as `GNU.sparse.map`.
pub(super) fn parse(bytes: &[u8], at: u64, records: &mut Records) -> Result<()> {
    let damaged = || Error::damaged(at, "an extended header is damaged");
    let (mut rest, mut map) = (bytes, Vec::new());
    while !rest.is_empty() {
        let digits = rest.iter().take(20).take_while(|byte| byte.is_ascii_digit()).count();
        let len = std::str::from_utf8(&rest[..digits]).ok().and_then(|digits| digits.parse::<usize>().ok());
        let len = len.filter(|len| *len > digits + 1 && *len <= rest.len()).ok_or_else(damaged)?;
        let (record, next) = rest.split_at(len);
        let (b' ', Some(b'\n')) = (record[digits], record.last().copied()) else { return Err(damaged()) };
        let body = &record[digits + 1..len - 1];
        let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(damaged)?;
        let (key, value) = (&body[..equals], &body[equals + 1..]);
        if key == SPARSE_OFFSET || key == SPARSE_LENGTH {
            if !map.is_empty() {
                map.push(b',');
            }
            map.extend_from_slice(value);
        } else if value.is_empty() {
            // Takes back what a global header said.
            records.remove(key);
        } else {
            records.insert(key.to_vec(), value.to_vec());
        }
        rest = next;
    }
    if !map.is_empty() {
        records.insert(b"GNU.sparse.map".to_vec(), map);
    }
    Ok(())
}

/// A decimal number.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Seconds with a fraction, which may be negative.
pub(super) fn time(value: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        let seconds = seconds.checked_sub(1)?;
        return Some(Timestamp { seconds, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Some(Timestamp { seconds, nanoseconds })
}

/// The extended attributes that records stand for, in the order of their names.
pub(super) fn xattrs(records: &Records, at: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    for (key, value) in records {
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let wrong = || Error::damaged(at, "an extended attribute is no base64");
            let end = value.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
            let value = STANDARD_NO_PAD.decode(&value[..end]).map_err(|_| wrong())?;
            found.entry(unescape(name)).or_insert(value);
        }
    }
    for (key, value) in records {
        // Written as it is, so it counts more than a copy in another form.
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            found.insert(name.to_vec(), value.clone());
        }
    }
    let forms: [(&[u8], &[u8]); 2] = [
        (b"SCHILY.acl.access", b"system.posix_acl_access"),
        (b"SCHILY.acl.default", b"system.posix_acl_default"),
    ];
    for (key, name) in forms {
        if let Some(text) = records.get(key)
            && !found.contains_key(name)
        {
            let problem = "an access control list that names nobody by number (GNU tar writes numbers with --numeric-owner)";
            let list = acl::parse(text).ok_or_else(|| Error::unsupported(at, problem))?;
            found.insert(name.to_vec(), list);
        }
    }
    Ok(found.into_iter().filter(|(name, _)| crate::directory::is_kept(name)).collect())
}

/// Undoes `%XX`.
fn unescape(name: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(name.len()), 0);
    while at < name.len() {
        let hex = name.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (name[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_hold_any_bytes() {
        let mut records = Records::new();
        let value = b"a\n=\0b";
        let body = [&b"SCHILY.xattr.user.x="[..], value].concat();
        let record = [format!("{} ", body.len() + 4).as_bytes(), &body, b"\n"].concat();
        assert_eq!(record.len(), body.len() + 4);
        parse(&record, 0, &mut records).unwrap();
        assert_eq!(xattrs(&records, 0).unwrap(), [(b"user.x".to_vec(), value.to_vec())]);
        assert!(parse(b"99 a=b\n", 0, &mut records).is_err());
        assert!(parse(b"4 a=b\n", 0, &mut records).is_err());
    }

    #[test]
    fn times_have_fractions_on_both_sides_of_1970() {
        let time = |text: &str| time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("-12.25"), Some((-13, 750_000_000)));
        assert_eq!(time("7"), Some((7, 0)));
        assert_eq!(time("7.1234567899"), Some((7, 123_456_789)));
        assert_eq!(time("x"), None);
    }
}
