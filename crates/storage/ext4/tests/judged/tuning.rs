//! Each change held against what tune2fs makes of a copy.

use std::process::Command;

use uuid::Uuid;
use vmwright_ext4::tune::{self, Changes, OnErrors, Reserved, Tuned};
use vmwright_ext4::{ErrorKind, Result};
use vmwright_judges::{Mount, can_mount, need, output, skip};

use crate::images::{Image, named};
use crate::{populate, tree};

fn tuned(image: &Image, changes: &Changes) -> Result<Tuned> {
    tune::tune(image.disk(false), changes)
}

fn features(edits: &str) -> Changes {
    Changes { features: edits.split(',').map(str::to_owned).collect(), ..Changes::default() }
}

/// What dumpe2fs says, short of times and of what differs with each run.
fn said(image: &Image) -> Vec<String> {
    const LEFT_OUT: [&str; 10] = [
        "Last write",
        "Lifetime",
        "Checksum:",
        "Overhead",
        "Journal sequence",
        "Directory Hash Seed",
        "Last checked",
        "Free blocks",
        "Journal checksum",
        "    mmp_",
    ];
    let output = output("dumpe2fs", ["-h".as_ref(), image.path().as_os_str()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter(|line| !LEFT_OUT.iter().any(|word| line.starts_with(word)));
    lines.map(str::to_owned).collect()
}

fn tune2fs(image: &Image, args: &[&str]) {
    // It asks whether one is sure.
    let script = "yes | tune2fs -f \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "tune2fs"]).args(args).arg(image.path());
    assert!(command.output().unwrap().status.success(), "{args:?}");
    if args.contains(&"-O") {
        // What it leaves to e2fsck; that would reset the count of mounts too.
        output("e2fsck", ["-fy".as_ref(), image.path().as_os_str()]);
    }
}

fn assert_as_tune2fs(kind: &str, changes: &Changes, args: &[&str]) {
    let ours = Image::make(named(kind), 40);
    let theirs = ours.copy();
    tuned(&ours, changes).unwrap_or_else(|error| panic!("{kind} {args:?}: {error}"));
    ours.assert_sound(&format!("{args:?}"));
    tune2fs(&theirs, args);
    assert_eq!(said(&ours), said(&theirs), "{kind} {args:?}");
}

#[test]
fn features_change_as_with_tune2fs() {
    need!("mke2fs", "e2fsck", "debugfs", "dumpe2fs", "tune2fs");
    for (kind, edits) in [
        ("default", "^has_journal"),
        ("1k", "^has_journal"),
        ("no_journal", "has_journal"),
        ("default", "orphan_file"),
        ("orphan_file", "^orphan_file"),
        ("default", "^resize_inode"),
        ("ext2_1k", "^resize_inode"),
        ("default", "^metadata_csum"),
        ("uninit", "metadata_csum"),
        ("plain", "metadata_csum"),
        ("plain", "uninit_bg"),
        ("uninit", "^uninit_bg"),
        ("default", "metadata_csum_seed"),
        ("default", "^dir_index"),
        ("no_index", "dir_index"),
        ("default", "large_dir"),
        ("default", "ea_inode"),
        ("default", "casefold"),
        ("default", "^huge_file,^dir_nlink"),
        ("ext2", "extent"),
        ("ext3", "extent,flex_bg,uninit_bg,dir_nlink"),
        ("default", "mmp"),
        ("mmp", "^mmp"),
    ] {
        assert_as_tune2fs(kind, &features(edits), &["-O", edits]);
    }
}

#[test]
fn fields_change_as_with_tune2fs() {
    need!("mke2fs", "e2fsck", "debugfs", "dumpe2fs", "tune2fs");
    let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let id = "6f2c0d1e-3b4a-4c5d-8e6f-708192a3b4c5";
    let changes = Changes {
        label: Some(b"a label".to_vec()),
        uuid: Some(Uuid::parse_str(id).unwrap()),
        reserved: Some(Reserved::Percent(2.5)),
        reserved_uid: Some(5),
        reserved_gid: Some(6),
        mount_options: words("^user_xattr,discard,journal_data_ordered"),
        on_errors: Some(OnErrors::ReadOnly),
        max_mount_count: Some(30),
        mount_count: Some(7),
        check_interval: Some(86_400 * 30),
        last_mounted: Some(b"/srv".to_vec()),
        ..Changes::default()
    };
    let options = "^user_xattr,discard,journal_data_ordered";
    let args =
        ["-L", "a label", "-U", id, "-m", "2.5", "-u", "5", "-g", "6", "-o", options, "-e", "remount-ro"];
    let more = ["-c", "30", "-C", "7", "-i", "30d", "-M", "/srv"];
    let args: Vec<&str> = args.into_iter().chain(more).collect();
    for kind in ["default", "seed", "uninit", "ext2", "orphan_file"] {
        assert_as_tune2fs(kind, &changes, &args);
    }
    // There tune2fs leaves a block that dumpe2fs cannot read.
    let image = Image::make(named("mmp"), 40);
    tuned(&image, &changes).unwrap();
    image.assert_sound("mmp");
}

#[test]
fn content_stays_whatever_its_checksums_become() {
    need!("mke2fs", "e2fsck", "debugfs", "tune2fs");
    if !can_mount() {
        skip!("volumes are filled by the kernel");
    }
    let seed = Uuid::from_bytes([7; 16]);
    let again = Changes { uuid: Some(seed), ..Changes::default() };
    let wide = |size| Changes { inode_size: Some(size), ..Changes::default() };
    for (kind, steps) in [
        ("default", vec![again.clone(), features("^metadata_csum,^uninit_bg"), features("metadata_csum")]),
        ("1k", vec![features("^metadata_csum"), features("metadata_csum"), wide(512)]),
        ("plain", vec![features("metadata_csum"), again.clone(), wide(512)]),
        ("small_inodes", vec![wide(256), features("^has_journal,^resize_inode")]),
        ("ext2_1k", vec![features("has_journal,metadata_csum"), features("^dir_index")]),
        ("inline", vec![again]),
    ] {
        let image = Image::make(named(kind), 100);
        let mount = Mount::new(image.path(), "noatime");
        // Names whose entries leave no room at the ends of their blocks.
        populate::everything(mount.path(), 1500);
        drop(mount);
        let before = tree::of_kernel(Mount::new(image.path(), "ro,noatime").path());
        for changes in steps {
            let when = format!("{kind}: {changes:?}");
            tuned(&image, &changes).unwrap_or_else(|error| panic!("{when}: {error}"));
            image.assert_sound(&when);
            let after = tree::of_kernel(Mount::new(image.path(), "ro,noatime").path());
            let (mut before, mut after) = (before.clone(), after);
            // A directory may need one block more.
            for tree in [&mut before, &mut after] {
                tree.values_mut().for_each(|node| node.allocated = 0);
                let directories =
                    tree.values_mut().filter(|node| node.file_type == vmwright_vfs::FileType::Directory);
                directories.for_each(|node| node.size = 0);
            }
            tree::assert_equal(&after, &before, &when);
        }
    }
}

#[test]
fn what_is_not_possible_is_refused_before_anything_changes() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("default"), 40);
    let before = std::fs::read(image.path()).unwrap();
    let label = Changes { label: Some(vec![b'x'; 17]), ..Changes::default() };
    let reserve = Changes { reserved: Some(Reserved::Percent(51.0)), ..Changes::default() };
    let narrow = Changes { inode_size: Some(128), ..Changes::default() };
    for (changes, kind) in [
        (features("^extent"), ErrorKind::Unsupported),
        (features("inline_data"), ErrorKind::Unsupported),
        (features("no_such_feature"), ErrorKind::InvalidInput),
        (features("^has_journal,orphan_file"), ErrorKind::Unsupported),
        (features("^flex_bg,^metadata_csum,metadata_csum_seed"), ErrorKind::Unsupported),
        (label, ErrorKind::InvalidInput),
        (reserve, ErrorKind::InvalidInput),
        (narrow, ErrorKind::InvalidInput),
    ] {
        assert_eq!(tuned(&image, &changes).unwrap_err().kind(), kind, "{changes:?}");
        assert!(before == std::fs::read(image.path()).unwrap(), "{changes:?}");
    }
}
