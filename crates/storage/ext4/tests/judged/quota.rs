//! What owners use is what e2fsck counts, and entries appear as owners do.

use std::os::unix::fs::{chown, lchown};
use std::path::Path;

use vmwright_ext4::{Ext4, Options};
use vmwright_judges::{Mount, can_mount, need, run, skip};
use vmwright_vfs::{FileSystem, NewNode, NodeKind, RenameMode, SetAttributes, XattrMode};

use crate::images::{Image, named};
use crate::populate;
use crate::random::effort;
use crate::writing::{agrees_with_the_model, open};

fn node(kind: NodeKind, uid: u32, gid: u32) -> NewNode {
    NewNode { kind, mode: 0o644, uid, gid }
}

/// Changes owners and space in every way there is.
fn spend(volume: &mut dyn FileSystem, seed: u32) {
    let root = volume.root();
    let dir =
        volume.create(root, format!("dir-{seed}").as_bytes(), &node(NodeKind::Directory, 7, 8)).unwrap();
    for number in 0..120_u32 {
        let owner = seed.wrapping_mul(0x0101_0101).wrapping_add(number * number * 77_777);
        let name = format!("file-{number}");
        let file = volume.create(dir, name.as_bytes(), &node(NodeKind::Regular, owner, number % 5)).unwrap();
        volume.write_at(file, &populate::noise(number.into(), 3000 * number as usize), 5000).unwrap();
        match number % 6 {
            0 => volume.truncate(file, 4000).unwrap(),
            1 => volume.punch(file, 0, 100_000).unwrap(),
            2 => {
                let given = SetAttributes { uid: Some(owner ^ 1), gid: Some(owner), ..Default::default() };
                volume.set_attributes(file, &given).unwrap();
            }
            3 => volume.unlink(dir, name.as_bytes()).unwrap(),
            4 => {
                let value = populate::noise(1, 900);
                volume.set_xattr(file, b"user.of-a-block", &value, XattrMode::Set).unwrap();
                if number % 12 == 4 {
                    volume.remove_xattr(file, b"user.of-a-block").unwrap();
                }
            }
            _ => volume.rename((dir, name.as_bytes()), (dir, b"one"), RenameMode::Replace).unwrap(),
        }
    }
    let link = node(NodeKind::Symlink(vec![b'x'; 900]), 9, 9);
    volume.create(dir, b"link", &link).unwrap();
}

