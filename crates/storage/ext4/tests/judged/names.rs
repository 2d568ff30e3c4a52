//! Names: their limits, what renaming leaves behind, and directories that are not as we would make them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vmwright_ext4::Ext4;
use vmwright_judges::{Mount, can_mount, need, run, skip};
use vmwright_vfs::{ErrorKind, FileSystem, InodeNumber, NewNode, NodeKind, RenameMode, Timestamp};

use crate::images::{Image, named};
use crate::random::effort;
use crate::tree;
use crate::writing::{NOW, open};

fn create(volume: &mut Ext4, dir: InodeNumber, name: &str, kind: NodeKind) -> InodeNumber {
    volume.create(dir, name.as_bytes(), &NewNode { kind, mode: 0o755, uid: 0, gid: 0 }).unwrap()
}

fn debugfs(image: &Image, request: &str) {
    run("debugfs", ["-w".as_ref(), "-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
}

fn names(volume: &Ext4, dir: InodeNumber) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut push = |entry: vmwright_vfs::DirEntry| {
        names.push(entry.name);
        ControlFlow::Continue(())
    };
    volume.read_dir(dir, &mut push).unwrap();
    names.sort();
    names
}

/// Each path with what renaming may change, times only as to whether they are still the old ones.
fn marks(image: &Image) -> BTreeMap<Vec<u8>, (u64, u64, bool, bool, bool)> {
    let old = |time: (i64, i64)| time == (NOW.seconds, NOW.nanoseconds.into());
    let tree = tree::of_ours(&image.open()).into_iter();
    let tree = tree.filter(|(path, _)| !path.starts_with(b"/lost+found"));
    tree.map(|(path, node)| {
        (path, (node.inode, node.links, old(node.modified), old(node.changed), old(node.accessed)))
    })
    .collect()
}

#[test]
fn renaming_leaves_what_the_kernel_leaves() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    // The first two letters are what is moved and what is there: a directory, a file, a link of it, or nothing.
    let cases = [
        ("d-", "a/d", "b/new", RenameMode::NoReplace),
        ("d-", "a/d", "a/new", RenameMode::NoReplace),
        ("dd", "a/d", "b/empty", RenameMode::Replace),
        ("dd", "a/d", "a/empty", RenameMode::Replace),
        ("f-", "a/f", "b/new", RenameMode::Replace),
        ("ff", "a/f", "b/f", RenameMode::Replace),
        ("fl", "a/f", "b/linked", RenameMode::Replace),
        ("lf", "b/linked", "a/f", RenameMode::Replace),
        ("dd", "a/d", "b/d", RenameMode::Exchange),
        ("df", "a/d", "b/f", RenameMode::Exchange),
        ("fd", "a/f", "a/d", RenameMode::Exchange),
        ("ff", "a/f", "b/f", RenameMode::Exchange),
        ("ll", "a/one", "b/linked", RenameMode::Replace),
        ("dd", "a/d", "a/d/below", RenameMode::Replace),
        ("dd", "a/d/below", "a/d", RenameMode::Exchange),
        ("df", "a/d", "b/f", RenameMode::Replace),
        ("dd", "a/empty", "b/d", RenameMode::Replace),
        ("ff", "a/f", "b/f", RenameMode::NoReplace),
        ("f-", "a/f", "b/new", RenameMode::Exchange),
    ];
    for kind in ["default", "ext2_1k", "inline", "no_index"] {
        let image = Image::make(named(kind), 16);
        let mut volume = open(&image);
        let root = volume.root();
        for dir in ["a", "b"] {
            let dir = create(&mut volume, root, dir, NodeKind::Directory);
            let inner = create(&mut volume, dir, "d", NodeKind::Directory);
            create(&mut volume, inner, "below", NodeKind::Directory);
            create(&mut volume, dir, "empty", NodeKind::Directory);
            create(&mut volume, dir, "f", NodeKind::Regular);
            create(&mut volume, dir, "one", NodeKind::Regular);
        }
        let (a, b) = (volume.lookup(root, b"a").unwrap(), volume.lookup(root, b"b").unwrap());
        let one = volume.lookup(a, b"one").unwrap();
        volume.link(one, b, b"linked").unwrap();
        volume.sync().unwrap();
        drop(volume);
        for (number, (what, from, to, mode)) in cases.iter().enumerate() {
            let (ours, theirs) = (image.copy(), image.copy());
            let mut volume = open(&ours);
            volume.set_now(Timestamp { seconds: NOW.seconds + 1000, nanoseconds: 0 });
            let at = |volume: &Ext4, path: &str| {
                let (dir, name) = path.rsplit_once('/').unwrap();
                let dir = dir.split('/').fold(root, |at, name| volume.lookup(at, name.as_bytes()).unwrap());
                (dir, name.as_bytes().to_vec())
            };
            let ((from_dir, from_name), (to_dir, to_name)) = (at(&volume, from), at(&volume, to));
            let answer = volume.rename((from_dir, &from_name), (to_dir, &to_name), *mode);
            volume.sync().unwrap();
            drop(volume);
            ours.assert_sound(&format!("case {number}"));
            let flags = match mode {
                RenameMode::Replace => rustix::fs::RenameFlags::empty(),
                RenameMode::NoReplace => rustix::fs::RenameFlags::NOREPLACE,
                RenameMode::Exchange => rustix::fs::RenameFlags::EXCHANGE,
            };
            let kernels = {
                let mount = Mount::new(theirs.path(), "noatime");
                let [from, to] = [from, to].map(|path| mount.path().join(path));
                rustix::fs::renameat_with(rustix::fs::CWD, &from, rustix::fs::CWD, &to, flags)
            };
            let case =
                format!("{kind} case {number}: {what} {from} {to} {mode:?}: {answer:?}, kernel {kernels:?}");
            assert_eq!(answer.is_ok(), kernels.is_ok(), "{case}");
            assert_eq!(marks(&ours), marks(&theirs), "{case}");
        }
    }
}

