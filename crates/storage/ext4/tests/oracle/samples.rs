//! Small volumes of many kinds, of which most that is not zero is metadata.

use std::sync::Arc;

use vmwright_disk::MemDisk;
use vmwright_ext4::make::{FeatureEdits, Generation, MakeOptions, make};
use vmwright_ext4::{Ext4, Options};
use vmwright_vfs::{FileSystem, NewNode, NodeKind, Timestamp, XattrMode};

/// When everything happens: before any clock that e2fsck may look at.
pub(crate) const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };

/// How long a volume is, and how much room there is behind it to grow.
pub(crate) const LEN: u64 = 4 << 20;
pub(crate) const ROOM: usize = 1 << 20;

/// Kinds of volumes: a name, the generation, features, the sizes of blocks and of inodes.
#[rustfmt::skip]
pub(crate) const KINDS: &[(&str, Generation, &str, u32, u16)] = &[
    ("plain", Generation::Ext4, "^metadata_csum,^uninit_bg,^metadata_csum_seed", 1024, 256),
    ("default", Generation::Ext4, "", 1024, 256),
    ("ext2", Generation::Ext2, "", 1024, 128),
    ("ext3", Generation::Ext3, "", 1024, 256),
    ("uninit", Generation::Ext4, "^metadata_csum,uninit_bg,^metadata_csum_seed", 1024, 256),
    ("inline", Generation::Ext4, "inline_data,^metadata_csum,^metadata_csum_seed,^orphan_file", 1024, 256),
    ("bigalloc", Generation::Ext4, "bigalloc,^metadata_csum,^metadata_csum_seed,^has_journal,^orphan_file", 1024, 256),
    ("4k", Generation::Ext4, "^metadata_csum,^metadata_csum_seed,^has_journal,^orphan_file", 4096, 256),
    ("meta_bg", Generation::Ext4, "meta_bg,^resize_inode,^metadata_csum,^metadata_csum_seed", 1024, 256),
    ("ea_inode", Generation::Ext4, "ea_inode,^has_journal,^orphan_file,^metadata_csum,^metadata_csum_seed", 1024, 256),
    ("quota", Generation::Ext4, "quota,project,^metadata_csum,^metadata_csum_seed", 1024, 256),
    ("casefold", Generation::Ext4, "casefold,large_dir,^metadata_csum,^metadata_csum_seed", 1024, 512),
    ("sealed", Generation::Ext4, "inline_data,ea_inode,quota,^has_journal,^orphan_file", 1024, 256),
];

/// A number of a volume of a kind, made and filled; the disk is longer than the volume.
pub(crate) fn sample(number: usize) -> Vec<u8> {
    let (_, generation, features, block_size, inode_size) = KINDS[number];
    let disk = Arc::new(MemDisk::new(LEN as usize + ROOM));
    let mut edits = FeatureEdits::default();
    edits.add(features).unwrap();
    let options = MakeOptions {
        generation,
        features: edits,
        length: Some(LEN),
        block_size: Some(block_size),
        inode_size: Some(inode_size),
        inodes: Some(512),
        now: NOW,
        uuid: uuid(number as u8),
        hash_seed: uuid(number as u8 + 100),
        ..MakeOptions::default()
    };
    make(disk.clone(), &options).unwrap();
    let mut volume = Ext4::open(disk.clone(), Options::writable()).unwrap();
    fill(&mut volume);
    volume.sync().unwrap();
    drop(volume);
    disk.to_bytes()
}

fn uuid(byte: u8) -> uuid::Uuid {
    uuid::Uuid::from_bytes([byte | 1; 16])
}

/// Directories, one with an index, files with holes, links, devices and attributes.
fn fill(fs: &mut dyn FileSystem) {
    fs.set_now(NOW);
    let node = |kind| NewNode { kind, mode: 0o755, uid: 1, gid: 2 };
    let root = fs.root();
    for upper in ["name-4", "name-5", "name-6"] {
        let dir = fs.create(root, upper.as_bytes(), &node(NodeKind::Directory)).unwrap();
        fs.create(dir, b"name-8", &node(NodeKind::Directory)).unwrap();
    }
    let many = fs.create(root, b"many", &node(NodeKind::Directory)).unwrap();
    for number in 0..120 {
        let name = format!("a name that is rather long {number}");
        fs.create(many, name.as_bytes(), &node(NodeKind::Regular)).unwrap();
    }
    for (name, step, count) in [("small", 1, 1), ("holes", 40_000, 12), ("far", 2_000_000, 3)] {
        let file = fs.create(root, name.as_bytes(), &node(NodeKind::Regular)).unwrap();
        for number in 0..count {
            fs.write_at(file, b"x", number * step).unwrap();
        }
        let value = vec![b'v'; if count == 3 { 600 } else { 30 * count as usize }];
        fs.set_xattr(file, b"user.name", &value, XattrMode::Set).unwrap();
        fs.link(file, many, name.as_bytes()).unwrap();
    }
    fs.create(root, b"short", &node(NodeKind::Symlink(b"small".to_vec()))).unwrap();
    fs.create(root, b"long", &node(NodeKind::Symlink(vec![b'l'; 200]))).unwrap();
    fs.create(root, b"pipe", &node(NodeKind::Fifo)).unwrap();
}

/// Where a volume is not zero: changes elsewhere mostly go unread.
pub(crate) fn places(bytes: &[u8]) -> Vec<usize> {
    let used = bytes.chunks(32).enumerate().filter(|(_, chunk)| chunk.iter().any(|&byte| byte != 0));
    used.map(|(number, _)| number * 32).filter(|at| *at >= 1024).collect()
}
