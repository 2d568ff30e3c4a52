use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use vmwright_vfs::{FileType, Location, Metadata, Root, Timestamp};

use crate::Result;

/// A file with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its absolute path in the guest; bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// The path as it is, where that differs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path_bytes: Option<Vec<u8>>,
    /// What it is: `file`, `directory`, `symlink`, `char`, `block`, `fifo` or `socket`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Permission, set-id and sticky bits.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The length in bytes.
    pub size: u64,
    /// The space taken, in bytes.
    pub allocated: u64,
    /// The number of hard links.
    pub links: u32,
    /// The inode.
    pub inode: u64,
    /// The time of the last change to the content, in seconds since 1970.
    pub modified: i64,
    /// The time of the last read, in seconds since 1970.
    pub accessed: i64,
    /// The time of the last change to the inode, in seconds since 1970.
    pub changed: i64,
    /// The time of birth, in seconds since 1970, where recorded.
    pub created: Option<i64>,
    /// The number of a device, as `major:minor`.
    pub device: Option<String>,
    /// The target of a symbolic link.
    pub target: Option<String>,
}

impl Listed {
    fn new(root: &Root, path: Vec<u8>, location: Location) -> Result<Self> {
        let metadata = root.metadata_at(location)?;
        let target = match metadata.file_type {
            FileType::Symlink => Some(root.filesystem(location.mount).read_link(location.inode)?),
            _ => None,
        };
        let (shown, path_bytes) = match String::from_utf8(path) {
            Ok(path) => (path, None),
            Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(error.into_bytes())),
        };
        let is_device = matches!(metadata.file_type, FileType::CharDevice | FileType::BlockDevice);
        let device = format!("{}:{}", metadata.device.major, metadata.device.minor);
        let Metadata { inode, mode, uid, gid, size, allocated, links, .. } = metadata;
        let seconds = |time: Timestamp| time.seconds;
        Ok(Self {
            path: shown,
            path_bytes,
            kind: kind_name(metadata.file_type).to_owned(),
            mode,
            uid,
            gid,
            size,
            allocated,
            links,
            inode: inode.0,
            modified: seconds(metadata.modified),
            accessed: seconds(metadata.accessed),
            changed: seconds(metadata.changed),
            created: metadata.created.map(seconds),
            device: is_device.then_some(device),
            target: target.map(|target| String::from_utf8_lossy(&target).into_owned()),
        })
    }
}

pub(crate) fn kind_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::CharDevice => "char",
        FileType::BlockDevice => "block",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}

/// What is known of one file; of a symbolic link itself unless `follow`.
pub fn stat(root: &Root, path: &[u8], follow: bool) -> Result<Listed> {
    let resolved = root.resolve(path, follow)?;
    Listed::new(root, resolved.path, resolved.location)
}

/// Visits what is in a directory in the order of names, or a single file; with `recursive` everything beneath.
pub fn list(
    root: &Root,
    path: &[u8],
    recursive: bool,
    visit: &mut dyn FnMut(Listed) -> ControlFlow<()>,
) -> Result<()> {
    let start = root.resolve(path, true)?;
    if root.metadata_at(start.location)?.file_type != FileType::Directory {
        let _ = visit(stat(root, path, false)?);
        return Ok(());
    }
    if !recursive {
        return list_one(root, &start.path, start.location, visit);
    }
    let mut failed = None;
    root.walk(&start.path, &mut |entry| match Listed::new(root, entry.path.clone(), entry.location) {
        Ok(listed) => visit(listed),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn list_one(
    root: &Root,
    path: &[u8],
    dir: Location,
    visit: &mut dyn FnMut(Listed) -> ControlFlow<()>,
) -> Result<()> {
    let prefix = if path == b"/" { b"" } else { path };
    for entry in root.read_dir_at(dir)? {
        let path = [prefix, b"/", &entry.name].concat();
        let location = root.resolve(&path, false)?.location;
        if visit(Listed::new(root, path, location)?).is_break() {
            break;
        }
    }
    Ok(())
}