#[test]
fn names_of_255_bytes_are_the_longest() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["1k", "ext2_1k", "inline_wide", "no_index"] {
        let image = Image::make(named(kind), 16);
        let mut volume = open(&image);
        let root = volume.root();
        let dir = create(&mut volume, root, &"d".repeat(255), NodeKind::Directory);
        let file = create(&mut volume, dir, "file", NodeKind::Regular);
        for number in 0..300 {
            volume.link(file, dir, format!("{number:0255}").as_bytes()).unwrap();
        }
        let error = volume.link(file, dir, &[b'x'; 256]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(names(&volume, dir).len(), 301);
        volume.sync().unwrap();
        image.assert_sound("with the longest names");
        for number in 0..300 {
            volume.unlink(dir, format!("{number:0255}").as_bytes()).unwrap();
        }
        volume.sync().unwrap();
        image.assert_sound("without them");
    }
}

#[test]
fn a_file_has_at_most_65000_names() {
    need!("mke2fs", "debugfs");
    let image = Image::make(named("default"), 8);
    let mut volume = open(&image);
    let root = volume.root();
    let file = create(&mut volume, root, "file", NodeKind::Regular);
    volume.sync().unwrap();
    drop(volume);
    debugfs(&image, &format!("sif <{}> links_count 64999", file.0));
    let mut volume = open(&image);
    volume.link(file, root, b"last").unwrap();
    assert_eq!(volume.metadata(file).unwrap().links, 65_000);
    let error = volume.link(file, root, b"too many").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(volume.lookup(root, b"too many").unwrap_err().kind(), ErrorKind::NotFound);
    volume.unlink(root, b"last").unwrap();
    assert_eq!(volume.metadata(file).unwrap().links, 64_999);
}

#[test]
fn beyond_65000_directories_are_no_longer_counted() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("1k"), 16);
    let mut volume = open(&image);
    let root = volume.root();
    let dir = create(&mut volume, root, "dir", NodeKind::Directory);
    for number in 0..60 {
        create(&mut volume, dir, &format!("a file with a name that takes room {number}"), NodeKind::Fifo);
    }
    volume.sync().unwrap();
    drop(volume);
    debugfs(&image, &format!("sif <{}> links_count 64999", dir.0));
    let mut volume = open(&image);
    for (name, links) in [("one", 65_000), ("two", 1), ("three", 1)] {
        create(&mut volume, dir, name, NodeKind::Directory);
        assert_eq!(volume.metadata(dir).unwrap().links, links);
    }
    volume.rmdir(dir, b"two").unwrap();
    assert_eq!(volume.metadata(dir).unwrap().links, 1, "what is not counted is not counted down");
}

/// The names that the kernel lists.
fn kernels_names(dir: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    names.sort();
    names
}

