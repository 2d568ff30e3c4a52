//! Random operations.

use super::pattern;
use crate::{
    DeviceNumber, ErrorKind, FileSystem, InodeNumber, NewNode, NodeKind, RenameMode, Result, SetAttributes,
    Timestamp, XattrMode,
};

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
    Allocate { path: OpPath, offset: u64, len: u64, keep_size: bool, modified: Timestamp },
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
        match what % 26 {
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
            23 | 24 => {
                let modified = Timestamp { seconds: third.into(), nanoseconds: 0 };
                let len = u64::from(third >> 2) % (size / 2);
                Self::Allocate { path, offset, len, keep_size: third & 2 == 0, modified }
            }
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
            Self::Allocate { path, offset, len, keep_size, modified } => {
                let inode = path.inode(fs)?;
                match fs.allocate(inode, *offset, *len, *keep_size) {
                    // Not every format knows space past the end of a file.
                    Err(error) if *keep_size && error.kind() == ErrorKind::Unsupported => {}
                    answer => answer?,
                }
                // Whether it was refused must not show.
                let attributes = SetAttributes { modified: Some(*modified), ..SetAttributes::default() };
                fs.set_attributes(inode, &attributes)
            }
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
        created: (third & 32 == 0).then_some(time),
    }
}
