//! Volumes that became larger and smaller: e2fsck finds them sound, the kernel finds the same tree, and resize2fs goes on.

use std::fs::File;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vmwright_ext4::resize::{self, Options, Resized, Target};
use vmwright_ext4::{ErrorKind, Result};
use vmwright_judges::{Mount, can_mount, need, output, run, skip};
use vmwright_vfs::FileSystem;

use crate::images::{Image, Kind, named};
use crate::random::effort;
use crate::tree::{self, Tree};
use crate::{populate, writing};

const MIB: u64 = 1 << 20;

/// One of every way in which descriptors, copies, maps, checksums and files of the filesystem itself are kept.
const KINDS: [&str; 9] =
    ["default", "1k", "ext2_1k", "plain", "no_flex", "orphan_file", "bigalloc_1k", "meta_bg_uninit", "mmp"];

/// More of them, for those who have the time.
const MORE_KINDS: [&str; 8] =
    ["2k", "ext3", "32bit", "inline", "ea_inode", "uninit", "small_inodes", "bigalloc"];

fn resized(image: &Image, to: Target) -> Result<Resized> {
    resize::resize(image.disk(false), to, &Options::default())
}

fn lengthen(image: &Image, mebibytes: u64) {
    File::options().write(true).open(image.path()).unwrap().set_len(mebibytes * MIB).unwrap();
}

/// The tree without what a resize may change: inode numbers, and how many blocks maps take.
fn lasting(mut tree: Tree) -> Tree {
    for node in tree.values_mut() {
        (node.inode, node.allocated) = (0, 0);
    }
    tree
}

fn tree_of(image: &Image) -> Tree {
    lasting(tree::of_kernel(Mount::new(image.path(), "ro,noatime").path()))
}

/// A volume of many groups with content in all of them, holes in between.
fn filled(kind: &Kind, mebibytes: u64) -> Image {
    let image = Image::make(kind, mebibytes);
    let mount = Mount::new(image.path(), "noatime");
    for part in 0..8 {
        let top = mount.path().join(format!("part-{part}"));
        std::fs::create_dir(&top).unwrap();
        for file in 0..40_u64 {
            let len = [0, 700, 5000, 40_000, 150_000][file as usize % 5];
            std::fs::write(top.join(format!("file-{file}")), populate::noise(file, len)).unwrap();
        }
    }
    let top = mount.path().join("everything");
    std::fs::create_dir(&top).unwrap();
    populate::everything(&top, 300);
    for part in [1, 4] {
        std::fs::remove_dir_all(mount.path().join(format!("part-{part}"))).unwrap();
    }
    drop(mount);
    image
}

#[test]
fn volumes_of_every_kind_grow_and_shrink_and_keep_their_trees() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("volumes are filled by the kernel");
    }
    let more: &[&str] = if effort() > 1 { &MORE_KINDS } else { &[] };
    for name in KINDS.iter().chain(more).copied() {
        let image = filled(named(name), 96);
        let before = tree_of(&image);
        lengthen(&image, 1100);
        for to in [
            Target::Bytes(100 * MIB),
            Target::Disk,
            Target::Bytes(70 * MIB),
            Target::Minimum,
            Target::Bytes(130 * MIB),
        ] {
            let when = format!("{name} to {to:?}");
            resized(&image, to).unwrap_or_else(|error| panic!("{when}: {error}"));
            image.assert_sound(&when);
            tree::assert_equal(&lasting(tree::of_ours(&image.open())), &before, &when);
        }
        tree::assert_equal(&tree_of(&image), &before, name);
        let mount = Mount::new(image.path(), "noatime");
        std::fs::write(mount.path().join("more"), populate::noise(1, 20_000_000)).unwrap();
        drop(mount);
        image.assert_sound(&format!("{name} written by the kernel"));
    }
}

#[test]
fn inodes_at_the_end_get_other_numbers_and_their_names_follow() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("volumes are filled by the kernel");
    }
    let mut moved = 0;
    for name in ["ext2_1k", "inline", "ea_inode_1k", "meta_bg_1k"] {
        let image = filled(named(name), 96);
        let before = tree_of(&image);
        let done = resized(&image, Target::Minimum).unwrap();
        moved += done.moved_inodes;
        image.assert_sound(name);
        tree::assert_equal(&tree_of(&image), &before, name);
    }
    assert!(moved > 0);
}

