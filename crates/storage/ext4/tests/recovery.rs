//! Volumes that a kernel left in the middle of its work, judged by the kernel and e2fsck.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_disk::HostFile;
use vmwright_ext4::{Ext4, Options};
use vmwright_judges::{Mount, can_mount, need, output, run, skip};
use vmwright_vfs::{FileSystem, InodeNumber, NewNode, NodeKind, Timestamp};

const MATRIX: [&[&str]; 6] = [
    &["-t", "ext4"],
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext3"],
    &["-t", "ext4", "-O", "^64bit"],
    &["-t", "ext4", "-O", "orphan_file,metadata_csum_seed"],
    &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"],
];

fn e2fsck(path: &Path) {
    let output = output("e2fsck", ["-fn".as_ref(), path.as_os_str()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

fn make(dir: &Path, options: &[&str]) -> PathBuf {
    let path = dir.join("image");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    run("mke2fs", [&["-q", "-F"], options, &[path.to_str().unwrap()]].concat());
    path
}

/// Lets the kernel work and copies the volume while it is mounted, with an unlinked file still open.
fn crashed(image: &Path, copy: &Path) {
    let mount = Mount::new(image, "rw,commit=1");
    let at = |name: &str| mount.path().join(name);
    std::fs::create_dir(at("dir")).unwrap();
    for i in 0..300 {
        std::fs::write(at(&format!("dir/file {i}")), format!("content {i}").repeat(100)).unwrap();
    }
    run("sync", ["-f".as_ref(), mount.path().as_os_str()]);
    for i in 0..200 {
        std::fs::remove_file(at(&format!("dir/file {i}"))).unwrap();
    }
    std::fs::rename(at("dir/file 250"), at("moved")).unwrap();
    let mut open = std::fs::File::create(at("orphan")).unwrap();
    open.write_all(&[7; 500_000]).unwrap();
    open.sync_all().unwrap();
    std::fs::remove_file(at("orphan")).unwrap();
    // Only the journal is made durable; what it says is not yet in its place.
    std::fs::File::create(at("last")).unwrap().sync_all().unwrap();
    std::fs::copy(image, copy).unwrap();
    drop(open);
}

fn content(volume: &Ext4, inode: InodeNumber) -> Vec<u8> {
    let mut bytes = vec![0; volume.metadata(inode).unwrap().size as usize];
    volume.read_at(inode, &mut bytes, 0).unwrap();
    bytes
}

fn look(volume: &Ext4) {
    let root = volume.root();
    let dir = volume.lookup(root, b"dir").unwrap();
    assert!(volume.lookup(dir, b"file 7").is_err());
    assert!(volume.lookup(dir, b"file 250").is_err());
    assert!(volume.lookup(root, b"orphan").is_err());
    let moved = volume.lookup(root, b"moved").unwrap();
    assert_eq!(content(volume, moved), "content 250".repeat(100).as_bytes());
    let file = volume.lookup(dir, b"file 299").unwrap();
    assert_eq!(content(volume, file), "content 299".repeat(100).as_bytes());
}

#[test]
fn what_a_crash_left_is_seen_finished_and_mounted_again() {
    need!("mke2fs", "e2fsck", "sync");
    if !can_mount() {
        skip!("mounting is not possible");
    }
    for options in MATRIX {
        eprintln!("{options:?}");
        let dir = tempfile::tempdir().unwrap();
        let image = make(dir.path(), options);
        let copy = dir.path().join("copy");
        crashed(&image, &copy);
        let before = std::fs::read(&copy).unwrap();
        let flags = run("dumpe2fs", ["-h".as_ref(), copy.as_os_str()]);
        assert!(flags.contains("needs_recovery"), "the copy is not of a mounted volume");
        {
            let disk = Arc::new(HostFile::open(&copy, true).unwrap());
            look(&Ext4::open(disk, Options::default()).unwrap());
        }
        assert!(std::fs::read(&copy).unwrap() == before, "reading changed the disk");
        edit(&copy, b"ours", look);
        e2fsck(&copy);
        {
            let mount = Mount::new(&copy, "rw");
            assert_eq!(std::fs::read(mount.path().join("ours")).unwrap(), b"edited");
            std::fs::write(mount.path().join("theirs"), "kernel").unwrap();
            std::fs::remove_dir_all(mount.path().join("dir")).unwrap();
        }
        edit(&copy, b"ours again", |volume| {
            let theirs = volume.lookup(volume.root(), b"theirs").unwrap();
            assert_eq!(content(volume, theirs), b"kernel");
        });
        e2fsck(&copy);
        let mount = Mount::new(&copy, "rw");
        assert_eq!(std::fs::read(mount.path().join("ours again")).unwrap(), b"edited");
        assert_eq!(std::fs::read(mount.path().join("theirs")).unwrap(), b"kernel");
    }
}

fn edit(path: &Path, name: &[u8], look: impl Fn(&Ext4)) {
    let disk = Arc::new(HostFile::open(path, false).unwrap());
    let mut volume = Ext4::open(disk, Options::writable()).unwrap();
    volume.set_now(Timestamp { seconds: 1_790_000_000, nanoseconds: 0 });
    look(&volume);
    let node = NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 0, gid: 0 };
    let inode = volume.create(volume.root(), name, &node).unwrap();
    volume.write_at(inode, b"edited", 0).unwrap();
    volume.sync().unwrap();
}

/// Lets the kernel make each change durable by a fast commit of its own, and copies the volume.
fn crashed_after_fast_commits(image: &Path, copy: &Path) {
    let mount = Mount::new(image, "rw,commit=100");
    let at = |name: &str| mount.path().join(name);
    let sync = |name: &str| std::fs::File::open(at(name)).unwrap().sync_all().unwrap();
    std::fs::write(at("old"), [1; 5000]).unwrap();
    std::fs::write(at("gone"), [2; 9000]).unwrap();
    run("sync", ["-f".as_ref(), mount.path().as_os_str()]);
    std::fs::write(at("new"), [3; 9000]).unwrap();
    sync("new");
    let mut old = std::fs::File::options().append(true).open(at("old")).unwrap();
    old.write_all(&[4; 70_000]).unwrap();
    old.sync_all().unwrap();
    std::fs::hard_link(at("old"), at("linked")).unwrap();
    sync("old");
    std::fs::File::options().write(true).open(at("new")).unwrap().set_len(3000).unwrap();
    sync("new");
    std::fs::remove_file(at("gone")).unwrap();
    std::fs::create_dir(at("dir")).unwrap();
    std::fs::write(at("dir/inside"), [5; 6000]).unwrap();
    sync("dir/inside");
    std::fs::copy(image, copy).unwrap();
}

/// What the journal's superblock says of the next transaction's number.
fn journal_sequence(path: &Path) -> u32 {
    let told = run("dumpe2fs", ["-h".as_ref(), path.as_os_str()]);
    let line = told.lines().find_map(|line| line.strip_prefix("Journal sequence:")).unwrap();
    u32::from_str_radix(line.trim().trim_start_matches("0x"), 16).unwrap()
}

#[test]
fn a_journal_that_counts_no_more_keeps_its_numbers_for_itself() {
    need!("mke2fs", "debugfs", "dumpe2fs", "sync");
    if !can_mount() {
        skip!("mounting is not possible");
    }
    let dir = tempfile::tempdir().unwrap();
    let image = make(dir.path(), &["-t", "ext4"]);
    let (replayed, dropped) = (dir.path().join("replayed"), dir.path().join("dropped"));
    crashed(&image, &replayed);
    std::fs::copy(&replayed, &dropped).unwrap();
    run("debugfs", ["-w", "-R", "feature -needs_recovery", dropped.to_str().unwrap()]);
    for path in [&replayed, &dropped] {
        Ext4::open(Arc::new(HostFile::open(path, false).unwrap()), Options::writable()).unwrap();
    }
    // Else what is still in the log could pass for the continuation of a transaction to come.
    let (dropped, replayed) = (journal_sequence(&dropped), journal_sequence(&replayed));
    assert!(dropped >= replayed, "{dropped} is still in the log, which ends before {replayed}");
}

#[test]
fn fast_commits_are_seen_and_finished() {
    need!("mke2fs", "e2fsck", "sync");
    if !can_mount() {
        skip!("mounting is not possible");
    }
    let dir = tempfile::tempdir().unwrap();
    let image = make(dir.path(), &["-t", "ext4", "-O", "fast_commit", "-J", "size=8"]);
    let copy = dir.path().join("copy");
    crashed_after_fast_commits(&image, &copy);
    let look = |volume: &Ext4| {
        let root = volume.root();
        let read = |dir, name: &[u8]| content(volume, volume.lookup(dir, name).unwrap());
        let old = [vec![1; 5000], vec![4; 70_000]].concat();
        assert!(read(root, b"old") == old && read(root, b"linked") == old);
        assert!(read(root, b"new") == [3; 3000]);
        assert!(volume.lookup(root, b"gone").is_err());
        let dir = volume.lookup(root, b"dir").unwrap();
        assert!(read(dir, b"inside") == [5; 6000]);
        assert_eq!(volume.metadata(dir).unwrap().links, 2);
        assert_eq!(volume.metadata(volume.lookup(root, b"old").unwrap()).unwrap().links, 2);
    };
    let before = std::fs::read(&copy).unwrap();
    {
        let disk = Arc::new(HostFile::open(&copy, true).unwrap());
        look(&Ext4::open(disk, Options::default()).unwrap());
    }
    assert!(std::fs::read(&copy).unwrap() == before, "reading changed the disk");
    edit(&copy, b"ours", look);
    e2fsck(&copy);
    let mount = Mount::new(&copy, "rw");
    assert_eq!(std::fs::read(mount.path().join("ours")).unwrap(), b"edited");
    assert_eq!(std::fs::read(mount.path().join("dir/inside")).unwrap(), [5; 6000]);
}
