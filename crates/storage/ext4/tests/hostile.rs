//! Damaged volumes: an error that says where, or the same answers as before the damage.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use vmwright_disk::MemDisk;
use vmwright_ext4::{ErrorKind, Ext4, Options};
use vmwright_judges::{need, run};
use vmwright_vfs::{FileSystem, FileType, InodeNumber, NewNode, NodeKind, RenameMode, Result, XattrMode};

/// What a walk stops at: damage may make a volume seem as large as its disk.
const MOST_NODES: usize = 4000;

/// Bytes of a file that are read: more than any here has, less than damage can pretend.
const MOST_BYTES: usize = 1 << 19;

fn make(options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fill(&tree);
    let path = dir.path().join("image");
    std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let ends = ["-d", tree.to_str().unwrap(), path.to_str().unwrap()];
    run("mke2fs", [&["-q", "-F", "-b", "1024", "-N", "512"], options, &ends].concat());
    let disk = Arc::new(MemDisk::from_bytes(std::fs::read(&path).unwrap()));
    let mut volume = Ext4::open(disk.clone(), Options::writable()).unwrap();
    let root = volume.root();
    let node = NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 0, gid: 0 };
    let file = volume.create(root, b"pieces", &node).unwrap();
    for piece in 0..200 {
        volume.write_at(file, &[piece as u8; 100], piece * 2500).unwrap();
    }
    volume.set_xattr(file, b"user.large", &[3; 600], XattrMode::Set).unwrap();
    volume.set_xattr(file, b"user.small", b"value", XattrMode::Set).unwrap();
    volume.sync().unwrap();
    disk.to_bytes()
}

fn fill(tree: &Path) {
    std::fs::create_dir_all(tree.join("many")).unwrap();
    for i in 0..200 {
        std::fs::write(tree.join(format!("many/a name that takes some room {i}")), format!("{i}")).unwrap();
    }
    std::fs::write(tree.join("file"), [9; 20_000]).unwrap();
    std::os::unix::fs::symlink("file", tree.join("fast")).unwrap();
    std::os::unix::fs::symlink("far/".repeat(50), tree.join("slow")).unwrap();
}

/// Type and content by path.
type Found = BTreeMap<Vec<u8>, (FileType, Vec<u8>)>;

/// Reads everything that can be read.
fn walk(volume: &Ext4) -> Result<Found> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(Vec::new(), volume.root())];
    while let Some((path, inode)) = waiting.pop() {
        let metadata = volume.metadata(inode)?;
        let mut content = Vec::new();
        match metadata.file_type {
            FileType::Directory => list(volume, inode, &path, &mut waiting)?,
            FileType::Symlink => content = volume.read_link(inode)?,
            FileType::Regular => {
                content = vec![0; MOST_BYTES];
                let len = volume.read_at(inode, &mut content, 0)?;
                content.truncate(len);
                if metadata.size > 0 {
                    volume.extent_at(inode, metadata.size - 1)?;
                }
            }
            _ => {}
        }
        for name in volume.xattr_names(inode)? {
            content.extend(volume.xattr(inode, &name)?);
        }
        found.insert(path, (metadata.file_type, content));
        if found.len() + waiting.len() > MOST_NODES {
            break;
        }
    }
    Ok(found)
}

