//! Combinations of features that few volumes have, volumes without room, and disks that fail for a moment.

use std::sync::Arc;

use vmwright_disk::fault::{Fault, FaultDisk};
use vmwright_ext4::{Ext4, Options};
use vmwright_judges::{need, run};
use vmwright_vfs::{ErrorKind, FileSystem, InodeNumber, NewNode, NodeKind, RenameMode, XattrMode};

use crate::images::{FIRST_REVISION, Image, RARE, named};
use crate::populate::noise;
use crate::writing::{agrees_with_the_model, open};

fn file(volume: &mut Ext4, name: &str) -> InodeNumber {
    let node = NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 70_000, gid: 0 };
    volume.create(volume.root(), name.as_bytes(), &node).unwrap()
}

fn content(volume: &Ext4, inode: InodeNumber) -> Vec<u8> {
    let mut bytes = vec![0xee; volume.metadata(inode).unwrap().size as usize];
    assert_eq!(volume.read_at(inode, &mut bytes, 0).unwrap(), bytes.len());
    bytes
}

/// Takes every free block.
fn fill(volume: &mut Ext4) {
    let (inode, rest) = (file(volume, "everything else"), file(volume, "the rest"));
    let mut at = 0;
    for len in [1 << 16, 1024] {
        while volume.write_at(inode, &noise(at, len), at).is_ok() {
            at = volume.metadata(inode).unwrap().size;
        }
        at = volume.metadata(inode).unwrap().size;
    }
    // A block may be left that alone was too little.
    for at in 0..volume.statfs().unwrap().free_blocks {
        volume.write_at(rest, &noise(at, 1024), at << 10).unwrap();
    }
    assert_eq!(volume.statfs().unwrap().free_blocks, 0);
}

#[test]
fn random_operations_on_rare_volumes_leave_what_the_model_has() {
    need!("mke2fs", "e2fsck", "debugfs");
    for (kind, turn) in RARE.iter().zip(1_u32..) {
        let word = |at: u32| (at * 4 + turn).wrapping_mul(0x9e37_79b9).rotate_left(turn + 7);
        let words: Vec<_> = (0..250_u32).map(|at| [at, at + 1000, at + 2000, at + 3000].map(word)).collect();
        agrees_with_the_model(kind, 40, &words);
    }
}

#[test]
fn attributes_are_refused_where_the_superblock_cannot_name_features() {
    need!("mke2fs", "e2fsck");
    let image = Image::make(&FIRST_REVISION, 8);
    let mut volume = open(&image);
    let inode = file(&mut volume, "file");
    volume.write_at(inode, &noise(1, 100_000), 0).unwrap();
    let error = volume.set_xattr(inode, b"user.a", b"b", XattrMode::Set).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    volume.sync().unwrap();
    assert_eq!(content(&volume, inode), noise(1, 100_000));
    image.assert_sound("after an attribute was refused");
}

#[test]
fn punching_a_full_volume_makes_a_hole_or_changes_nothing() {
    need!("mke2fs", "e2fsck");
    let image = Image::make(named("1k"), 8);
    let mut volume = open(&image);
    let inode = file(&mut volume, "file");
    let mut expected = noise(3, 20 << 10);
    volume.write_at(inode, &expected, 0).unwrap();
    for block in [1, 3, 5] {
        volume.punch(inode, block << 10, 1 << 10).unwrap();
        expected[(block as usize) << 10..][..1 << 10].fill(0);
    }
    fill(&mut volume);
    let error = volume.punch(inode, (8 << 10) + 100, 3 << 10).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(content(&volume, inode) == expected, "what failed has changed the file");
    volume.sync().unwrap();
    image.assert_sound("after a hole found no room");
}