#[test]
fn new_owners_and_all_ways_to_spend_are_counted() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["quota", "quota_1k"] {
        let image = Image::make(named(kind), 64);
        for seed in 0..3 {
            let mut volume = open(&image);
            spend(&mut volume, seed);
            volume.sync().unwrap();
            drop(volume);
            image.assert_sound(&format!("{kind} after round {seed}"));
        }
        // Were e2fsck not to look, none of this would prove anything.
        let usage = run("debugfs", ["-R".as_ref(), "list_quota user".as_ref(), image.path().as_os_str()]);
        assert!(usage.lines().count() > 200, "{usage}");
        let request = "sif dir-0 uid 4242";
        run("debugfs", ["-w".as_ref(), "-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
        let complaints = image.complaints().unwrap();
        assert!(complaints.contains("quota"), "{complaints}");
    }
}

fn give_away(top: &Path) {
    for (number, entry) in (0..).zip(std::fs::read_dir(top.join("files")).unwrap()) {
        chown(entry.unwrap().path(), Some(1000 + number), Some(number % 3)).unwrap();
    }
    for (number, entry) in (0..).zip(std::fs::read_dir(top.join("specials")).unwrap()) {
        lchown(entry.unwrap().path(), Some(70_000 * number), Some(500)).unwrap();
    }
}

/// The kernel here may not be built to write to such volumes: it fills one without quota, tune2fs counts.
#[test]
fn what_the_kernel_made_and_tune2fs_counted_is_kept() {
    need!("mke2fs", "e2fsck", "tune2fs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    let image = Image::make(named("default"), 64);
    {
        let mount = Mount::new(image.path(), "noatime");
        populate::everything(mount.path(), 300);
        give_away(mount.path());
    }
    let counted = ["-O", "project,quota", "-Q", "usrquota,grpquota,prjquota"].map(AsRef::as_ref);
    run("tune2fs", counted.into_iter().chain([image.path().as_os_str()]));
    let mut volume = open(&image);
    spend(&mut volume, 5);
    let root = volume.root();
    let files = volume.lookup(root, b"files").unwrap();
    let mut names = Vec::new();
    let mut list = |entry: vmwright_vfs::DirEntry| {
        names.push(entry.name);
        std::ops::ControlFlow::Continue(())
    };
    volume.read_dir(files, &mut list).unwrap();
    for name in names {
        volume.unlink(files, &name).unwrap();
    }
    volume.rmdir(root, b"files").unwrap();
    volume.sync().unwrap();
    drop(volume);
    image.assert_sound("after our changes");
}

#[test]
fn orphans_are_given_back_to_their_owners() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("quota"), 32);
    let mut volume = open(&image);
    spend(&mut volume, 1);
    let root = volume.root();
    for name in ["gone", "shorter"] {
        let file = volume.create(root, name.as_bytes(), &node(NodeKind::Regular, 31_337, 5)).unwrap();
        volume.write_at(file, &populate::noise(1, 300_000), 0).unwrap();
    }
    let numbers = ["gone", "shorter"].map(|name| volume.lookup(root, name.as_bytes()).unwrap().0);
    volume.sync().unwrap();
    drop(volume);
    let [gone, shorter] = numbers;
    for request in [
        "unlink gone".to_owned(),
        format!("sif <{gone}> links_count 0"),
        format!("sif <{gone}> dtime {shorter}"),
        format!("sif <{shorter}> size 100000"),
        format!("ssv last_orphan {gone}"),
    ] {
        run("debugfs", ["-w".as_ref(), "-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
    }
    drop(Ext4::open(image.disk(false), Options::writable()).unwrap());
    image.assert_sound("after the orphans");
}

#[test]
fn a_full_volume_takes_no_new_owner_and_stays_sound() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("quota_1k"), 8);
    let mut volume = open(&image);
    let root = volume.root();
    let file = volume.create(root, b"large", &node(NodeKind::Regular, 1, 1)).unwrap();
    let mut size = 0;
    for step in [1 << 16, 1 << 10] {
        while volume.write_at(file, &populate::noise(size, step), size).is_ok() {
            size += step as u64;
        }
    }
    volume.sync().unwrap();
    let before = volume.metadata(file).unwrap();
    for owner in (1..200).map(|number| number * 0x0100_0001) {
        let given = SetAttributes { uid: Some(owner), ..Default::default() };
        if let Err(error) = volume.set_attributes(file, &given) {
            assert_eq!(error.kind(), vmwright_vfs::ErrorKind::NoSpace);
            let made = volume.create(root, b"another's", &node(NodeKind::Regular, owner, 1));
            assert_eq!(made.unwrap_err().kind(), vmwright_vfs::ErrorKind::NoSpace);
            volume.sync().unwrap();
            assert!(owner > 1, "the first has an entry");
            assert_eq!(volume.metadata(file).unwrap().size, before.size);
            drop(volume);
            image.assert_sound("when it is full");
            return;
        }
    }
    panic!("the quota file grew without end");
}

#[test]
fn random_operations_leave_exact_counts() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["quota", "quota_1k"] {
        let config = Config {
            cases: 3 * effort(),
            max_shrink_iters: 60,
            failure_persistence: None,
            ..Config::default()
        };
        let words = prop::collection::vec(any::<[u32; 4]>(), 20..300);
        let outcome = TestRunner::new(config).run(&words, |words| {
            agrees_with_the_model(named(kind), 24, &words);
            Ok(())
        });
        outcome.unwrap();
    }
}

#[test]
fn a_quota_file_of_another_format_is_refused() {
    need!("mke2fs", "debugfs");
    let image = Image::make(named("quota"), 32);
    let blocks = run("debugfs", ["-R".as_ref(), "blocks <3>".as_ref(), image.path().as_os_str()]);
    let first: u64 = blocks.split_whitespace().next().unwrap().parse().unwrap();
    image.disk(false).write_at(&[0; 4], first * 4096 + 4).unwrap();
    let error = Ext4::open(image.disk(false), Options::writable()).unwrap_err();
    assert_eq!(error.kind(), vmwright_ext4::ErrorKind::Unsupported);
    assert!(error.to_string().contains("users' quota file"), "{error}");
    image.open();
}