fn list(
    volume: &Ext4,
    dir: InodeNumber,
    path: &[u8],
    waiting: &mut Vec<(Vec<u8>, InodeNumber)>,
) -> Result<()> {
    let mut names = Vec::new();
    volume.read_dir(dir, &mut |entry| {
        names.push(entry);
        if names.len() > MOST_NODES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    for entry in names {
        volume.lookup(dir, &entry.name)?;
        let path = [path, b"/", &entry.name].concat();
        // Damage can make a directory hold itself.
        if path.iter().filter(|byte| **byte == b'/').count() < 20 {
            waiting.push((path, entry.inode));
        }
    }
    Ok(())
}

fn change(volume: &mut Ext4) -> Result<()> {
    let root = volume.root();
    let node = |kind| NewNode { kind, mode: 0o644, uid: 0, gid: 0 };
    let dir = volume.create(root, b"new", &node(NodeKind::Directory))?;
    for i in 0..100 {
        let file = volume.create(dir, format!("new name {i}").as_bytes(), &node(NodeKind::Regular))?;
        volume.write_at(file, &[i; 1500], 0)?;
    }
    let pieces = volume.lookup(root, b"pieces")?;
    volume.punch(pieces, 100_000, 100_000)?;
    volume.write_at(pieces, &[1; 300_000], 50_000)?;
    volume.set_xattr(pieces, b"user.small", &[1; 200], XattrMode::Set)?;
    volume.truncate(pieces, 1000)?;
    let many = volume.lookup(root, b"many")?;
    for i in 0..50 {
        volume.unlink(many, format!("a name that takes some room {i}").as_bytes())?;
    }
    volume.rename((root, b"many"), (dir, b"many"), RenameMode::Replace)?;
    volume.unlink(root, b"pieces")?;
    volume.sync()
}

/// Damage is never blamed on the disk or the caller, who asked for nothing odd.
fn check_error(error: &vmwright_vfs::Error) {
    let blamed = [ErrorKind::Io, ErrorKind::InvalidInput, ErrorKind::InUse];
    assert!(!blamed.contains(&error.kind()), "{:?}: {error}", error.kind());
}

fn damage(bytes: &mut [u8], changes: &[(prop::sample::Index, u8)], blocks: &[usize]) {
    for (at, value) in changes {
        let at = at.index(blocks.len() * 1024);
        bytes[blocks[at / 1024] * 1024 + at % 1024] ^= value;
    }
}

/// The blocks that hold anything at all.
fn used(bytes: &[u8]) -> Vec<usize> {
    let blocks = bytes.chunks_exact(1024).enumerate();
    blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0)).map(|(number, _)| number).collect()
}

static GUARDED: LazyLock<Vec<u8>> = LazyLock::new(|| make(&["-t", "ext4"]));
static PLAIN: LazyLock<Vec<u8>> =
    LazyLock::new(|| make(&["-t", "ext4", "-O", "^metadata_csum,^uninit_bg,inline_data"]));
static OLD: LazyLock<Vec<u8>> = LazyLock::new(|| make(&["-t", "ext2", "-O", "dir_index"]));

fn cases(fewer: u32) -> ProptestConfig {
    let torture = std::env::var_os("VMWRIGHT_TORTURE").is_some();
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(if torture { 20_000 } else { fewer })
    }
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..6)
}

#[test]
fn checksums_tell_every_change_of_metadata() {
    need!("mke2fs");
    let sound =
        walk(&Ext4::open(Arc::new(MemDisk::from_bytes(GUARDED.clone())), Options::default()).unwrap());
    let sound = sound.unwrap();
    let blocks = used(&GUARDED);
    proptest!(cases(200), |(changes in changes())| {
        let mut bytes = GUARDED.clone();
        damage(&mut bytes, &changes, &blocks);
        let disk = Arc::new(MemDisk::from_bytes(bytes));
        let Ok(volume) = Ext4::open(disk, Options::default()) else { return Ok(()) };
        match walk(&volume) {
            Ok(found) => {
                // Content has no checksums; names, types and lengths do.
                prop_assert_eq!(found.len(), sound.len());
                for ((path, (kind, content)), (known, (known_kind, known_content))) in found.iter().zip(&sound) {
                    prop_assert_eq!((path, kind, content.len()), (known, known_kind, known_content.len()));
                }
            }
            Err(error) => check_error(&error),
        }
    });
}

#[test]
fn damage_without_checksums_ends_in_an_answer_or_an_error() {
    need!("mke2fs");
    for image in [&PLAIN, &OLD] {
        let blocks = used(image);
        proptest!(cases(120), |(changes in changes())| {
            let mut bytes = image.to_vec();
            damage(&mut bytes, &changes, &blocks);
            let disk = Arc::new(MemDisk::from_bytes(bytes));
            if let Ok(volume) = Ext4::open(disk.clone(), Options::default())
                && let Err(error) = walk(&volume)
            {
                check_error(&error);
            }
            if let Ok(mut volume) = Ext4::open(disk, Options::writable()) {
                // Only that it ends: what is damaged may also look like a file of another type.
                let _ = change(&mut volume);
            }
        });
    }
}

#[test]
fn a_volume_cut_short_is_refused() {
    need!("mke2fs");
    for len in [0, 1000, 1024, 2047, 2048, 100_000, GUARDED.len() - 1] {
        let disk = Arc::new(MemDisk::from_bytes(GUARDED[..len].to_vec()));
        let error = Ext4::open(disk, Options::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}
