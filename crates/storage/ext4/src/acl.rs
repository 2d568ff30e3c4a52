//! Access control lists: in the form of Linux outside, in the shorter one of the volume inside.

use crate::dir_block::{get_u16, get_u32};
use crate::error::{Error, ErrorKind, Result};

const ACL_USER_OBJ: u16 = 0x01;
const ACL_USER: u16 = 0x02;
const ACL_GROUP_OBJ: u16 = 0x04;
const ACL_GROUP: u16 = 0x08;
const ACL_MASK: u16 = 0x10;
const ACL_OTHER: u16 = 0x20;

const ACL_VERSION: u32 = 1;
const ACL_LINUX_VERSION: u32 = 2;

/// One line of an ACL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AclEntry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// Encodes the form of Linux.
pub(crate) fn to_linux(entries: &[AclEntry]) -> Vec<u8> {
    let mut linux = ACL_LINUX_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        linux.extend(entry.tag.to_le_bytes());
        linux.extend(entry.permissions.to_le_bytes());
        linux.extend(entry.id.to_le_bytes());
    }
    linux
}

/// Decodes the volume's form; `None` where it is malformed.
pub(crate) fn decode(value: &[u8]) -> Option<Vec<AclEntry>> {
    if value.len() < 4 || get_u32(value, 0) != ACL_VERSION {
        return None;
    }
    let mut entries = Vec::new();
    let mut rest = &value[4..];
    while !rest.is_empty() {
        if rest.len() < 4 {
            return None;
        }
        let (tag, permissions) = (get_u16(rest, 0), get_u16(rest, 2));
        let (id, size) = match tag {
            ACL_USER | ACL_GROUP if rest.len() >= 8 => (get_u32(rest, 4), 8),
            ACL_USER_OBJ | ACL_GROUP_OBJ | ACL_MASK | ACL_OTHER => (u32::MAX, 4),
            _ => return None,
        };
        entries.push(AclEntry { tag, permissions, id });
        rest = &rest[size..];
    }
    Some(entries)
}

fn encode(entries: &[AclEntry]) -> Vec<u8> {
    let mut value = ACL_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        value.extend(entry.tag.to_le_bytes());
        value.extend(entry.permissions.to_le_bytes());
        if matches!(entry.tag, ACL_USER | ACL_GROUP) {
            value.extend(entry.id.to_le_bytes());
        }
    }
    value
}

/// Turns an ACL of Linux into that of the volume; one without entries means that there is to be none.
pub(crate) fn from_linux(value: &[u8]) -> Result<Option<Vec<u8>>> {
    let entries = parse_linux(value)?;
    Ok((!entries.is_empty()).then(|| encode(&entries)))
}

/// Parses an ACL as Linux hands it over, and holds it to the rules of `acl_valid(3)`.
fn parse_linux(value: &[u8]) -> Result<Vec<AclEntry>> {
    let invalid = || Error::plain(ErrorKind::InvalidInput, "the ACL is malformed");
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let body = value.get(4..).filter(|body| body.len() % 8 == 0).ok_or_else(invalid)?;
    if get_u32(value, 0) != ACL_LINUX_VERSION {
        return Err(invalid());
    }
    let entries: Vec<_> = body.chunks_exact(8).map(|entry| (get_u16(entry, 0), entry)).collect();
    let entries: Vec<_> = entries
        .into_iter()
        .map(|(tag, entry)| {
            let named = matches!(tag, ACL_USER | ACL_GROUP);
            let id = if named { get_u32(entry, 4) } else { u32::MAX };
            AclEntry { tag, permissions: get_u16(entry, 2), id }
        })
        .collect();
    if entries.is_empty() {
        return Ok(entries);
    }
    let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
    let singles = [ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_OTHER].iter().all(|&tag| count(tag) == 1);
    let named = count(ACL_USER) + count(ACL_GROUP);
    let known = 3 + named + count(ACL_MASK) == entries.len();
    let masked = count(ACL_MASK) <= 1 && (named == 0 || count(ACL_MASK) == 1);
    let ordered = entries.windows(2).all(|pair| pair[0].tag <= pair[1].tag);
    let small = entries.iter().all(|entry| entry.permissions <= 7);
    if singles && known && masked && ordered && small { Ok(entries) } else { Err(invalid()) }
}

/// What setting an access ACL, in the form of Linux, makes of a mode; `None` in place of the ACL where the mode
/// alone says as much, so that the kernel keeps none.
pub(crate) fn apply_to_mode(value: &[u8], mode: u16) -> Result<(u16, Option<Vec<u8>>)> {
    let entries = parse_linux(value)?;
    if entries.is_empty() {
        return Ok((mode, None));
    }
    let of = |tag| entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions);
    let group = of(ACL_MASK).or(of(ACL_GROUP_OBJ)).unwrap_or(0);
    let bits = (of(ACL_USER_OBJ).unwrap_or(0) << 6) | (group << 3) | of(ACL_OTHER).unwrap_or(0);
    let kept = (entries.len() > 3).then(|| value.to_vec());
    Ok(((mode & !0o777) | bits, kept))
}

/// What changing a mode makes of an access ACL, both in the form of Linux.
pub(crate) fn after_chmod(value: &[u8], mode: u16) -> Result<Vec<u8>> {
    let mut entries = parse_linux(value)?;
    let masked = entries.iter().any(|entry| entry.tag == ACL_MASK);
    for entry in &mut entries {
        match entry.tag {
            ACL_USER_OBJ => entry.permissions = (mode >> 6) & 7,
            ACL_GROUP_OBJ if !masked => entry.permissions = (mode >> 3) & 7,
            ACL_MASK => entry.permissions = (mode >> 3) & 7,
            ACL_OTHER => entry.permissions = mode & 7,
            _ => {}
        }
    }
    Ok(to_linux(&entries))
}
