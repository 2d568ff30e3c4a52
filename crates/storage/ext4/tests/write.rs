//! Writing volumes that mke2fs made, judged by e2fsck.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_disk::{Disk, HostFile};
use vmwright_ext4::{ErrorKind, Ext4, Options};
use vmwright_judges::{need, output, run};
use vmwright_vfs::{
    DeviceNumber, FileSystem, FileType, InodeNumber, NewNode, NodeKind, RenameMode, SetAttributes, Timestamp,
    XattrMode,
};

/// Feature sets that behave differently when written.
const MATRIX: [&[&str]; 8] = [
    &["-t", "ext4"],
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext2"],
    &["-t", "ext2", "-b", "1024", "-O", "^dir_index"],
    &["-t", "ext3"],
    &["-t", "ext4", "-O", "^64bit"],
    &["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"],
    &["-t", "ext4", "-O", "^metadata_csum,uninit_bg", "-I", "128"],
];

struct Image {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Image {
    fn make(megabytes: u64, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::File::create(&path).unwrap().set_len(megabytes << 20).unwrap();
        let args = [&["-q", "-F"], options, &[path.to_str().unwrap()]].concat();
        run("mke2fs", args);
        Self { path, _dir: dir }
    }

    fn open(&self) -> Ext4 {
        let disk = Arc::new(HostFile::open(&self.path, false).unwrap());
        let mut volume = Ext4::open(disk, Options::writable()).unwrap();
        volume.set_now(Timestamp { seconds: 1_790_000_000, nanoseconds: 5 });
        volume
    }

