//! A whole tree as a value: from the kernel's mount, and from a filesystem of ours.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use vmwright_disk::{Disk, ExtentKind};
use vmwright_vfs::{FileSystem, FileType, InodeNumber};

/// All that both sides tell of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) inode: u64,
    pub(crate) file_type: FileType,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) links: u64,
    pub(crate) size: u64,
    pub(crate) allocated: u64,
    pub(crate) device: (u32, u32),
    pub(crate) accessed: (i64, i64),
    pub(crate) modified: (i64, i64),
    pub(crate) changed: (i64, i64),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    None,
    Target(Vec<u8>),
    Hash(blake3::Hash),
}

/// Every path, from the root down.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

/// Reads a tree through the kernel.
pub(crate) fn of_kernel(top: &Path) -> Tree {
    let mut tree = Tree::new();
    kernel_node(top, &mut Vec::new(), &mut tree);
    tree
}

fn kernel_node(path: &Path, name: &mut Vec<u8>, tree: &mut Tree) {
    let metadata = path.symlink_metadata().unwrap();
    let kind = metadata.file_type();
    let (file_type, content) = if kind.is_file() {
        (FileType::Regular, Content::Hash(hash_file(path)))
    } else if kind.is_dir() {
        (FileType::Directory, Content::None)
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path).unwrap().into_os_string().into_vec();
        (FileType::Symlink, Content::Target(target))
    } else if kind.is_char_device() {
        (FileType::CharDevice, Content::None)
    } else if kind.is_block_device() {
        (FileType::BlockDevice, Content::None)
    } else if kind.is_fifo() {
        (FileType::Fifo, Content::None)
    } else {
        (FileType::Socket, Content::None)
    };
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    let node = Node {
        inode: metadata.ino(),
        file_type,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        links: metadata.nlink(),
        size: metadata.size(),
        allocated: metadata.blocks() * 512,
        device: (major, minor),
        accessed: (metadata.atime(), metadata.atime_nsec()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        xattrs: kernel_xattrs(path),
        content,
    };
    tree.insert(name.clone(), node);
    if kind.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap().file_name();
            let len = name.len();
            name.push(b'/');
            name.extend(entry.as_bytes());
            kernel_node(&path.join(&entry), name, tree);
            name.truncate(len);
        }
    }
}

fn hash_file(path: &Path) -> blake3::Hash {
    let (mut hasher, mut buf) = (blake3::Hasher::new(), vec![0; 1 << 20]);
    let mut file = std::fs::File::open(path).unwrap();
    loop {
        match file.read(&mut buf).unwrap() {
            0 => return hasher.finalize(),
            len => hasher.update(&buf[..len]),
        };
    }
}