#[test]
fn below_the_minimum_is_refused_with_the_number_and_changes_nothing() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("1k"), 64);
    let least = resize::minimum(image.disk(true)).unwrap();
    assert!(least < 20 * MIB, "{least}");
    let before = std::fs::read(image.path()).unwrap();
    let error = resized(&image, Target::Bytes(least - MIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains(&least.to_string()), "{error}");
    let error = resized(&image, Target::Bytes(65 * MIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(before == std::fs::read(image.path()).unwrap());
    assert_eq!(resized(&image, Target::Bytes(least)).unwrap().new_bytes(), least);
    image.assert_sound("at its minimum");
}

#[test]
fn resize2fs_goes_on_with_what_we_resized_and_we_with_what_it_did() {
    need!("mke2fs", "e2fsck", "debugfs", "resize2fs");
    let theirs = |image: &Image, args: &[&str]| {
        let all = ["-f".as_ref(), image.path().as_os_str()].into_iter();
        run("resize2fs", all.chain(args.iter().map(std::ffi::OsStr::new)));
        image.assert_sound(&format!("after resize2fs {args:?}"));
    };
    for name in ["1k", "ext2_1k", "no_flex"] {
        let image = Image::make(named(name), 64);
        lengthen(&image, 900);
        resized(&image, Target::Bytes(300 * MIB)).unwrap();
        image.assert_sound(name);
        theirs(&image, &["600M"]);
        resized(&image, Target::Disk).unwrap();
        image.assert_sound(name);
        theirs(&image, &["-M"]);
        // It cuts the file as well.
        lengthen(&image, 900);
        resized(&image, Target::Bytes(200 * MIB)).unwrap();
        image.assert_sound(name);
        resized(&image, Target::Minimum).unwrap();
        image.assert_sound(name);
        theirs(&image, &["100M"]);
    }
}

#[test]
fn descriptors_go_into_the_groups_when_no_block_is_kept_for_them() {
    need!("mke2fs", "e2fsck", "debugfs", "dumpe2fs");
    let image = Image::make(named("ext2_1k"), 64);
    // Kept are 256 blocks of 32 descriptors: room for 64 GiB; without them for 256 MiB.
    run("tune2fs", ["-O".as_ref(), "^resize_inode".as_ref(), image.path().as_os_str()]);
    output("e2fsck", ["-fy".as_ref(), image.path().as_os_str()]);
    lengthen(&image, 700);
    resized(&image, Target::Disk).unwrap();
    image.assert_sound("with meta_bg");
    let said = output("dumpe2fs", ["-h".as_ref(), image.path().as_os_str()]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("meta_bg") && said.contains("First meta block group:   1"), "{said}");
    resized(&image, Target::Minimum).unwrap();
    image.assert_sound("small again");
}

#[test]
fn random_sizes_and_writes_leave_a_sound_volume() {
    need!("mke2fs", "e2fsck", "debugfs");
    for name in ["1k", "ext3", "uninit", "bigalloc_1k", "meta_bg_1k"] {
        let config =
            Config { cases: effort(), max_shrink_iters: 20, failure_persistence: None, ..Config::default() };
        let steps = prop::collection::vec((0_u64..4, any::<u64>()), 6..14);
        let outcome = TestRunner::new(config).run(&steps, |steps| {
            let image = Image::make(named(name), 40);
            lengthen(&image, 200);
            for (at, (what, number)) in steps.iter().enumerate() {
                let when = format!("{name} at {at} of {steps:?}");
                match what {
                    0 => drop(resized(&image, Target::Minimum).unwrap()),
                    1 | 2 => match resized(&image, Target::Bytes((10 + number % 190) * MIB)) {
                        Ok(_) => {}
                        Err(error) => assert_eq!(error.kind(), ErrorKind::NoSpace, "{when}: {error}"),
                    },
                    _ => write_some(&image, at, *number),
                }
                image.assert_sound(&when);
            }
            Ok(())
        });
        outcome.unwrap();
    }
}

/// Makes a directory of files, as far as there is room, and takes an earlier one's files away.
fn write_some(image: &Image, at: usize, number: u64) {
    let mut volume = writing::open(image);
    let root = volume.root();
    let Ok(dir) = volume.create(root, format!("dir-{at}").as_bytes(), &writing::directory()) else { return };
    for file in 0..number % 60 {
        let Ok(inode) = volume.create(dir, format!("file-{file}").as_bytes(), &writing::file()) else {
            break;
        };
        if volume.write_at(inode, &populate::noise(file, (number % 50_000) as usize), file * 3000).is_err() {
            break;
        }
    }
    if let Ok(old) = volume.lookup(root, format!("dir-{}", at / 2).as_bytes()) {
        for file in (0..60).step_by(2) {
            let _ = volume.unlink(old, format!("file-{file}").as_bytes());
        }
    }
    volume.sync().unwrap();
}