    /// Syncs and lets e2fsck judge.
    fn check(&self, volume: &mut Ext4) {
        volume.sync().unwrap();
        e2fsck(&self.path);
    }
}

fn e2fsck(path: &Path) {
    let output = output("e2fsck", ["-fn".as_ref(), path.as_os_str()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

fn new(kind: NodeKind) -> NewNode {
    NewNode { kind, mode: 0o640, uid: 70_000, gid: 5 }
}

fn file(volume: &mut Ext4, dir: InodeNumber, name: &str, content: &[u8]) -> InodeNumber {
    let inode = volume.create(dir, name.as_bytes(), &new(NodeKind::Regular)).unwrap();
    volume.write_at(inode, content, 0).unwrap();
    inode
}

fn directory(volume: &mut Ext4, dir: InodeNumber, name: &str) -> InodeNumber {
    volume.create(dir, name.as_bytes(), &new(NodeKind::Directory)).unwrap()
}

fn content(volume: &Ext4, inode: InodeNumber) -> Vec<u8> {
    let mut bytes = vec![0; volume.metadata(inode).unwrap().size as usize];
    assert_eq!(volume.read_at(inode, &mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn names(volume: &Ext4, dir: InodeNumber) -> Vec<String> {
    let mut names = Vec::new();
    let mut visit = |entry: vmwright_vfs::DirEntry| {
        names.push(String::from_utf8(entry.name).unwrap());
        ControlFlow::Continue(())
    };
    volume.read_dir(dir, &mut visit).unwrap();
    names.sort();
    names
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

#[test]
fn every_kind_of_write_leaves_a_sound_volume() {
    need!("mke2fs", "e2fsck");
    for options in MATRIX {
        eprintln!("{options:?}");
        let image = Image::make(48, options);
        let mut volume = image.open();
        let root = volume.root();
        let small = file(&mut volume, root, "small", b"hello");
        image.check(&mut volume);
        let big = file(&mut volume, root, "big", &pattern(9_000_001, 1));
        image.check(&mut volume);
        let dir = directory(&mut volume, root, "dir");
        let below = directory(&mut volume, dir, "below");
        image.check(&mut volume);
        volume.create(dir, b"fast", &new(NodeKind::Symlink(b"../small".to_vec()))).unwrap();
        let slow = new(NodeKind::Symlink(vec![b'x'; 300]));
        let slow = volume.create(dir, b"slow", &slow).unwrap();
        assert_eq!(volume.read_link(slow).unwrap(), [b'x'; 300]);
        for (name, major, minor) in [("old", 4, 64), ("new", 300, 70_000)] {
            let device = DeviceNumber { major, minor };
            let node = volume.create(dir, name.as_bytes(), &new(NodeKind::BlockDevice(device))).unwrap();
            assert_eq!(volume.metadata(node).unwrap().device, device);
        }
        volume.create(dir, b"fifo", &new(NodeKind::Fifo)).unwrap();
        volume.create(dir, b"socket", &new(NodeKind::Socket)).unwrap();
        image.check(&mut volume);
        volume.link(small, below, b"another name").unwrap();
        assert_eq!(volume.metadata(small).unwrap().links, 2);
        volume.unlink(root, b"small").unwrap();
        image.check(&mut volume);
        volume.rename((below, b"another name"), (root, b"moved"), RenameMode::NoReplace).unwrap();
        volume.rename((dir, b"below"), (root, b"up"), RenameMode::Replace).unwrap();
        image.check(&mut volume);
        volume.rename((root, b"up"), (dir, b"fifo"), RenameMode::Exchange).unwrap();
        image.check(&mut volume);
        let error = volume.rename((root, b"dir"), (below, b"self"), RenameMode::Replace).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        volume.rename((root, b"moved"), (root, b"big"), RenameMode::Replace).unwrap();
        assert_eq!(content(&volume, small), b"hello");
        assert_eq!(volume.metadata(small).unwrap().links, 1);
        image.check(&mut volume);
        assert_eq!(volume.rmdir(root, b"dir").unwrap_err().kind(), ErrorKind::InvalidInput);
        volume.rmdir(dir, b"fifo").unwrap();
        let mut change =
            SetAttributes { mode: Some(0o4755), uid: Some(1), gid: Some(2), ..Default::default() };
        change.modified = Some(Timestamp { seconds: 5_000_000_000, nanoseconds: 7 });
        volume.set_attributes(small, &change).unwrap();
        image.check(&mut volume);
        let metadata = volume.metadata(small).unwrap();
        assert_eq!((metadata.mode, metadata.uid, metadata.gid), (0o4755, 1, 2));
        assert_eq!(names(&volume, root), ["big", "dir", "lost+found", "up"]);
        let _ = big;
        drop(volume);
        let volume = image.open();
        assert_eq!(names(&volume, root), ["big", "dir", "lost+found", "up"]);
        assert_eq!(volume.lookup(root, b"big").unwrap(), small);
        assert_eq!(volume.metadata(volume.lookup(root, b"up").unwrap()).unwrap().file_type, FileType::Fifo);
    }
}

#[test]
fn files_are_changed_in_every_way_and_read_back() {
    need!("mke2fs", "e2fsck");
    for options in MATRIX {
        eprintln!("{options:?}");
        let image = Image::make(48, options);
        let mut volume = image.open();
        let root = volume.root();
        let inode = file(&mut volume, root, "file", b"");
        let mut model = Vec::new();
        let write = |volume: &mut Ext4, model: &mut Vec<u8>, at: usize, data: &[u8]| {
            volume.write_at(inode, data, at as u64).unwrap();
            model.resize(model.len().max(at + data.len()), 0);
            model[at..at + data.len()].copy_from_slice(data);
        };
        write(&mut volume, &mut model, 0, &pattern(5000, 1));
        write(&mut volume, &mut model, 4990, &pattern(20_000, 2));
        write(&mut volume, &mut model, 3_000_017, &pattern(70_000, 3));
        image.check(&mut volume);
        assert!(content(&volume, inode) == model);
        // Pieces that never touch: one extent, or one pointer, each.
        for i in 0..400 {
            write(&mut volume, &mut model, 5_000_000 + i * 9000, &pattern(100, i as u32));
        }
        image.check(&mut volume);
        assert!(content(&volume, inode) == model);
        for (from, to) in
            [(100, 200), (4096, 8192), (3_000_000, 3_030_000), (5_000_000, 6_000_000), (8_000_001, 9_000_000)]
        {
            let to = model.len().min(to);
            volume.punch(inode, from as u64, (to - from) as u64).unwrap();
            model[from..to].fill(0);
            image.check(&mut volume);
            assert!(content(&volume, inode) == model, "{from} {to}");
        }
        for size in [8_000_000, 7_999_999, 9_000_000, 4_500, 100_000, 1, 0, 10] {
            volume.truncate(inode, size as u64).unwrap();
            model.resize(size, 0);
            image.check(&mut volume);
            assert!(content(&volume, inode) == model, "{size}");
        }
        let allocated = volume.metadata(inode).unwrap().allocated;
        assert_eq!(allocated, 0, "growing takes no space");
    }
}

#[test]
fn a_full_volume_says_so_and_stays_sound() {
    need!("mke2fs", "e2fsck");
    for options in MATRIX {
        eprintln!("{options:?}");
        let image = Image::make(16, options);
        let mut volume = image.open();
        let root = volume.root();
        let chunk = pattern(300_000, 9);
        let mut count = 0;
        'full: loop {
            let inode = match volume.create(root, format!("f{count}").as_bytes(), &new(NodeKind::Regular)) {
                Ok(inode) => inode,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace);
                    break;
                }
            };
            count += 1;
            for i in 0..5 {
                if let Err(error) = volume.write_at(inode, &chunk, i * 600_000) {
                    assert_eq!(error.kind(), ErrorKind::NoSpace);
                    break 'full;
                }
            }
        }
        image.check(&mut volume);
        // The last ones may not do for a piece of the file's map.
        assert!(volume.statfs().unwrap().free_blocks <= 8);
        while volume.create(root, format!("d{count}").as_bytes(), &new(NodeKind::Directory)).is_ok() {
            count += 1;
        }
        let error = volume.create(root, b"dir", &new(NodeKind::Directory)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        let mut tiny = 0;
        let error = loop {
            match volume.create(
                root,
                format!("an empty file with a long name {tiny}").as_bytes(),
                &new(NodeKind::Fifo),
            ) {
                Ok(_) => tiny += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        image.check(&mut volume);
        for i in 0..count {
            let _ = volume.rmdir(root, format!("d{i}").as_bytes());
            let _ = volume.unlink(root, format!("f{i}").as_bytes());
        }
        image.check(&mut volume);
        file(&mut volume, root, "room again", &chunk);
        image.check(&mut volume);
    }
}

#[test]
fn a_directory_of_twenty_thousand_names_is_made_and_emptied() {
    need!("mke2fs", "e2fsck");
    for options in [
        &["-t", "ext4", "-N", "30000"][..],
        &["-t", "ext4", "-N", "30000", "-b", "1024"],
        &["-t", "ext3", "-N", "30000"],
    ] {
        let image = Image::make(64, options);
        let mut volume = image.open();
        let root = volume.root();
        let dir = directory(&mut volume, root, "many");
        let name = |i: u32| format!("entry number {i} of many, with a name that takes room");
        for i in 0..20_000 {
            volume.create(dir, name(i).as_bytes(), &new(NodeKind::Regular)).unwrap();
        }
        image.check(&mut volume);
        for i in (0..20_000).step_by(7) {
            volume.lookup(dir, name(i).as_bytes()).unwrap();
        }
        assert_eq!(volume.lookup(dir, b"absent").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(names(&volume, dir).len(), 20_000);
        for i in 0..20_000 {
            volume.unlink(dir, name(i).as_bytes()).unwrap();
            if i == 9_999 {
                image.check(&mut volume);
            }
        }
        volume.rmdir(root, b"many").unwrap();
        image.check(&mut volume);
    }
}

#[test]
fn attributes_are_kept_in_inode_and_block() {
    need!("mke2fs", "e2fsck");
    for options in MATRIX {
        let image = Image::make(16, options);
        let mut volume = image.open();
        let root = volume.root();
        let inode = file(&mut volume, root, "file", b"x");
        volume.set_xattr(inode, b"user.small", b"value", XattrMode::Create).unwrap();
        image.check(&mut volume);
        volume.set_xattr(inode, b"security.large", &[7; 700], XattrMode::Set).unwrap();
        image.check(&mut volume);
        assert_eq!(volume.xattr(inode, b"security.large").unwrap(), [7; 700]);
        volume.set_xattr(inode, b"security.large", &[8; 10], XattrMode::Replace).unwrap();
        image.check(&mut volume);
        let error = volume.set_xattr(inode, b"user.huge", &[8; 10_000], XattrMode::Set).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        volume.remove_xattr(inode, b"security.large").unwrap();
        image.check(&mut volume);
        assert_eq!(volume.xattr_names(inode).unwrap(), [b"user.small"]);
        volume.set_xattr(inode, b"trusted.large", &[7; 700], XattrMode::Set).unwrap();
        volume.unlink(root, b"file").unwrap();
        image.check(&mut volume);
    }
}

#[test]
fn reading_writes_nothing() {
    need!("mke2fs");
    let image = Image::make(16, &["-t", "ext4"]);
    let before = std::fs::read(&image.path).unwrap();
    let mut volume = image.open();
    volume.read_dir(volume.root(), &mut |_| ControlFlow::Continue(())).unwrap();
    volume.sync().unwrap();
    drop(volume);
    assert!(std::fs::read(&image.path).unwrap() == before);
    let disk: Arc<dyn Disk> = Arc::new(HostFile::open(&image.path, true).unwrap());
    let mut volume = Ext4::open(disk, Options::default()).unwrap();
    let error = volume.create(volume.root(), b"x", &new(NodeKind::Fifo)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
}

#[test]
fn a_directory_with_as_many_directories_as_it_can_takes_no_more() {
    need!("mke2fs", "debugfs");
    let image = Image::make(16, &["-t", "ext4", "-O", "^dir_nlink"]);
    let mut volume = image.open();
    let root = volume.root();
    let full = directory(&mut volume, root, "full");
    file(&mut volume, full, "file", b"");
    directory(&mut volume, full, "inside");
    directory(&mut volume, root, "outside");
    volume.sync().unwrap();
    drop(volume);
    let count = format!("sif <{}> links_count 65000", full.0);
    run("debugfs", ["-w", "-R", &count, image.path.to_str().unwrap()]);
    let mut volume = image.open();
    let (outside, new_name) = ((root, &b"outside"[..]), (full, &b"new"[..]));
    for (to, mode) in [((full, &b"file"[..]), RenameMode::Exchange), (new_name, RenameMode::NoReplace)] {
        assert_eq!(volume.rename(outside, to, mode).unwrap_err().kind(), ErrorKind::NoSpace, "{mode:?}");
    }
    assert_eq!(
        volume.rename((full, b"file"), outside, RenameMode::Exchange).unwrap_err().kind(),
        ErrorKind::NoSpace
    );
    // One that takes another's place makes no more of them.
    volume.rename(outside, (full, b"inside"), RenameMode::Replace).unwrap();
    assert_eq!(volume.metadata(full).unwrap().links, 65_000);
    assert_eq!(volume.metadata(root).unwrap().links, 4, "its own two, lost+found and full");
}
