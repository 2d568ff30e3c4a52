//! Filling a filesystem.

use std::collections::{BTreeMap, HashSet};

use vmwright_vfs::{
    FileSystem, FileType, InodeNumber, NewNode, NodeKind, SetAttributes, Timestamp, XattrMode,
};

use crate::entry::{Content, Entry, EntryKind, Source};
use crate::tree::Tree;
use crate::{Error, ErrorKind, Result};

/// The name that takes away everything in its directory that layers beneath put there.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What begins the name of a file that takes away another of a layer beneath.
const WHITEOUT: &[u8] = b".wh.";

/// How a filesystem is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PopulateOptions {
    /// Whom everything belongs to, instead of the owners and groups of the source.
    pub owner: Option<(u32, u32)>,
    /// Times after this one become this one, as `SOURCE_DATE_EPOCH` asks for.
    pub latest: Option<Timestamp>,
    /// Whether blocks of zeros in files become holes.
    pub find_zeros: bool,
}

/// What was put into a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Populated {
    /// Regular files.
    pub files: u64,
    /// Directories, the root not counted.
    pub directories: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub specials: u64,
    /// The bytes of content that were written.
    pub bytes: u64,
}

/// Puts everything in `source` into a filesystem, which may hold something already, in the order of the source.
///
/// Everything gets the owners, modes, attributes, ACLs and times of the source; what the source does not say of a directory
/// (its parents, say) is 0755 and root's. Creation and change times are those of modification, so that equal sources give
/// equal filesystems. A directory that is there gets the attributes of its entry, other names are replaced.
///
/// # Errors
///
/// Kind `NoSpace` where the filesystem is full, `Exists` where a directory would have to be replaced, `Corrupt` and
/// `Unsupported` for what the source says, `Io` where it cannot be read.
pub fn populate(
    fs: &mut dyn FileSystem,
    source: &mut dyn Source,
    options: &PopulateOptions,
) -> Result<Populated> {
    let mut filling = Filling::new(fs, options, None);
    source.each(&mut |entry, content| filling.entry(entry, content))?;
    filling.finish()
}

/// Puts layers into a filesystem, the lowest first: later ones replace what is in the earlier, and files whose names begin with
/// `.wh.` take it away, as in images of containers.
///
/// # Errors
///
/// As for [`populate()`], but directories are replaced too.
pub fn populate_layers(
    fs: &mut dyn FileSystem,
    layers: &mut [Box<dyn Source>],
    options: &PopulateOptions,
) -> Result<Populated> {
    let mut filling = Filling::new(fs, options, Some(HashSet::new()));
    for layer in layers {
        filling.made = Some(HashSet::new());
        layer.each(&mut |entry, content| filling.entry(entry, content))?;
    }
    filling.finish()
}

/// Puts one source into a filesystem as [`populate()`] does, or several as [`populate_layers`] does.
///
/// # Errors
///
/// As for those.
pub fn fill(
    fs: &mut dyn FileSystem,
    sources: &mut [Box<dyn Source>],
    options: &PopulateOptions,
) -> Result<Populated> {
    match sources {
        [source] => populate(fs, &mut **source, options),
        layers => populate_layers(fs, layers, options),
    }
}

struct Filling<'a> {
    tree: Tree<'a>,
    options: &'a PopulateOptions,
    /// In layers, what this layer has put there.
    made: Option<HashSet<InodeNumber>>,
    /// The times of directories, which change as long as names are put into them.
    times: BTreeMap<InodeNumber, Timestamp>,
    done: Populated,
    block: usize,
}

impl<'a> Filling<'a> {
    fn new(
        fs: &'a mut dyn FileSystem,
        options: &'a PopulateOptions,
        made: Option<HashSet<InodeNumber>>,
    ) -> Self {
        let block = fs.statfs().map_or(4096, |statfs| statfs.block_size.max(512)) as usize;
        Self { tree: Tree::new(fs), options, made, times: BTreeMap::new(), done: Populated::default(), block }
    }