#[test]
fn holes_and_broken_indexes_are_read_as_the_kernel_reads_them() {
    need!("mke2fs", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    // What is damaged: a block taken away, or the index's information of its own length.
    for (kind, damage) in [("no_index", true), ("ext2_1k", false)] {
        let image = Image::make(named(kind), 16);
        let mut volume = open(&image);
        let root = volume.root();
        let dir = create(&mut volume, root, "dir", NodeKind::Directory);
        let file = create(&mut volume, dir, "file", NodeKind::Regular);
        for number in 0..300 {
            volume.link(file, dir, format!("{number:0100}").as_bytes()).unwrap();
        }
        volume.sync().unwrap();
        drop(volume);
        if damage {
            debugfs(&image, &format!("punch <{}> 2 3", dir.0));
        } else {
            let request = format!("bmap <{}> 0", dir.0);
            let told = run("debugfs", ["-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
            let block: usize = told.lines().last().unwrap().trim().parse().unwrap();
            let mut bytes = std::fs::read(image.path()).unwrap();
            bytes[block * 1024 + 29] = 9;
            std::fs::write(image.path(), bytes).unwrap();
        }
        let kernel = kernels_names(&Mount::new(image.path(), "ro,noatime").path().join("dir"));
        let mut volume = open(&image);
        assert_eq!(names(&volume, dir), kernel, "{kind}");
        for name in &kernel {
            assert_eq!(volume.lookup(dir, name).unwrap(), file);
        }
        assert_eq!(volume.lookup(dir, b"absent").unwrap_err().kind(), ErrorKind::NotFound);
        if !damage {
            let error = volume.link(file, dir, b"new").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "an index that is broken is not added to");
            assert_eq!(volume.unlink(dir, &kernel[0]).unwrap_err().kind(), ErrorKind::Corrupt);
            continue;
        }
        assert!(kernel.len() < 301 && kernel.len() > 200, "{}", kernel.len());
        for number in 0..40 {
            volume.link(file, dir, format!("new-{number:0100}").as_bytes()).unwrap();
        }
        volume.sync().unwrap();
        drop(volume);
        let kernel = kernels_names(&Mount::new(image.path(), "ro,noatime").path().join("dir"));
        assert_eq!(names(&image.open(), dir), kernel, "with the hole filled");
    }
}

#[test]
fn an_index_of_three_levels_is_the_kernels_too() {
    need!("mke2fs", "e2fsck", "debugfs");
    if effort() == 1 || !can_mount() {
        skip!("65,000 names of 255 bytes are for VMWRIGHT_TORTURE and a kernel that mounts");
    }
    let image = Image::make(named("large_dir"), 200);
    let mut volume = open(&image);
    let root = volume.root();
    let dir = create(&mut volume, root, "dir", NodeKind::Directory);
    let mut files = Vec::new();
    let name = |number: u32| format!("{number:0255}").into_bytes();
    let count = 130_000;
    for number in 0..count {
        if number % 64_000 == 0 {
            files.push(create(&mut volume, root, &format!("file-{number}"), NodeKind::Regular));
        }
        volume.link(files[number as usize / 64_000], dir, &name(number)).unwrap();
    }
    volume.sync().unwrap();
    drop(volume);
    let dump = run("debugfs", ["-R".as_ref(), "htree_dump dir".as_ref(), image.path().as_os_str()]);
    assert!(dump.contains("Indirect levels: 2"));
    image.assert_sound("with three levels");
    {
        let mount = Mount::new(image.path(), "noatime");
        assert_eq!(kernels_names(&mount.path().join("dir")).len(), count as usize);
        for number in (0..count).step_by(3) {
            let path = std::ffi::OsString::from(String::from_utf8(name(number)).unwrap());
            std::fs::remove_file(mount.path().join("dir").join(path)).unwrap();
        }
    }
    image.assert_sound("after the kernel removed a third");
    let mut volume = open(&image);
    for number in (0..count).filter(|number| number % 3 > 0) {
        volume.unlink(dir, &name(number)).unwrap();
    }
    volume.rmdir(root, b"dir").unwrap();
    volume.sync().unwrap();
    image.assert_sound("without them");
}

#[test]
fn more_than_65000_directories_are_one_link() {
    need!("mke2fs", "e2fsck", "debugfs");
    if effort() == 1 {
        skip!("65,100 directories are for VMWRIGHT_TORTURE");
    }
    let image = Image::make(named("1k"), 240);
    let mut volume = open(&image);
    let root = volume.root();
    let dir = create(&mut volume, root, "dir", NodeKind::Directory);
    for number in 0..65_100 {
        create(&mut volume, dir, &format!("{number}"), NodeKind::Directory);
    }
    assert_eq!(volume.metadata(dir).unwrap().links, 1);
    volume.sync().unwrap();
    image.assert_sound("with more directories than links");
    for number in 0..65_100 {
        volume.rmdir(dir, format!("{number}").as_bytes()).unwrap();
    }
    volume.rmdir(root, b"dir").unwrap();
    volume.sync().unwrap();
    image.assert_sound("without them");
}
