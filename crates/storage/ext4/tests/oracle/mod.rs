//! What must hold for any bytes taken as a volume. Fuzzing and property tests share it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use vmwright_disk::MemDisk;
use vmwright_ext4::{ErrorKind, Ext4, Options};
use vmwright_vfs::conformance::Op;
use vmwright_vfs::{FileSystem, FileType, InodeNumber, Result, Timestamp};

/// The most paths that are walked: damage can lead one directory into another.
const PATHS: usize = 4000;

/// Opens bytes as a volume and walks it, content looked at in a few places.
///
/// Answers each path with what is known of it. Fails unless errors say that the volume is damaged or not
/// supported, answers agree with each other, and nothing was written.
pub(crate) fn walk(bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, String>, ErrorKind> {
    let disk = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let outcome = Ext4::open(disk.clone(), Options::default())
        .map_err(vmwright_vfs::Error::from)
        .and_then(|volume| paths(&volume));
    assert!(disk.to_bytes() == bytes, "reading changed the volume");
    outcome.map_err(|error| {
        let kind = error.kind();
        assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "{kind:?}: {error}");
        kind
    })
}

fn paths(fs: &dyn FileSystem) -> Result<BTreeMap<Vec<u8>, String>> {
    let (mut paths, mut entered) = (BTreeMap::new(), HashSet::new());
    let mut waiting = vec![(Vec::new(), fs.root())];
    fs.statfs()?;
    while let Some((path, inode)) = waiting.pop() {
        let metadata = fs.metadata(inode)?;
        let mut known = format!("{metadata:?}");
        for name in fs.xattr_names(inode)? {
            known += &format!(" {name:?}={:?}", fs.xattr(inode, &name)?);
        }
        match metadata.file_type {
            FileType::Directory if entered.insert(inode) => {
                let mut names = Vec::new();
                fs.read_dir(inode, &mut |entry| {
                    names.push(entry);
                    if names.len() < PATHS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
                for entry in names {
                    waiting.push(([&path[..], b"/", &entry.name].concat(), entry.inode));
                }
            }
            FileType::Regular => sample(fs, inode, metadata.size)?,
            FileType::Symlink => drop(fs.read_link(inode)?),
            _ => {}
        }
        paths.insert(path, known);
        if paths.len() > PATHS {
            break;
        }
    }
    Ok(paths)
}

/// Reads at the beginning, around the middle and at the end, and asks where that is kept.
fn sample(fs: &dyn FileSystem, inode: InodeNumber, size: u64) -> Result<()> {
    let mut buf = vec![0; 5000];
    for at in [0, size / 2, size.saturating_sub(5000), size] {
        let len = fs.read_at(inode, &mut buf, at)?;
        assert_eq!(len as u64, size.saturating_sub(at).min(5000));
        if at < size {
            let extent = fs.extent_at(inode, at)?;
            assert!(extent.start == at && extent.len > 0 && extent.end() <= size, "{extent:?} of {size}");
        }
    }
    Ok(())
}

/// Opens bytes as a volume for writing and applies operations; whatever they answer, the program goes on.
pub(crate) fn change(bytes: &[u8], words: &[[u32; 4]]) {
    let disk = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let Ok(mut volume) = Ext4::open(disk, Options::writable()) else { return };
    volume.set_now(Timestamp { seconds: 1_700_000_000, nanoseconds: 0 });
    for words in words {
        let _ = Op::from_words(*words, 100_000).apply(&mut volume);
    }
    let _ = volume.sync();
}
