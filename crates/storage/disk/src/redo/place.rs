use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Entry, Parsed, Redo};
use crate::host::{FileKind, Host, OpenMode, Stat};
use crate::{Error, HostFile, Result};

const SUFFIX: &str = ".vmwright-redo";
const PART: &str = "-part";
const NAME_MAX: usize = 255;

/// Knows where redo files are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'a> {
    pub(crate) host: &'a dyn Host,
    /// The folder for the redo files of images that cannot have them beside themselves.
    pub(crate) redo_dir: Option<&'a Path>,
}

/// What was found for an image.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// A file that means nothing any more.
    Leftover(PathBuf),
    /// A complete redo, of which the image is file number `index`.
    Pending {
        redo: Redo,
        index: usize,
    },
}

/// Where the redo of one change goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) redo: PathBuf,
    /// Beside every image of which the redo is elsewhere, where that is possible.
    pub(crate) pointers: Vec<PathBuf>,
}

impl Places<'_> {
    /// Looks for a redo of the image at a canonical path.
    pub(crate) fn find(&self, path: &Path, stat: &Stat) -> Result<Found> {
        let mut found = match beside(path) {
            Some(name) => self.load(&name, path, stat)?,
            None => Found::Nothing,
        };
        if let (Found::Nothing | Found::Leftover(_), Some(dir)) = (&found, self.redo_dir) {
            let names = self.host.list(dir).map_err(|source| Error::host("list", dir, source))?;
            for name in names.iter().filter(|name| name.as_os_str().as_bytes().ends_with(SUFFIX.as_bytes())) {
                if let Some(Parsed::Redo(redo)) = self.parse(name)?
                    && let Some(index) = index_of(&redo.entries, path, stat)
                {
                    found = Found::Pending { redo, index };
                }
            }
        }
        Ok(found)
    }

    /// Reads what is beside an image.
    fn load(&self, name: &Path, path: &Path, stat: &Stat) -> Result<Found> {
        let redo = match self.parse(name)? {
            None => return Ok(Found::Nothing),
            Some(Parsed::Void) => return Ok(Found::Leftover(name.to_owned())),
            Some(Parsed::Redo(redo)) => redo,
            Some(Parsed::Pointer(pointer)) => match self.parse(&pointer.redo)? {
                Some(Parsed::Redo(redo)) if redo.body_hash == pointer.body_hash => redo,
                // The change was never complete, or is over; the redo there now, if any, is another one.
                _ => return Ok(Found::Leftover(name.to_owned())),
            },
        };
        match index_of(&redo.entries, path, stat) {
            Some(index) => Ok(Found::Pending { redo, index }),
            None => {
                // Unless what it names is damaged.
                redo.check_body()?;
                Err(Error::conflict(path, redo.path(), "does not name this file"))
            }
        }
    }

    fn parse(&self, path: &Path) -> Result<Option<Parsed>> {
        match self.host.open(path, OpenMode::Read) {
            Ok(handle) => Redo::parse(handle, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::host("open", path, source)),
        }
    }

    /// Says where the redo of a change of `files` goes, which are sorted by path.
    pub(crate) fn place(&self, files: &[&HostFile]) -> Result<Place> {
        let mut names = Vec::new();
        for file in files {
            names.push(self.name_for(file)?);
        }
        let redo = match (self.redo_dir, &names[..]) {
            (Some(dir), _) => in_redo_dir(dir, files[0].path()),
            (None, [Some(first), ..]) => first.clone(),
            (None, _) => return Err(Error::needs_redo_dir(files[0].path(), "its folder")),
        };
        let pointers = names.into_iter().flatten().filter(|name| *name != redo).collect();
        Ok(Place { redo, pointers })
    }

    /// The name beside an image, or nothing where a folder for redo files takes its place.
    pub(crate) fn name_for(&self, file: &HostFile) -> Result<Option<PathBuf>> {
        let stat = file.stat()?;
        let path = file.path();
        let dir = path.parent().unwrap_or(Path::new("/"));
        let reason = match beside(path) {
            _ if stat.kind == FileKind::Block => "a block device",
            _ if stat.links > 1 => "known by more than one name",
            None => "a file whose name is too long to append to",
            Some(_) if !self.host.can_create_in(dir) => "in a folder that cannot be written to",
            name => return Ok(name),
        };
        match self.redo_dir {
            Some(_) => Ok(None),
            None => Err(Error::needs_redo_dir(path, reason)),
        }
    }
}

/// The name of the redo beside an image, unless that would be too long.
pub(crate) fn beside(path: &Path) -> Option<PathBuf> {
    let mut name: OsString = path.file_name()?.to_owned();
    name.push(SUFFIX);
    (name.len() + PART.len() <= NAME_MAX).then(|| path.with_file_name(name))
}

/// The name under which a redo or pointer is written before it is complete.
pub(crate) fn part_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PART);
    PathBuf::from(name)
}

/// A name that two images in different folders do not share.
fn in_redo_dir(dir: &Path, path: &Path) -> PathBuf {
    let hash = blake3::hash(path.as_os_str().as_bytes()).to_hex();
    let mut name = OsString::from(&hash[..16]);
    name.push(SUFFIX);
    dir.join(name)
}

fn index_of(entries: &[Entry], path: &Path, stat: &Stat) -> Option<usize> {
    let by_path = entries.iter().position(|entry| entry.path == path);
    by_path.or_else(|| {
        entries.iter().position(|entry| {
            let same_device = entry.device == stat.device || stat.links > 1;
            stat.kind == FileKind::Regular && same_device && entry.inode == stat.inode
        })
    })
}
