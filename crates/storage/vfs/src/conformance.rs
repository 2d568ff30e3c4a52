//! What every implementation of [`FileSystem`] must do, as a suite that their tests call.
//!
//! [`check`] runs fixed cases, each on a new, empty filesystem. [`Op`] is one random operation: tests apply
//! the same ones to the filesystem under test and to [`crate::MemoryFs`], and compare the answers and then the
//! [`tree`]s. Both panic where something is not as it must be.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use crate::{
    DeviceNumber, ErrorKind, FileSystem, FileType, InodeNumber, NewNode, NodeKind, RenameMode, Result,
    SetAttributes, Timestamp, XattrMode,
};

/// One file or directory as a test sees it: all that does not depend on the implementation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TreeNode {
    pub file_type: FileType,
    pub mode: u16,
    pub owner: (u32, u32),
    pub links: u32,
    pub device: DeviceNumber,
    pub modified: Timestamp,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A file's bytes or a link's target.
    pub content: Vec<u8>,
    /// The first path, in order, that leads to the same inode.
    pub first_path: Vec<u8>,
}

/// Reads a whole tree: every path but the root's own, which is empty, begins with a slash.
///
/// `skip` names an entry of the root that is left out, such as `lost+found`.
pub fn tree(fs: &dyn FileSystem, skip: &[u8]) -> Result<BTreeMap<Vec<u8>, TreeNode>> {
    let (mut tree, mut seen) = (BTreeMap::new(), HashMap::new());
    let mut waiting = vec![(Vec::new(), fs.root())];
    while let Some((path, inode)) = waiting.pop() {
        let node = tree_node(fs, &path, inode)?;
        if node.file_type == FileType::Directory {
            let mut names = BTreeMap::new();
            fs.read_dir(inode, &mut |entry| {
                let again = names.insert(entry.name.clone(), entry.inode);
                assert!(again.is_none(), "{:?} is listed twice", entry.name);
                ControlFlow::Continue(())
            })?;
            let names = names.into_iter().filter(|(name, _)| !(path.is_empty() && name == skip));
            waiting.extend(names.map(|(name, inode)| ([&path[..], b"/", &name].concat(), inode)));
        }
        tree.insert(path, (inode, node));
    }
    let paths = tree.into_iter().map(|(path, (inode, mut node))| {
        node.first_path = seen.entry(inode).or_insert_with(|| path.clone()).clone();
        (path, node)
    });
    Ok(paths.collect())
}

fn tree_node(fs: &dyn FileSystem, path: &[u8], inode: InodeNumber) -> Result<TreeNode> {
    let metadata = fs.metadata(inode)?;
    let content = match metadata.file_type {
        FileType::Regular => read_all(fs, inode)?,
        FileType::Symlink => fs.read_link(inode)?,
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    for name in fs.xattr_names(inode)? {
        let value = fs.xattr(inode, &name)?;
        assert!(xattrs.insert(name, value).is_none(), "{path:?} lists an attribute twice");
    }
    Ok(TreeNode {
        file_type: metadata.file_type,
        mode: metadata.mode,
        owner: (metadata.uid, metadata.gid),
        links: metadata.links,
        device: metadata.device,
        modified: metadata.modified,
        xattrs,
        content,
        first_path: Vec::new(),
    })
}

fn read_all(fs: &dyn FileSystem, inode: InodeNumber) -> Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(fs.metadata(inode)?.size).unwrap()];
    let len = fs.read_at(inode, &mut content, 0)?;
    assert_eq!(len, content.len(), "a file is shorter than its size");
    Ok(content)
}

/// A path of at most three names out of a small pool, so that random operations meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpPath(Vec<Vec<u8>>);

impl OpPath {
    fn from_word(word: u32) -> Self {
        let depth = 1 + word % 3;
        Self((0..depth).map(|level| pool_name(word >> (8 * (level + 1)))).collect())
    }

    /// Finds the directory that holds the last name.
    fn parent<'a>(&'a self, fs: &dyn FileSystem) -> Result<(InodeNumber, &'a [u8])> {
        let (name, dirs) = self.0.split_last().unwrap();
        let dir = dirs.iter().try_fold(fs.root(), |dir, name| fs.lookup(dir, name))?;
        Ok((dir, name))
    }

    fn inode(&self, fs: &dyn FileSystem) -> Result<InodeNumber> {
        let (dir, name) = self.parent(fs)?;
        fs.lookup(dir, name)
    }
}