    fn entry(&mut self, mut entry: Entry, content: &mut dyn Content) -> Result<()> {
        if let Some((uid, gid)) = self.options.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        if let Some(latest) = self.options.latest {
            entry.modified = entry.modified.min(latest);
        }
        if entry.path.is_empty() {
            return match entry.kind {
                EntryKind::Directory => self.directory(self.tree.fs.root(), &entry),
                _ => Err(Error::entry(ErrorKind::InvalidInput, b"", "it is said to be something else")),
            };
        }
        self.tree.fs.set_now(entry.modified);
        let (dir, name) = self.tree.parent(&entry.path)?;
        if self.made.is_some()
            && let Some(hidden) = name.strip_prefix(WHITEOUT)
        {
            return match name == OPAQUE {
                true => self.empty(dir, &entry.path),
                false => self.hide(dir, hidden, &entry.path),
            };
        }
        let there = self.tree.find(dir, name, &entry.path)?;
        if let Some(inode) = there
            && self.reuse(inode, &entry)?
        {
            return self.directory(inode, &entry);
        }
        if let EntryKind::HardLink { target } = &entry.kind {
            return self.hard_link(dir, name, there, target, &entry.path);
        }
        if there.is_some() {
            self.tree.remove(dir, name, &entry.path)?;
        }
        let inode = self.create(dir, name, &entry)?;
        if let Some(made) = &mut self.made {
            made.insert(inode);
        }
        match entry.kind {
            EntryKind::Directory => {
                self.done.directories += 1;
                return self.directory(inode, &entry);
            }
            EntryKind::Regular { size } => {
                self.done.files += 1;
                self.write(inode, size, &entry.path, content)?;
            }
            EntryKind::Symlink { .. } => self.done.symlinks += 1,
            _ => self.done.specials += 1,
        }
        self.xattrs(inode, &entry)?;
        self.set_time(inode, entry.modified, &entry.path)
    }

    /// Whether a directory that is there stays, with the attributes of the entry; fails where it would have to go.
    fn reuse(&self, inode: InodeNumber, entry: &Entry) -> Result<bool> {
        let there = self.tree.fs.metadata(inode).map_err(Error::filesystem(&entry.path))?;
        if there.file_type != FileType::Directory {
            return Ok(false);
        }
        if entry.kind != EntryKind::Directory && self.made.is_none() {
            return Err(Error::entry(ErrorKind::Exists, &entry.path, "a directory has that name already"));
        }
        Ok(entry.kind == EntryKind::Directory)
    }

    fn create(&mut self, dir: InodeNumber, name: &[u8], entry: &Entry) -> Result<InodeNumber> {
        let kind = match &entry.kind {
            EntryKind::Directory => NodeKind::Directory,
            EntryKind::Symlink { target } => NodeKind::Symlink(target.clone()),
            EntryKind::CharDevice(device) => NodeKind::CharDevice(*device),
            EntryKind::BlockDevice(device) => NodeKind::BlockDevice(*device),
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::Socket => NodeKind::Socket,
            EntryKind::Regular { .. } | EntryKind::HardLink { .. } => NodeKind::Regular,
        };
        let Entry { mode, uid, gid, .. } = *entry;
        let node = NewNode { kind, mode, uid, gid };
        self.tree.fs.create(dir, name, &node).map_err(Error::filesystem(&entry.path))
    }

