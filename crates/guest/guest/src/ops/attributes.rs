use std::ops::ControlFlow;

use vmwright_vfs::{FileType, Location, Root, SetAttributes};

use crate::{Error, ErrorKind, Result};

/// A new owner, a new group, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// The user's number.
    pub uid: Option<u32>,
    /// The group's number.
    pub gid: Option<u32>,
}

impl Owner {
    /// Reads `USER`, `USER:GROUP`, `USER:` (with the user's own group) or `:GROUP`.
    ///
    /// Names are those of the guest's `/etc/passwd` and `/etc/group`.
    pub fn parse(root: &Root, text: &str) -> Result<Self> {
        let unknown = |name: &str, detail| Error::plain(ErrorKind::NotFound, name, detail);
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let mut owner = Self::default();
        if !user.is_empty() {
            let found = number(root, "/etc/passwd", user, 2)?;
            owner.uid = Some(found.ok_or_else(|| unknown(user, "the guest has no user of that name"))?);
        }
        owner.gid = match group {
            None => None,
            Some("") if user.is_empty() => None,
            Some("") => number(root, "/etc/passwd", user, 3)?,
            Some(group) => {
                let found = number(root, "/etc/group", group, 2)?;
                Some(found.ok_or_else(|| unknown(group, "the guest has no group of that name"))?)
            }
        };
        match owner == Self::default() {
            true => Err(Error::plain(ErrorKind::InvalidInput, text, "neither a user nor a group is named")),
            false => Ok(owner),
        }
    }
}

/// A number as it is, or the number in a field of the line that begins with a name.
fn number(root: &Root, file: &str, name: &str, field: usize) -> Result<Option<u32>> {
    if field == 2
        && let Ok(number) = name.parse()
    {
        return Ok(Some(number));
    }
    let text = match root.read_file(file, 16 << 20) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    Ok(line.and_then(|line| line.split(':').nth(field)?.parse().ok()))
}

/// Reads a mode as `chmod` takes it: octal digits, or clauses such as `u+x,go-w`, from the mode it is now.
pub fn parse_mode(text: &str, now: u16, is_dir: bool) -> Result<u16> {
    let invalid = || Error::plain(ErrorKind::InvalidInput, text, "not a mode");
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return u16::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(invalid);
    }
    text.split(',').try_fold(now, |mode, clause| apply_clause(clause, mode, is_dir).ok_or_else(invalid))
}

fn apply_clause(clause: &str, mut mode: u16, is_dir: bool) -> Option<u16> {
    let at = clause.find(['+', '-', '='])?;
    let (who, mut rest) = clause.split_at(at);
    let mut classes = 0;
    for letter in who.chars() {
        classes |= match letter {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => 0o7777,
            _ => return None,
        };
    }
    if classes == 0 {
        classes = 0o7777;
    }
    while let Some(sign) = rest.chars().next() {
        rest = &rest[1..];
        let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
        let mut bits = 0;
        for letter in rest[..end].chars() {
            bits |= match letter {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_dir || mode & 0o111 != 0 => 0o111,
                'X' => 0,
                's' => 0o6000,
                't' => 0o1000,
                _ => return None,
            };
        }
        // The sticky bit belongs to no class.
        let bits = bits & (classes | 0o1000);
        mode = match sign {
            '+' => mode | bits,
            '-' => mode & !bits,
            _ => mode & !(classes & 0o777) | bits,
        };
        rest = &rest[end..];
    }
    Some(mode)
}

/// Changes the mode of a file, through symbolic links; with `recursive` of everything beneath, links left out.
pub fn chmod(root: &mut Root, path: &[u8], mode: &str, recursive: bool) -> Result<()> {
    for (location, file_type) in targets(root, path, true, recursive)? {
        if file_type == FileType::Symlink {
            continue;
        }
        let now = root.metadata_at(location)?.mode;
        let mode = parse_mode(mode, now, file_type == FileType::Directory)?;
        set(root, location, &SetAttributes { mode: Some(mode), ..SetAttributes::default() }, path)?;
    }
    Ok(())
}

/// Changes the owner of a file, through symbolic links if `follow`; with `recursive` of everything beneath.
///
/// Set-id bits of files are taken away, as the kernel does: they were granted in the name of the old owner.
pub fn chown(root: &mut Root, path: &[u8], owner: Owner, follow: bool, recursive: bool) -> Result<()> {
    for (location, file_type) in targets(root, path, follow, recursive)? {
        let now = root.metadata_at(location)?.mode;
        let special = file_type == FileType::Regular && now & 0o6000 != 0;
        // Without the right to execute, set-gid means mandatory locking and stays.
        let cleared = if now & 0o010 != 0 { now & !0o6000 } else { now & !0o4000 };
        let attributes = SetAttributes {
            uid: owner.uid,
            gid: owner.gid,
            mode: special.then_some(cleared),
            ..SetAttributes::default()
        };
        set(root, location, &attributes, path)?;
    }
    Ok(())
}

fn set(root: &mut Root, location: Location, attributes: &SetAttributes, path: &[u8]) -> Result<()> {
    let filesystem = root.filesystem_mut(location.mount);
    Ok(filesystem.set_attributes(location.inode, attributes).map_err(|error| error.at(path))?)
}

fn targets(root: &Root, path: &[u8], follow: bool, recursive: bool) -> Result<Vec<(Location, FileType)>> {
    let start = root.resolve(path, follow)?;
    let file_type = root.metadata_at(start.location)?.file_type;
    let mut found = vec![(start.location, file_type)];
    if recursive && file_type == FileType::Directory {
        root.walk(&start.path, &mut |entry| {
            found.push((entry.location, entry.file_type));
            ControlFlow::Continue(())
        })?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_chmod_reads_them() {
        for (text, now, is_dir, expected) in [
            ("755", 0, false, 0o755),
            ("4755", 0, false, 0o4755),
            ("u+x", 0o644, false, 0o744),
            ("go-rwx", 0o755, false, 0o700),
            ("a=r", 0o755, false, 0o444),
            ("+x", 0o644, false, 0o755),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("+t", 0o777, true, 0o1777),
            ("a+X", 0o644, false, 0o644),
            ("a+X", 0o644, true, 0o755),
            ("u=rw-x", 0o777, false, 0o677),
        ] {
            assert_eq!(parse_mode(text, now, is_dir).unwrap(), expected, "{text} of {now:o}");
        }
        for text in ["", "8", "17777", "u", "z+x", "u+q", "u+x,"] {
            assert!(parse_mode(text, 0, false).is_err(), "{text}");
        }
    }
}
