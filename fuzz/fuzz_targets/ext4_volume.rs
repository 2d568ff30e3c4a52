//! Damage to a volume with checksums everywhere: what is read is what was there, or an error of the right kind.
//!
//! The input is a list of places and bytes to change in a volume that mke2fs makes once, with the checksums
//! beneath which damage would otherwise never get past the first structure switched off for every other input.
#![no_main]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vmwright_disk::MemDisk;
use vmwright_ext4::{ErrorKind, Ext4, Options};
use vmwright_vfs::{FileSystem, FileType, NewNode, NodeKind, Result};

const MOST_NODES: usize = 2000;

type Found = BTreeMap<Vec<u8>, (FileType, usize)>;

fn make(options: &[&str]) -> Vec<u8> {
    let path = std::env::temp_dir().join(format!("vmwright-fuzz-{}-{}", std::process::id(), options.len()));
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let status =
        Command::new("mke2fs").args(["-q", "-F", "-b", "1024", "-N", "64"]).args(options).arg(&path).status();
    assert!(status.unwrap().success(), "mke2fs makes the volume");
    let disk = Arc::new(MemDisk::from_bytes(std::fs::read(&path).unwrap()));
    std::fs::remove_file(&path).unwrap();
    let mut volume = Ext4::open(disk.clone(), Options::writable()).unwrap();
    change(&mut volume).unwrap();
    disk.to_bytes()
}

fn change(volume: &mut Ext4) -> Result<()> {
    let node = |kind| NewNode { kind, mode: 0o644, uid: 0, gid: 0 };
    let name = format!("dir {}", volume.statfs()?.free_inodes).into_bytes();
    let dir = volume.create(volume.root(), &name, &node(NodeKind::Directory))?;
    for i in 0..10_u64 {
        let file = volume.create(dir, format!("a longer name {i}").as_bytes(), &node(NodeKind::Regular))?;
        volume.write_at(file, &[i as u8; 1500], i * 3000)?;
    }
    volume.create(dir, b"link", &node(NodeKind::Symlink(vec![b'x'; 100])))?;
    let file = volume.lookup(dir, b"a longer name 3")?;
    volume.set_xattr(file, b"user.a", &[1; 300], vmwright_vfs::XattrMode::Set)?;
    volume.punch(file, 0, 10_000)?;
    volume.unlink(dir, b"a longer name 4")?;
    volume.sync()
}

fn walk(volume: &Ext4) -> Result<Found> {
    let (mut found, mut waiting) = (Found::new(), vec![(Vec::new(), volume.root())]);
    while let Some((path, inode)) = waiting.pop() {
        let metadata = volume.metadata(inode)?;
        let mut len = 0;
        match metadata.file_type {
            FileType::Directory => volume.read_dir(inode, &mut |entry| {
                let path = [&path[..], b"/", &entry.name].concat();
                if path.len() < 1000 {
                    waiting.push((path, entry.inode));
                }
                if waiting.len() > MOST_NODES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?,
            FileType::Symlink => len = volume.read_link(inode)?.len(),
            FileType::Regular => len = volume.read_at(inode, &mut vec![0; 1 << 16], 0)?,
            _ => {}
        }
        for name in volume.xattr_names(inode)? {
            len += volume.xattr(inode, &name)?.len();
        }
        found.insert(path, (metadata.file_type, len));
        if found.len() > MOST_NODES {
            break;
        }
    }
    Ok(found)
}

static GUARDED: LazyLock<(Vec<u8>, Found)> = LazyLock::new(|| {
    let bytes = make(&["-t", "ext4"]);
    let volume = Ext4::open(Arc::new(MemDisk::from_bytes(bytes.clone())), Options::default()).unwrap();
    let found = walk(&volume).unwrap();
    (bytes, found)
});
static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| make(&["-t", "ext4", "-O", "^metadata_csum,^uninit_bg"]));

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let guarded = first & 1 == 0;
    let mut bytes = if guarded { GUARDED.0.clone() } else { PLAIN.clone() };
    for change in rest.chunks_exact(4).take(64) {
        let at = usize::from(change[0]) << 16 | usize::from(change[1]) << 8 | usize::from(change[2]);
        let at = at % bytes.len();
        bytes[at] ^= change[3];
    }
    let disk = Arc::new(MemDisk::from_bytes(bytes));
    if let Ok(volume) = Ext4::open(disk.clone(), Options::default()) {
        match walk(&volume) {
            Ok(found) => assert!(!guarded || found == GUARDED.1, "damage went unnoticed"),
            Err(error) => {
                assert!(!matches!(error.kind(), ErrorKind::Io | ErrorKind::InvalidInput), "{error}")
            }
        }
    }
    if let Ok(mut volume) = Ext4::open(disk, Options::writable()) {
        // Damage may end this at any step, but it ends.
        let _ = change(&mut volume);
    }
});
