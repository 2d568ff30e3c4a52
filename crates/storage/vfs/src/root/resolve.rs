use super::{Location, MountId, Root};
use crate::{Error, ErrorKind, FileType, Result};

/// How many symbolic links one path may lead through, as in Linux.
pub const LINKS_MAX: usize = 40;

/// The longest target of a symbolic link that is followed, in bytes (`PATH_MAX` of Linux).
const TARGET_MAX: usize = 4096;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The inode.
    pub location: Location,
    /// The same place as an absolute path without links, `.`, `..` or doubled slashes.
    pub path: Vec<u8>,
}

/// The directories from the root to where a path leads, and a last name that may not exist yet.
pub(super) struct Trail {
    steps: Vec<Step>,
    missing: Option<Vec<u8>>,
    /// Whether the path demands a directory, by ending in a slash.
    directory: bool,
}

struct Step {
    location: Location,
    /// Empty for the root.
    name: Vec<u8>,
}

/// The last name of a path within its directory.
pub(super) struct Place {
    pub(super) dir: Location,
    /// Every directory from the root down to `dir`.
    pub(super) above: Vec<Location>,
    pub(super) name: Vec<u8>,
    /// What is there now.
    pub(super) found: Option<Location>,
    /// Whether the path ended in a slash.
    pub(super) directory: bool,
}

impl Root {
    /// Finds what a path leads to; a symbolic link at its very end is followed only if `follow_last`.
    pub fn resolve(&self, path: impl AsRef<[u8]>, follow_last: bool) -> Result<Resolved> {
        let path = path.as_ref();
        let trail = self.trail(path, follow_last).map_err(|error| error.at(path))?;
        match trail.missing {
            Some(_) => Err(not_found().at(path)),
            None => Ok(Resolved { location: trail.last().location, path: trail.path() }),
        }
    }

    /// Finds the directory and last name that a path leads to, whether or not that name exists.
    pub(super) fn place(&self, path: &[u8], follow_last: bool) -> Result<Place> {
        let invalid = |detail| Error::new(ErrorKind::InvalidInput, detail);
        if matches!(path.split(|&byte| byte == b'/').rfind(|name| !name.is_empty()), Some(b"." | b"..")) {
            return Err(invalid("the last name of the path is . or .."));
        }
        let mut trail = self.trail(path, follow_last)?;
        let (name, found) = match trail.missing.take() {
            Some(name) => (name, None),
            None if trail.steps.len() == 1 => {
                return Err(invalid("the root directory itself cannot be changed so"));
            }
            None => {
                let last = trail.steps.pop().expect("there are at least two steps");
                (last.name, Some(last.location))
            }
        };
        let above = trail.steps.iter().map(|step| step.location).collect();
        Ok(Place { dir: trail.last().location, above, name, found, directory: trail.directory })
    }

    /// Follows a path by name after name.
    ///
    /// The way back up is kept as a stack rather than read from `..` entries: those belong to the guest, and
    /// they know nothing of mounts.
    fn trail(&self, path: &[u8], follow_last: bool) -> Result<Trail> {
        if path.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "the path is empty"));
        }
        let root = Step { location: self.root(), name: Vec::new() };
        let mut trail = Trail { steps: vec![root], missing: None, directory: false };
        let mut names = Names { path: path.to_vec(), at: 0 };
        let mut links = 0;
        while let Some(name) = names.next() {
            let is_last = names.is_at_end();
            let dir = trail.last().location;
            self.require_directory(dir)?;
            trail.directory = is_last && names.ends_in_slash();
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    trail.ascend();
                    continue;
                }
                _ => {}
            }
            let Some(location) = self.child(dir, &name, is_last)? else {
                trail.missing = Some(name);
                return Ok(trail);
            };
            let follow = follow_last || !is_last || trail.directory;
            if follow && self.metadata_at(location)?.file_type == FileType::Symlink {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Error::new(ErrorKind::InvalidInput, "too many symbolic links"));
                }
                let target = self.link_target(location)?;
                if target.first() == Some(&b'/') {
                    trail.steps.truncate(1);
                }
                names.prepend(target);
                continue;
            }
            trail.steps.push(Step { location, name });
        }
        if trail.directory {
            self.require_directory(trail.last().location)?;
        }
        Ok(trail)
    }

    /// Finds a name in a directory; only the last name of a path may be absent.
    fn child(&self, dir: Location, name: &[u8], may_miss: bool) -> Result<Option<Location>> {
        if name.contains(&0) {
            return Err(Error::new(ErrorKind::InvalidInput, "the path contains a NUL byte"));
        }
        match self.filesystem(dir.mount).lookup(dir.inode, name) {
            Ok(inode) => Ok(Some(self.cross(Location { mount: dir.mount, inode }))),
            Err(error) if error.kind() == ErrorKind::NotFound && may_miss => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn link_target(&self, link: Location) -> Result<Vec<u8>> {
        let target = self.filesystem(link.mount).read_link(link.inode)?;
        match target.len() {
            0 => Err(not_found()),
            1..=TARGET_MAX => Ok(target),
            _ => Err(Error::new(ErrorKind::InvalidInput, "the target of a symbolic link is too long")),
        }
    }

    /// The canonical path of the filesystem's root directory.
    pub fn mount_path(&self, mount: MountId) -> &[u8] {
        &self.mounts[mount.0].path
    }
}

impl Trail {
    fn last(&self) -> &Step {
        self.steps.last().expect("the root is never popped")
    }

    fn ascend(&mut self) {
        if self.steps.len() > 1 {
            self.steps.pop();
        }
    }

    fn path(&self) -> Vec<u8> {
        let names: Vec<_> = self.steps.iter().skip(1).map(|step| step.name.as_slice()).collect();
        [b"/", names.join(&b'/').as_slice()].concat()
    }
}

/// The names of a path that are still to be followed.
struct Names {
    path: Vec<u8>,
    at: usize,
}

impl Names {
    fn rest(&self) -> &[u8] {
        &self.path[self.at..]
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.at += self.rest().iter().take_while(|&&byte| byte == b'/').count();
        let name: Vec<u8> = self.rest().iter().copied().take_while(|&byte| byte != b'/').collect();
        self.at += name.len();
        (!name.is_empty()).then_some(name)
    }

    fn is_at_end(&self) -> bool {
        self.rest().iter().all(|&byte| byte == b'/')
    }

    fn ends_in_slash(&self) -> bool {
        !self.rest().is_empty()
    }

    /// Puts the target of a link before what is left.
    fn prepend(&mut self, mut target: Vec<u8>) {
        target.extend_from_slice(self.rest());
        *self = Self { path: target, at: 0 };
    }
}

pub(super) fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "no such file or directory")
}
