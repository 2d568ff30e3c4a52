//! Access control lists, from the text that archives keep to the bytes of `system.posix_acl_*`.

/// Who an entry is about, in the order of the bytes.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The identity of entries about nobody in particular.
const NOBODY: u32 = u32::MAX;

/// Turns `user::rwx,user:1000:r--,…` into version 2 of the kernel's form. `None` where it is none, or names somebody
/// without a number; star's fourth field is such a number.
pub(super) fn parse(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for line in
        text.split([',', '\n']).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let mut fields = line.split(':').map(str::trim);
        let (who, name, permissions) = (fields.next()?, fields.next()?, fields.next()?);
        let id = || fields.clone().next().unwrap_or(name).parse::<u32>().or_else(|_| name.parse());
        let (tag, id) = match (who, name) {
            ("user" | "u", "") => (USER_OBJ, NOBODY),
            ("user" | "u", _) => (USER, id().ok()?),
            ("group" | "g", "") => (GROUP_OBJ, NOBODY),
            ("group" | "g", _) => (GROUP, id().ok()?),
            ("mask" | "m", _) => (MASK, NOBODY),
            ("other" | "o", _) => (OTHER, NOBODY),
            _ => return None,
        };
        let bit = |permission: char| match permission {
            'r' => Some(4),
            'w' => Some(2),
            'x' => Some(1),
            '-' => Some(0),
            _ => None,
        };
        let bits = permissions.chars().map(bit).try_fold(0_u16, |bits, bit| Some(bits | bit?))?;
        entries.push((tag, id, bits));
    }
    entries.sort_unstable();
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, id, bits) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(bits.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_numbers_in_order() {
        let list = parse(b"user::rwx,other::r--,user:joe:rw-:1000,group::r-x,mask::rwx\n").unwrap();
        assert_eq!(list.len(), 4 + 5 * 8);
        assert_eq!(list[..12], [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255]);
        assert_eq!(list[12..20], [2, 0, 6, 0, 0xe8, 3, 0, 0]);
        assert!(parse(b"user:joe:rw-").is_none());
        assert!(parse(b"user::rwq").is_none());
    }
}