fn kernel_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut value = vec![0; 65536];
    names
        .map(|name| {
            let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// Reads a tree through a filesystem of ours.
pub(crate) fn of_ours(fs: &dyn FileSystem) -> Tree {
    let mut tree = Tree::new();
    our_node(fs, fs.root(), &mut Vec::new(), &mut tree);
    tree
}

fn our_node(fs: &dyn FileSystem, inode: InodeNumber, name: &mut Vec<u8>, tree: &mut Tree) {
    let path = String::from_utf8_lossy(name).into_owned();
    let metadata = fs.metadata(inode).unwrap_or_else(|error| panic!("{path}: {error}"));
    let content = match metadata.file_type {
        FileType::Regular => Content::Hash(hash_ours(fs, inode, metadata.size)),
        FileType::Symlink => Content::Target(fs.read_link(inode).unwrap()),
        _ => Content::None,
    };
    let names = fs.xattr_names(inode).unwrap_or_else(|error| panic!("{path}: {error}"));
    let xattrs = names.into_iter().map(|name| {
        let value = fs.xattr(inode, &name).unwrap_or_else(|error| panic!("{path}: {error}"));
        (name, value)
    });
    let node = Node {
        inode: metadata.inode.0,
        file_type: metadata.file_type,
        mode: metadata.mode.into(),
        owner: (metadata.uid, metadata.gid),
        links: metadata.links.into(),
        size: metadata.size,
        allocated: metadata.allocated,
        device: (metadata.device.major, metadata.device.minor),
        accessed: (metadata.accessed.seconds, metadata.accessed.nanoseconds.into()),
        modified: (metadata.modified.seconds, metadata.modified.nanoseconds.into()),
        changed: (metadata.changed.seconds, metadata.changed.nanoseconds.into()),
        xattrs: xattrs.collect(),
        content,
    };
    let is_directory = node.file_type == FileType::Directory;
    tree.insert(name.clone(), node);
    if !is_directory {
        return;
    }
    let mut entries = Vec::new();
    fs.read_dir(inode, &mut |entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    })
    .unwrap_or_else(|error| panic!("{path}: {error}"));
    for entry in entries {
        let len = name.len();
        name.push(b'/');
        name.extend(&entry.name);
        our_node(fs, entry.inode, name, tree);
        assert_eq!(tree[name].file_type, entry.file_type, "{name:?}");
        name.truncate(len);
    }
}

fn hash_ours(fs: &dyn FileSystem, inode: InodeNumber, size: u64) -> blake3::Hash {
    let (mut hasher, mut buf, mut at) = (blake3::Hasher::new(), vec![0; 1 << 20], 0);
    while at < size {
        let len = fs.read_at(inode, &mut buf, at).unwrap();
        assert!(len > 0, "{inode:?} ends at {at} before {size}");
        hasher.update(&buf[..len]);
        at += len as u64;
    }
    assert_eq!(fs.read_at(inode, &mut buf, size).unwrap(), 0);
    hasher.finalize()
}

/// Fails where two trees differ, naming the first few differences.
pub(crate) fn assert_equal(ours: &Tree, kernel: &Tree, when: &str) {
    let mut differences = Vec::new();
    for path in ours.keys().chain(kernel.keys().filter(|path| !ours.contains_key(*path))) {
        let what = match (ours.get(path), kernel.get(path)) {
            (Some(ours), Some(kernel)) => difference(ours, kernel),
            (ours, _) => Some(format!("only {}", if ours.is_some() { "ours" } else { "the kernel's" })),
        };
        if let Some(what) = what {
            differences.push(format!("\n{:.80}: {what:.600}", String::from_utf8_lossy(path)));
        }
    }
    if !differences.is_empty() {
        let first: String = differences.iter().take(6).map(String::as_str).collect();
        panic!("{when}: {} of {} paths differ (ours, the kernel's){first}", differences.len(), kernel.len());
    }
}

/// The fields in which two nodes differ.
fn difference(ours: &Node, kernel: &Node) -> Option<String> {
    // The kernel counts content kept in the inode as space beside the blocks.
    let inline = kernel.size.div_ceil(512) * 512;
    let kernel = match kernel.allocated.checked_sub(inline) {
        Some(allocated) if allocated == ours.allocated => Node { allocated, ..kernel.clone() },
        _ => kernel.clone(),
    };
    let lines = |node: &Node| format!("{node:#?}").lines().map(str::to_owned).collect::<Vec<_>>();
    let (ours, kernel) = (lines(ours), lines(&kernel));
    let differing = ours.iter().zip(&kernel).filter(|(ours, kernel)| ours != kernel);
    let text: String = differing.map(|(ours, kernel)| format!("\n    {ours} {}", kernel.trim())).collect();
    (ours != kernel).then_some(text)
}

/// Fails unless reading a file and looking where its extents point to give the same bytes.
pub(crate) fn assert_extents_agree(fs: &dyn FileSystem, disk: &dyn Disk) {
    for (path, node) in of_ours(fs) {
        if node.file_type != FileType::Regular {
            continue;
        }
        let inode = InodeNumber(node.inode);
        let mut at = 0;
        while at < node.size {
            let extent = fs.extent_at(inode, at).unwrap();
            assert_eq!(extent.start, at, "{path:?}");
            let len = extent.len.min(1 << 20).min(node.size - at) as usize;
            let mut content = vec![1; len];
            assert_eq!(fs.read_at(inode, &mut content, at).unwrap(), len, "{path:?}");
            match extent.kind {
                ExtentKind::Data { offset, .. } => {
                    let mut there = vec![0; len];
                    disk.read_at(&mut there, offset).unwrap();
                    assert!(content == there, "{path:?} at {at}");
                }
                ExtentKind::Zero | ExtentKind::Unallocated => {
                    assert!(content.iter().all(|&byte| byte == 0), "{path:?} at {at}");
                }
                ExtentKind::Opaque | ExtentKind::Compressed => {}
            }
            at += if extent.is_zero() { extent.len } else { len as u64 };
        }
        assert!(at >= node.size);
    }
}