#[test]
fn a_range_is_taken_out_of_a_file_on_a_full_volume() {
    need!("mke2fs", "e2fsck");
    let image = Image::make(named("1k"), 8);
    let mut volume = open(&image);
    let inode = file(&mut volume, "file");
    // As many extents as a leaf has room for.
    let mut expected = vec![0; 84 * 2048 - 1024];
    for block in 0..84_u64 {
        let data = noise(block, 1024);
        volume.write_at(inode, &data, block * 2048).unwrap();
        expected[block as usize * 2048..][..1024].copy_from_slice(&data);
    }
    fill(&mut volume);
    volume.collapse_range(inode, 1024, 1024).unwrap();
    expected.drain(1024..2048);
    assert!(content(&volume, inode) == expected);
    volume.sync().unwrap();
    image.assert_sound("after a hole was taken out");
    drop(volume);
    assert!(content(&image.open(), inode) == expected);
}

#[test]
fn a_sync_that_failed_at_any_write_is_made_good_by_the_next() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["mmp", "quota", "uninit"] {
        let original = Image::make(named(kind), 8);
        for nth in 0.. {
            let image = original.copy();
            let disk = Arc::new(FaultDisk::new(image.disk(false)));
            let mut volume = Ext4::open(disk.clone(), Options::writable()).unwrap();
            for number in 0..20 {
                let inode = file(&mut volume, &format!("file-{number}"));
                volume.write_at(inode, &noise(number, 9000), 0).unwrap();
            }
            disk.set_fault(disk.changes() + nth, Fault::Fail);
            let failed = volume.sync().is_err();
            volume.sync().unwrap_or_else(|error| panic!("{kind}: failed at {nth}, then {error}"));
            drop((volume, disk));
            image.assert_sound(&format!("{kind}: synced after failing at {nth}"));
            let volume = Ext4::open(image.disk(false), Options::writable()).unwrap();
            let last = volume.lookup(volume.root(), b"file-19").unwrap();
            assert!(content(&volume, last) == noise(19, 9000));
            if !failed {
                assert!(nth > 3, "{kind}: hardly anything is written");
                break;
            }
        }
    }
}

#[test]
fn names_do_not_lead_to_the_journal() {
    need!("mke2fs", "debugfs");
    let image = Image::make(named("default"), 16);
    run("debugfs", ["-w".as_ref(), "-R".as_ref(), "ln <8> /journal".as_ref(), image.path().as_os_str()]);
    let mut volume = open(&image);
    let root = volume.root();
    let other = file(&mut volume, "other");
    let refused = [
        volume.lookup(root, b"journal").map(drop),
        volume.unlink(root, b"journal"),
        volume.rename((root, b"other"), (root, b"journal"), RenameMode::Replace),
        volume.rename((root, b"journal"), (root, b"third"), RenameMode::NoReplace),
    ];
    assert!(refused.iter().all(|answer| answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corrupt)));
    assert_eq!(volume.lookup(root, b"other").unwrap(), other);
}

#[test]
fn blocks_are_not_given_back_while_a_damaged_map_leads_to_them() {
    need!("mke2fs", "debugfs");
    for kind in ["1k", "ext2_1k"] {
        let image = Image::make(named(kind), 16);
        let mut volume = open(&image);
        let inode = file(&mut volume, "file");
        for block in 0..600 {
            volume.write_at(inode, &noise(block, 1024), block << 11).unwrap();
        }
        volume.sync().unwrap();
        drop(volume);
        // The node that comes last: its line ends in its block and how many blocks it leads to.
        let request = if kind == "1k" { "ex -n file" } else { "stat file" };
        let said = run("debugfs", ["-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
        let last = match kind {
            "1k" => said.split_whitespace().rev().nth(1),
            _ => said.rsplit("(IND):").next().and_then(|text| text.split(',').next()),
        };
        let last = last.and_then(|number| number.trim().parse::<u64>().ok());
        let at = last.unwrap_or_else(|| panic!("{kind}: debugfs says {said}"));
        image.disk(false).write_at(&[0xff; 1024], at << 10).unwrap();
        let mut volume = open(&image);
        let free = volume.statfs().unwrap().free_blocks;
        assert_eq!(volume.truncate(inode, 0).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(volume.statfs().unwrap().free_blocks, free, "{kind}: the file still leads to them");
    }
}