fn pool_name(word: u32) -> Vec<u8> {
    match word % 9 {
        0 => b"a".to_vec(),
        1 => "ü\u{ff}".as_bytes().to_vec(),
        2 => vec![b'L'; 255],
        3 => b"\xff\x01 not text".to_vec(),
        number => format!("name-{number}").into_bytes(),
    }
}

/// One random operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Create { path: OpPath, node: NewNode },
    Fill { path: OpPath, names: u32 },
    Link { from: OpPath, to: OpPath },
    Unlink { path: OpPath },
    Rmdir { path: OpPath },
    Rename { from: OpPath, to: OpPath, mode: RenameMode },
    Write { path: OpPath, offset: u64, len: usize, seed: u32 },
    Truncate { path: OpPath, size: u64 },
    Punch { path: OpPath, offset: u64, len: u64 },
    SetAttributes { path: OpPath, attributes: SetAttributes },
    SetXattr { path: OpPath, name: Vec<u8>, len: usize, mode: XattrMode },
    RemoveXattr { path: OpPath, name: Vec<u8> },
    Sync,
}

impl Op {
    /// Makes an operation out of random words; files stay below `size` bytes.
    pub fn from_words(words: [u32; 4], size: u64) -> Self {
        let [what, first, second, third] = words;
        let (path, to) = (OpPath::from_word(first), OpPath::from_word(second));
        let offset = match third % 4 {
            0 => 0,
            1 => u64::from(second) % 5000,
            _ => u64::from(second) % (size / 2),
        };
        let xattr = format!("user.{}", "n".repeat(1 + (second % 7) as usize)).into_bytes();
        match what % 24 {
            0..=4 => Self::Create { path, node: new_node(second, third) },
            5 => Self::Fill { path, names: third % 300 },
            6 => Self::Link { from: path, to },
            7 | 8 => Self::Unlink { path },
            9 => Self::Rmdir { path },
            10 | 11 => Self::Rename { from: path, to, mode: rename_mode(third) },
            12..=15 => {
                let len = 1 + (third as usize >> 2) % (size as usize / if third & 2 == 0 { 2 } else { 60 });
                Self::Write { path, offset, len, seed: third }
            }
            16 => Self::Truncate { path, size: u64::from(third) % size },
            17 | 18 => Self::Punch { path, offset, len: 1 + u64::from(third >> 2) % size },
            19 => Self::SetAttributes { path, attributes: attributes(second, third) },
            20 | 21 => {
                let mode = match third % 8 {
                    0 => XattrMode::Create,
                    1 => XattrMode::Replace,
                    _ => XattrMode::Set,
                };
                let len = (third >> 3) as usize % if third & 64 == 0 { 40 } else { 900 };
                Self::SetXattr { path, name: xattr, len, mode }
            }
            22 => Self::RemoveXattr { path, name: xattr },
            _ => Self::Sync,
        }
    }

    /// Applies the operation; answers what sort of failure it met.
    pub fn apply(&self, fs: &mut dyn FileSystem) -> Result<(), ErrorKind> {
        self.try_apply(fs).map_err(|error| error.kind())
    }

    fn try_apply(&self, fs: &mut dyn FileSystem) -> Result<()> {
        match self {
            Self::Create { path, node } => {
                let (dir, name) = path.parent(fs)?;
                fs.create(dir, name, node).map(drop)
            }
            Self::Fill { path, names } => {
                let dir = path.inode(fs)?;
                fill(fs, dir, *names)
            }
            Self::Link { from, to } => {
                let inode = from.inode(fs)?;
                let (dir, name) = to.parent(fs)?;
                fs.link(inode, dir, name)
            }
            Self::Unlink { path } => {
                let (dir, name) = path.parent(fs)?;
                fs.unlink(dir, name)
            }
            Self::Rmdir { path } => {
                let (dir, name) = path.parent(fs)?;
                fs.rmdir(dir, name)
            }
            Self::Rename { from, to, mode } => {
                let (from, to) = (from.parent(fs)?, to.parent(fs)?);
                fs.rename(from, to, *mode)
            }
            Self::Write { path, offset, len, seed } => {
                fs.write_at(path.inode(fs)?, &pattern(*seed, *len), *offset)
            }
            Self::Truncate { path, size } => fs.truncate(path.inode(fs)?, *size),
            Self::Punch { path, offset, len } => fs.punch(path.inode(fs)?, *offset, *len),
            Self::SetAttributes { path, attributes } => fs.set_attributes(path.inode(fs)?, attributes),
            Self::SetXattr { path, name, len, mode } => {
                fs.set_xattr(path.inode(fs)?, name, &pattern(7, *len), *mode)
            }
            Self::RemoveXattr { path, name } => fs.remove_xattr(path.inode(fs)?, name),
            Self::Sync => fs.sync(),
        }
    }
}