    /// Gives a directory its attributes, those it had before gone; its times come last.
    fn directory(&mut self, inode: InodeNumber, entry: &Entry) -> Result<()> {
        let failed = || Error::filesystem(&entry.path);
        let attributes = SetAttributes {
            mode: Some(entry.mode),
            uid: Some(entry.uid),
            gid: Some(entry.gid),
            ..SetAttributes::default()
        };
        self.tree.fs.set_now(entry.modified);
        self.tree.fs.set_attributes(inode, &attributes).map_err(failed())?;
        for name in self.tree.fs.xattr_names(inode).map_err(failed())? {
            if !entry.xattrs.iter().any(|(kept, _)| *kept == name) {
                self.tree.fs.remove_xattr(inode, &name).map_err(failed())?;
            }
        }
        self.xattrs(inode, entry)?;
        self.times.insert(inode, entry.modified);
        if let Some(made) = &mut self.made {
            made.insert(inode);
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        dir: InodeNumber,
        name: &[u8],
        there: Option<InodeNumber>,
        target: &[u8],
        path: &[u8],
    ) -> Result<()> {
        let missing = || {
            let problem = "it is a hard link to a file that did not come before it";
            Error::entry(ErrorKind::NotFound, path, problem)
        };
        let mut inode = self.tree.named(target)?.ok_or_else(missing)?;
        if there == Some(inode) {
            return Ok(());
        }
        if there.is_some() {
            self.tree.remove(dir, name, path)?;
            // It may have been in the directory that is gone.
            inode = self.tree.named(target)?.ok_or_else(missing)?;
        }
        if let Some(made) = &mut self.made {
            made.insert(inode);
        }
        self.tree.fs.link(inode, dir, name).map_err(Error::filesystem(path))?;
        self.done.hard_links += 1;
        Ok(())
    }

    fn write(&mut self, inode: InodeNumber, size: u64, path: &[u8], content: &mut dyn Content) -> Result<()> {
        let (fs, find_zeros, block) = (&mut *self.tree.fs, self.options.find_zeros, self.block);
        let (mut end, mut bytes) = (0, 0);
        content.each(&mut |offset, piece| {
            for (at, part) in stored(piece, offset, find_zeros, block) {
                fs.write_at(inode, part, at).map_err(Error::filesystem(path))?;
                bytes += part.len() as u64;
                end = at + part.len() as u64;
            }
            Ok(())
        })?;
        self.done.bytes += bytes;
        if end != size {
            self.tree.fs.truncate(inode, size).map_err(Error::filesystem(path))?;
        }
        Ok(())
    }

    fn xattrs(&mut self, inode: InodeNumber, entry: &Entry) -> Result<()> {
        for (name, value) in &entry.xattrs {
            let set = self.tree.fs.set_xattr(inode, name, value, XattrMode::Set);
            set.map_err(Error::filesystem(&entry.path))?;
        }
        Ok(())
    }

    fn set_time(&mut self, inode: InodeNumber, time: Timestamp, path: &[u8]) -> Result<()> {
        let times = SetAttributes { accessed: Some(time), modified: Some(time), ..SetAttributes::default() };
        self.tree.fs.set_attributes(inode, &times).map_err(Error::filesystem(path))
    }

    /// Removes what layers beneath have put into a directory.
    fn empty(&mut self, dir: InodeNumber, path: &[u8]) -> Result<()> {
        for (name, _) in self.tree.names(dir, path)? {
            self.hide(dir, &name, path)?;
        }
        Ok(())
    }

    /// Removes what layers beneath have put under a name; what this layer puts there stays, wherever in it it stands.
    fn hide(&mut self, dir: InodeNumber, name: &[u8], path: &[u8]) -> Result<()> {
        if matches!(name, b"" | b"." | b"..") {
            let problem = "it takes away nothing that a layer can have";
            return Err(Error::entry(ErrorKind::InvalidInput, path, problem));
        }
        let made = &self.made;
        self.tree
            .remove_but(dir, name, path, &|inode| made.as_ref().is_some_and(|made| made.contains(&inode)))
    }

    fn finish(mut self) -> Result<Populated> {
        for (inode, time) in std::mem::take(&mut self.times) {
            // One that a later layer took away again, maybe with another in its place, has no times to be set.
            let is_directory =
                self.tree.fs.metadata(inode).is_ok_and(|metadata| metadata.file_type == FileType::Directory);
            if is_directory {
                self.tree.fs.set_now(time);
                self.set_time(inode, time, b"")?;
            }
        }
        Ok(self.done)
    }
}

/// The parts of a piece that have to be stored.
fn stored(piece: &[u8], offset: u64, find_zeros: bool, block: usize) -> Vec<(u64, &[u8])> {
    if !find_zeros {
        return vec![(offset, piece)];
    }
    let mut parts: Vec<(u64, &[u8])> = Vec::new();
    let (mut start, mut at) = (None, 0);
    while at < piece.len() {
        // Blocks of the file, not of the piece.
        let to_border = block - (offset as usize).wrapping_add(at) % block;
        let end = (at + to_border).min(piece.len());
        let is_zero = piece[at..end].iter().all(|byte| *byte == 0);
        match (is_zero, start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                parts.push((offset + from as u64, &piece[from..at]));
                start = None;
            }
            _ => {}
        }
        at = end;
    }
    if let Some(from) = start {
        parts.push((offset + from as u64, &piece[from..]));
    }
    parts
}