/// Adds names to a directory, or removes them where they are.
fn fill(fs: &mut dyn FileSystem, dir: InodeNumber, names: u32) -> Result<()> {
    let node = NewNode { kind: NodeKind::Regular, mode: 0o600, uid: 0, gid: 0 };
    for number in 0..names {
        let name = format!("one of many names {number}").into_bytes();
        match fs.lookup(dir, &name) {
            Ok(_) => fs.unlink(dir, &name)?,
            Err(error) if error.kind() == ErrorKind::NotFound => fs.create(dir, &name, &node).map(drop)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn new_node(second: u32, third: u32) -> NewNode {
    let device = DeviceNumber { major: third % 4096, minor: second % (1 << 20) };
    let kind = match second % 10 {
        0..=3 => NodeKind::Regular,
        4..=6 => NodeKind::Directory,
        7 => NodeKind::Symlink(vec![b't'; 1 + third as usize % 300]),
        8 if third.is_multiple_of(2) => NodeKind::CharDevice(device),
        8 => NodeKind::BlockDevice(device),
        _ if third.is_multiple_of(2) => NodeKind::Fifo,
        _ => NodeKind::Socket,
    };
    NewNode { kind, mode: (third % 0o10000) as u16, uid: third, gid: second }
}

fn rename_mode(word: u32) -> RenameMode {
    match word % 6 {
        0 => RenameMode::NoReplace,
        1 => RenameMode::Exchange,
        _ => RenameMode::Replace,
    }
}

fn attributes(second: u32, third: u32) -> SetAttributes {
    let time = Timestamp { seconds: i64::from(second), nanoseconds: third % 1_000_000_000 };
    SetAttributes {
        mode: (third & 1 == 0).then_some((second % 0o10000) as u16),
        uid: (third & 2 == 0).then_some(second),
        gid: (third & 4 == 0).then_some(third),
        accessed: (third & 8 == 0).then_some(time),
        modified: (third & 16 == 0).then_some(time),
    }
}

/// Bytes that differ with place and seed.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(step).collect()
}

/// A new, empty filesystem to run one case on.
pub type Make<'a> = &'a mut dyn FnMut() -> Box<dyn FileSystem>;

/// Runs every fixed case.
pub fn check(make: Make<'_>) {
    let cases: [fn(&mut dyn FileSystem); 10] = [
        names_are_unique_and_valid,
        files_hold_what_is_written,
        files_shrink_grow_and_get_holes,
        directories_count_their_links,
        links_share_one_inode,
        renames_move_replace_and_swap,
        links_keep_their_targets,
        attributes_are_kept,
        extended_attributes_are_kept,
        large_directories_list_each_name_once,
    ];
    for case in cases {
        let mut fs = make();
        fs.set_now(Timestamp { seconds: 1_000_000_000, nanoseconds: 0 });
        case(&mut *fs);
        fs.sync().unwrap();
    }
}

fn file() -> NewNode {
    NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 1, gid: 2 }
}

fn directory() -> NewNode {
    NewNode { kind: NodeKind::Directory, mode: 0o755, uid: 1, gid: 2 }
}

fn fails<T: std::fmt::Debug>(kind: ErrorKind, result: Result<T>) {
    assert_eq!(result.unwrap_err().kind(), kind);
}

fn names_are_unique_and_valid(fs: &mut dyn FileSystem) {
    let root = fs.root();
    let inode = fs.create(root, b"name", &file()).unwrap();
    assert_eq!(fs.lookup(root, b"name").unwrap(), inode);
    fails(ErrorKind::Exists, fs.create(root, b"name", &directory()));
    fails(ErrorKind::NotFound, fs.lookup(root, b"nam"));
    for bad in [&b""[..], b"a/b", b"a\0b", &[b'x'; 256]] {
        fails(ErrorKind::InvalidInput, fs.create(root, bad, &file()));
    }
    fs.create(root, &[b'x'; 255], &file()).unwrap();
    fails(ErrorKind::InvalidInput, fs.create(inode, b"in-a-file", &file()));
    fs.unlink(root, b"name").unwrap();
    fails(ErrorKind::NotFound, fs.lookup(root, b"name"));
    fails(ErrorKind::NotFound, fs.unlink(root, b"name"));
}

fn files_hold_what_is_written(fs: &mut dyn FileSystem) {
    let inode = fs.create(fs.root(), b"file", &file()).unwrap();
    let mut model = vec![0; 300_000];
    for (at, len) in [(0, 10), (100, 5000), (60_000, 1), (4095, 2), (299_000, 1000), (10, 70_000)] {
        let data = pattern(at as u32, len);
        fs.write_at(inode, &data, at as u64).unwrap();
        model[at..at + len].copy_from_slice(&data);
    }
    assert!(read_all(fs, inode).unwrap() == model);
    let mut part = vec![0; 777];
    assert_eq!(fs.read_at(inode, &mut part, 299_500).unwrap(), 500);
    assert!(part[..500] == model[299_500..]);
    assert_eq!(fs.read_at(inode, &mut part, 1 << 40).unwrap(), 0);
    fails(ErrorKind::InvalidInput, fs.read_link(inode));
    fails(ErrorKind::InvalidInput, fs.read_at(fs.root(), &mut part, 0));
}

fn files_shrink_grow_and_get_holes(fs: &mut dyn FileSystem) {
    let inode = fs.create(fs.root(), b"file", &file()).unwrap();
    let mut model = pattern(3, 200_000);
    fs.write_at(inode, &model, 0).unwrap();
    for size in [150_001, 12, 190_000] {
        fs.truncate(inode, size as u64).unwrap();
        model.resize(size, 0);
        assert!(read_all(fs, inode).unwrap() == model);
        assert_eq!(fs.metadata(inode).unwrap().size, size as u64);
    }
    model = pattern(4, 190_000);
    fs.write_at(inode, &model, 0).unwrap();
    for (at, len) in [(5, 100), (4096, 8192), (100_001, 50_000), (185_000, 90_000)] {
        fs.punch(inode, at as u64, len).unwrap();
        model[at..190_000.min(at + len as usize)].fill(0);
        assert!(read_all(fs, inode).unwrap() == model);
    }
    let mut at = 0;
    while at < 190_000 {
        let extent = fs.extent_at(inode, at).unwrap();
        assert_eq!(extent.start, at);
        assert!(extent.len > 0);
        at = extent.end();
    }
}

fn directories_count_their_links(fs: &mut dyn FileSystem) {
    let root = fs.root();
    let links = |fs: &dyn FileSystem, inode| fs.metadata(inode).unwrap().links;
    let before = links(fs, root);
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    let sub = fs.create(dir, b"sub", &directory()).unwrap();
    assert_eq!((links(fs, root), links(fs, dir), links(fs, sub)), (before + 1, 3, 2));
    fails(ErrorKind::InvalidInput, fs.rmdir(root, b"dir"));
    fails(ErrorKind::InvalidInput, fs.unlink(root, b"dir"));
    fs.create(dir, b"file", &file()).unwrap();
    fails(ErrorKind::InvalidInput, fs.rmdir(dir, b"file"));
    fs.rmdir(dir, b"sub").unwrap();
    fs.unlink(dir, b"file").unwrap();
    assert_eq!(links(fs, dir), 2);
    fs.rmdir(root, b"dir").unwrap();
    assert_eq!(links(fs, root), before);
}

fn links_share_one_inode(fs: &mut dyn FileSystem) {
    let root = fs.root();
    let inode = fs.create(root, b"one", &file()).unwrap();
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    fs.link(inode, dir, b"two").unwrap();
    assert_eq!(fs.lookup(dir, b"two").unwrap(), inode);
    assert_eq!(fs.metadata(inode).unwrap().links, 2);
    fails(ErrorKind::Exists, fs.link(inode, root, b"dir"));
    fails(ErrorKind::InvalidInput, fs.link(dir, root, b"other"));
    fs.write_at(inode, b"shared", 0).unwrap();
    fs.unlink(root, b"one").unwrap();
    assert_eq!(read_all(fs, fs.lookup(dir, b"two").unwrap()).unwrap(), b"shared");
    assert_eq!(fs.metadata(inode).unwrap().links, 1);
}

fn renames_move_replace_and_swap(fs: &mut dyn FileSystem) {
    use RenameMode::{Exchange, NoReplace, Replace};
    let root = fs.root();
    let (a, b) = (fs.create(root, b"a", &file()).unwrap(), fs.create(root, b"b", &file()).unwrap());
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    let sub = fs.create(root, b"sub", &directory()).unwrap();
    fails(ErrorKind::NotFound, fs.rename((root, b"none"), (root, b"x"), Replace));
    fails(ErrorKind::Exists, fs.rename((root, b"a"), (root, b"b"), NoReplace));
    fs.rename((root, b"a"), (root, b"b"), Exchange).unwrap();
    assert_eq!((fs.lookup(root, b"a").unwrap(), fs.lookup(root, b"b").unwrap()), (b, a));
    fs.rename((root, b"a"), (root, b"b"), Replace).unwrap();
    assert_eq!(fs.lookup(root, b"b").unwrap(), b);
    fails(ErrorKind::NotFound, fs.lookup(root, b"a"));
    let links = fs.metadata(root).unwrap().links;
    fs.rename((root, b"sub"), (dir, b"moved"), NoReplace).unwrap();
    assert_eq!(fs.metadata(root).unwrap().links, links - 1);
    assert_eq!(fs.metadata(dir).unwrap().links, 3);
    fails(ErrorKind::InvalidInput, fs.rename((root, b"dir"), (sub, b"x"), Replace));
    fails(ErrorKind::InvalidInput, fs.rename((root, b"dir"), (dir, b"x"), Replace));
    fails(ErrorKind::InvalidInput, fs.rename((root, b"b"), (root, b"dir"), Replace));
    fails(ErrorKind::InvalidInput, fs.rename((dir, b"moved"), (root, b"b"), Replace));
    fails(ErrorKind::NotFound, fs.rename((root, b"b"), (root, b"none"), Exchange));
    fs.rename((root, b"b"), (dir, b"moved"), Exchange).unwrap();
    assert_eq!(fs.lookup(root, b"b").unwrap(), sub);
    assert_eq!((fs.metadata(root).unwrap().links, fs.metadata(dir).unwrap().links), (links, 2));
    fails(ErrorKind::InvalidInput, fs.rename((root, b"b"), (root, b"dir"), Replace));
    fs.unlink(dir, b"moved").unwrap();
    fs.rename((root, b"b"), (root, b"dir"), Replace).unwrap();
    assert_eq!(fs.lookup(root, b"dir").unwrap(), sub);
    fs.link(fs.lookup(root, b"dir").unwrap(), root, b"x").unwrap_err();
    let same = fs.create(root, b"same", &file()).unwrap();
    fs.link(same, root, b"other").unwrap();
    fs.rename((root, b"same"), (root, b"other"), Replace).unwrap();
    assert_eq!(fs.lookup(root, b"same").unwrap(), same, "two names of one inode stay");
}

fn links_keep_their_targets(fs: &mut dyn FileSystem) {
    for len in [1, 58, 59, 60, 61, 200, 1000] {
        let target = vec![b't'; len];
        let node = NewNode { kind: NodeKind::Symlink(target.clone()), ..file() };
        let name = format!("link-{len}");
        let inode = fs.create(fs.root(), name.as_bytes(), &node).unwrap();
        assert_eq!(fs.read_link(inode).unwrap(), target);
        assert_eq!(fs.metadata(inode).unwrap().size, len as u64);
    }
}

fn attributes_are_kept(fs: &mut dyn FileSystem) {
    let root = fs.root();
    let device = DeviceNumber { major: 300, minor: 70_000 };
    let kinds = [
        (NodeKind::CharDevice(device), FileType::CharDevice),
        (NodeKind::BlockDevice(device), FileType::BlockDevice),
        (NodeKind::Fifo, FileType::Fifo),
        (NodeKind::Socket, FileType::Socket),
        (NodeKind::Regular, FileType::Regular),
        (NodeKind::Directory, FileType::Directory),
    ];
    for (number, (kind, file_type)) in kinds.into_iter().enumerate() {
        let is_device = matches!(kind, NodeKind::CharDevice(_) | NodeKind::BlockDevice(_));
        let node = NewNode { kind, mode: 0o6751, uid: 70_000, gid: 4_000_000_000 };
        let inode = fs.create(root, format!("{number}").as_bytes(), &node).unwrap();
        let metadata = fs.metadata(inode).unwrap();
        assert_eq!((metadata.file_type, metadata.mode), (file_type, 0o6751));
        assert_eq!((metadata.uid, metadata.gid), (70_000, 4_000_000_000));
        assert_eq!(metadata.device, if is_device { device } else { DeviceNumber::default() });
        assert_eq!(metadata.modified.seconds, 1_000_000_000);
        let time = Timestamp { seconds: 1_234_567_890, nanoseconds: 0 };
        let change =
            SetAttributes { modified: Some(time), mode: Some(0o1600), uid: Some(5), ..Default::default() };
        fs.set_now(Timestamp { seconds: 1_500_000_000, nanoseconds: 0 });
        fs.set_attributes(inode, &change).unwrap();
        let metadata = fs.metadata(inode).unwrap();
        assert_eq!((metadata.modified, metadata.mode, metadata.uid), (time, 0o1600, 5));
        assert_eq!(metadata.changed.seconds, 1_500_000_000);
        fs.set_now(Timestamp { seconds: 1_000_000_000, nanoseconds: 0 });
    }
}

fn extended_attributes_are_kept(fs: &mut dyn FileSystem) {
    let inode = fs.create(fs.root(), b"file", &file()).unwrap();
    fails(ErrorKind::NotFound, fs.xattr(inode, b"user.a"));
    fails(ErrorKind::NotFound, fs.set_xattr(inode, b"user.a", b"", XattrMode::Replace));
    let mut model = BTreeMap::new();
    for (name, len) in [("user.a", 5), ("security.b", 60), ("trusted.c", 0), ("user.d", 500), ("user.a", 90)]
    {
        fs.set_xattr(inode, name.as_bytes(), &pattern(1, len), XattrMode::Set).unwrap();
        model.insert(name.as_bytes().to_vec(), pattern(1, len));
    }
    fails(ErrorKind::Exists, fs.set_xattr(inode, b"user.a", b"", XattrMode::Create));
    fs.remove_xattr(inode, b"user.d").unwrap();
    fails(ErrorKind::NotFound, fs.remove_xattr(inode, b"user.d"));
    model.remove(&b"user.d"[..]);
    let held = fs.xattr_names(inode).unwrap().into_iter().map(|name| {
        let value = fs.xattr(inode, &name).unwrap();
        (name, value)
    });
    assert_eq!(held.collect::<BTreeMap<_, _>>(), model);
}

fn large_directories_list_each_name_once(fs: &mut dyn FileSystem) {
    let dir = fs.create(fs.root(), b"dir", &directory()).unwrap();
    let name = |number: u32| format!("a name of some length, number {number}").into_bytes();
    for number in 0..1500 {
        fs.create(dir, &name(number), &file()).unwrap();
    }
    for number in (0..1500).step_by(3) {
        fs.unlink(dir, &name(number)).unwrap();
    }
    let mut listed = Vec::new();
    fs.read_dir(dir, &mut |entry| {
        assert_eq!(entry.file_type, FileType::Regular);
        listed.push(entry.name);
        ControlFlow::Continue(())
    })
    .unwrap();
    listed.sort();
    let mut expected: Vec<_> = (0..1500).filter(|number| number % 3 != 0).map(name).collect();
    expected.sort();
    assert!(listed == expected);
    assert!(expected.iter().all(|name| fs.lookup(dir, name).is_ok()));
    fails(ErrorKind::NotFound, fs.lookup(dir, &name(0)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryFs;

    #[test]
    fn the_filesystem_in_memory_conforms() {
        check(&mut || Box::new(MemoryFs::default()));
    }

    #[test]
    fn random_operations_of_every_sort_succeed_now_and_then() {
        let mut fs = MemoryFs::default();
        let words = pattern(9, 60_000);
        let mut done = std::collections::HashSet::new();
        for words in words.chunks_exact(16) {
            let word = |at: usize| u32::from_le_bytes(words[at * 4..at * 4 + 4].try_into().unwrap());
            let op = Op::from_words([word(0), word(1), word(2), word(3)], 100_000);
            if op.apply(&mut fs).is_ok() {
                done.insert(std::mem::discriminant(&op));
            }
        }
        assert_eq!(done.len(), 13);
        assert!(tree(&fs, b"lost+found").unwrap().len() > 10);
    }
}
