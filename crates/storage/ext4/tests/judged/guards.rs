//! What may not be changed, and states that kernels and tools leave volumes in.

use vmwright_disk::{Disk, HostFile};
use vmwright_ext4::{Ext4, Options};
use vmwright_judges::{Mount, can_mount, need, output, run, skip};
use vmwright_vfs::{
    ErrorKind, FileSystem, InodeNumber, NewNode, NodeKind, RenameMode, SetAttributes, XattrMode,
};

use crate::images::{Image, named};
use crate::populate;
use crate::writing::open;

const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;

fn file() -> NewNode {
    NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 0, gid: 0 }
}

fn directory() -> NewNode {
    NewNode { kind: NodeKind::Directory, mode: 0o755, uid: 0, gid: 0 }
}

fn debugfs(image: &Image, request: &str) {
    run("debugfs", ["-w".as_ref(), "-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
}

fn kind_of<T: std::fmt::Debug>(result: vmwright_vfs::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// Everything that could change a file or the names of a directory is refused.
fn all_refused(volume: &mut Ext4, target: InodeNumber) {
    let root = volume.root();
    let read_only = ErrorKind::ReadOnly;
    assert_eq!(kind_of(volume.truncate(target, 1)), read_only);
    assert_eq!(kind_of(volume.punch(target, 0, 10)), read_only);
    assert_eq!(kind_of(volume.write_at(target, b"x", 0)), read_only);
    let owner = SetAttributes { uid: Some(5), ..Default::default() };
    assert_eq!(kind_of(volume.set_attributes(target, &owner)), read_only);
    assert_eq!(kind_of(volume.set_xattr(target, b"user.a", b"b", XattrMode::Set)), read_only);
    assert_eq!(kind_of(volume.remove_xattr(target, b"user.a")), read_only);
    assert_eq!(kind_of(volume.unlink(root, b"target")), read_only);
    assert_eq!(kind_of(volume.link(target, root, b"again")), read_only);
    for mode in [RenameMode::Replace, RenameMode::Exchange] {
        assert_eq!(kind_of(volume.rename((root, b"target"), (root, b"other"), mode)), read_only);
        assert_eq!(kind_of(volume.rename((root, b"other"), (root, b"target"), mode)), read_only);
    }
}

#[test]
fn immutable_and_append_only_inodes_stay_as_they_are() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("default"), 16);
    let mut volume = open(&image);
    let root = volume.root();
    let target = volume.create(root, b"target", &file()).unwrap();
    volume.write_at(target, b"content", 0).unwrap();
    volume.create(root, b"other", &file()).unwrap();
    let dir = volume.create(root, b"dir", &directory()).unwrap();
    volume.create(dir, b"within", &file()).unwrap();
    for flag in [IMMUTABLE, APPEND] {
        for inode in [target, dir] {
            let flags = volume.inode_flags(inode).unwrap();
            volume.set_inode_flags(inode, flags | flag).unwrap();
        }
        all_refused(&mut volume, target);
        assert_eq!(volume.write_at(target, b"more", 7).is_ok(), flag == APPEND);
        assert_eq!(volume.create(dir, b"new", &file()).is_ok(), flag == APPEND);
        assert_eq!(kind_of(volume.unlink(dir, b"within")), ErrorKind::ReadOnly);
        assert_eq!(kind_of(volume.rmdir(root, b"dir")), ErrorKind::ReadOnly);
        let moved = volume.rename((dir, b"within"), (root, b"moved"), RenameMode::Replace);
        assert_eq!(kind_of(moved), ErrorKind::ReadOnly);
        for inode in [target, dir] {
            let flags = volume.inode_flags(inode).unwrap();
            volume.set_inode_flags(inode, flags & !flag).unwrap();
        }
    }
    let extents = volume.inode_flags(target).unwrap() ^ 0x8_0000;
    assert_eq!(volume.set_inode_flags(target, extents).unwrap_err().kind(), ErrorKind::InvalidInput);
    volume.unlink(root, b"target").unwrap();
    volume.unlink(dir, b"within").unwrap();
    volume.sync().unwrap();
    drop(volume);
    image.assert_sound("once all flags were cleared");
}

#[test]
fn flags_that_chattr_sets_are_those_that_we_see() {
    need!("mke2fs", "chattr", "e2fsck");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    let image = Image::make(named("default"), 16);
    {
        let mount = Mount::new(image.path(), "noatime");
        let path = mount.path().join("file");
        std::fs::write(&path, b"x").unwrap();
        run("chattr", ["+sSdA".as_ref(), path.as_os_str()]);
    }
    let mut volume = open(&image);
    let found = volume.lookup(volume.root(), b"file").unwrap();
    assert_eq!(volume.inode_flags(found).unwrap(), 0x1 | 0x8 | 0x40 | 0x80 | 0x8_0000);
    volume.set_inode_flags(found, 0x8_0000 | 0x80).unwrap();
    volume.sync().unwrap();
    drop(volume);
    let mount = Mount::new(image.path(), "ro,noatime");
    let listed = run("lsattr", [mount.path().join("file").as_os_str()]);
    assert!(listed.starts_with("-------A------e-----"), "{listed}");
}

#[test]
fn projects_are_inherited_and_their_directories_take_no_strangers() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("quota"), 16);
    let mut volume = open(&image);
    let root = volume.root();
    let dir = volume.create(root, b"dir", &directory()).unwrap();
    volume.create(root, b"stranger", &file()).unwrap();
    volume.set_project(dir, 77).unwrap();
    let flags = volume.inode_flags(dir).unwrap();
    volume.set_inode_flags(dir, flags | 0x2000_0000).unwrap();
    let within = volume.create(dir, b"within", &file()).unwrap();
    volume.write_at(within, &populate::noise(1, 50_000), 0).unwrap();
    let deeper = volume.create(dir, b"deeper", &directory()).unwrap();
    let deepest = volume.create(deeper, b"deepest", &file()).unwrap();
    for inode in [within, deeper, deepest] {
        assert_eq!(volume.project(inode).unwrap(), 77);
    }
    let stranger = volume.lookup(root, b"stranger").unwrap();
    assert_eq!(volume.project(stranger).unwrap(), 0);
    let moved = volume.rename((root, b"stranger"), (dir, b"in"), RenameMode::NoReplace);
    assert_eq!(kind_of(moved), ErrorKind::InvalidInput);
    assert_eq!(kind_of(volume.link(stranger, dir, b"in")), ErrorKind::InvalidInput);
    volume.set_project(stranger, 77).unwrap();
    volume.rename((root, b"stranger"), (dir, b"in"), RenameMode::NoReplace).unwrap();
    volume.sync().unwrap();
    drop(volume);
    image.assert_sound("after projects changed");
    let usage = run("debugfs", ["-R".as_ref(), "get_quota project 77".as_ref(), image.path().as_os_str()]);
    let numbers: Vec<_> = usage.lines().last().unwrap().split_whitespace().collect();
    assert_eq!((numbers[0], numbers[4]), ("77", "5"), "{usage}");
    let mut plain = open(&Image::make(named("default"), 16));
    let root = plain.root();
    assert_eq!(plain.set_project(root, 1).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn sealed_files_are_read_and_removed_but_not_changed() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("default"), 16);
    let mut volume = open(&image);
    let root = volume.root();
    let content = populate::noise(3, 200_000);
    let sealed = volume.create(root, b"sealed", &file()).unwrap();
    volume.write_at(sealed, &content, 0).unwrap();
    let free = volume.statfs().unwrap().free_blocks;
    volume.sync().unwrap();
    drop(volume);
    // What lies beyond the size stands for the tree of hashes and the descriptor.
    debugfs(&image, "sif sealed size 5000");
    debugfs(&image, "sif sealed flags 0x180000");
    debugfs(&image, "feature verity");
    image.assert_sound("once it was sealed");
    let mut volume = open(&image);
    let mut read = vec![0; 10_000];
    assert_eq!(volume.read_at(sealed, &mut read, 0).unwrap(), 5000);
    assert!(read[..5000] == content[..5000]);
    for refused in [
        volume.write_at(sealed, b"x", 0),
        volume.write_at(sealed, b"x", 5000),
        volume.truncate(sealed, 0),
        volume.punch(sealed, 0, 4096),
        volume.allocate(sealed, 0, 4096, false),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    let owner = SetAttributes { uid: Some(5), ..Default::default() };
    volume.set_attributes(sealed, &owner).unwrap();
    volume.rename((root, b"sealed"), (root, b"moved"), RenameMode::Replace).unwrap();
    volume.create(root, b"beside", &file()).unwrap();
    volume.sync().unwrap();
    image.assert_sound("after changes around it");
    volume.unlink(root, b"moved").unwrap();
    assert_eq!(volume.statfs().unwrap().free_blocks, free + 49);
    volume.sync().unwrap();
    drop(volume);
    image.assert_sound("once it was removed");
}

#[test]
fn encrypted_inodes_stay_and_the_rest_can_be_changed() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("default"), 16);
    let mut volume = open(&image);
    let root = volume.root();
    let dir = volume.create(root, b"dir", &directory()).unwrap();
    // Encrypted names have at least sixteen bytes.
    let secret = volume.create(dir, b"sixteen bytes at", &file()).unwrap();
    volume.write_at(secret, &populate::noise(3, 9000), 0).unwrap();
    let empty = volume.create(root, b"empty", &directory()).unwrap();
    volume.sync().unwrap();
    drop(volume);
    debugfs(&image, "feature encrypt");
    debugfs(&image, "sif dir flags 0x80800");
    debugfs(&image, "sif empty flags 0x80800");
    debugfs(&image, "sif dir/sixteen\\ bytes\\ at flags 0x80800");
    debugfs(&image, &format!("sif <{}> flags 0x80800", secret.0));
    let mut volume = open(&image);
    let mut names = Vec::new();
    let list = &mut |entry: vmwright_vfs::DirEntry| {
        names.push(entry.name);
        std::ops::ControlFlow::Continue(())
    };
    volume.read_dir(dir, list).unwrap();
    assert!(names.contains(&b"sixteen bytes at".to_vec()));
    let unsupported = ErrorKind::Unsupported;
    let name = b"sixteen bytes at";
    assert_eq!(kind_of(volume.read_at(secret, &mut [0; 10], 0)), unsupported);
    assert_eq!(kind_of(volume.write_at(secret, b"x", 0)), unsupported);
    assert_eq!(kind_of(volume.truncate(secret, 0)), unsupported);
    assert_eq!(kind_of(volume.create(dir, b"new", &file())), unsupported);
    assert_eq!(kind_of(volume.unlink(dir, name)), unsupported);
    assert_eq!(kind_of(volume.rename((dir, name), (root, b"out"), RenameMode::Replace)), unsupported);
    assert_eq!(kind_of(volume.link(secret, dir, b"again")), unsupported);
    assert_eq!(kind_of(volume.rmdir(root, b"dir")), ErrorKind::InvalidInput);
    volume.rename((root, b"dir"), (root, b"moved"), RenameMode::Replace).unwrap();
    let inside = volume.create(empty, b"inside", &file());
    assert_eq!(kind_of(inside), unsupported);
    volume.rmdir(root, b"empty").unwrap();
    let plain = volume.create(root, b"plain", &file()).unwrap();
    volume.write_at(plain, b"content", 0).unwrap();
    volume.sync().unwrap();
    drop(volume);
    let mut read = open(&image);
    let root = read.root();
    assert!(read.lookup(root, b"moved").is_ok() && read.lookup(root, b"plain").is_ok());
    read.sync().unwrap();
}

#[test]
fn volumes_of_the_hurd_later_revisions_and_big_endian_ones_are_called_that() {
    need!("mke2fs", "debugfs");
    let image = Image::make(named("ext2"), 16);
    let message = |options| {
        let opened = Ext4::open(image.disk(false), options);
        opened.map(drop).map_err(|error| (error.kind(), error.to_string()))
    };
    let edit = |at: u64, bytes: &[u8]| image.disk(false).write_at(bytes, 1024 + at).unwrap();
    edit(0x48, &1_u32.to_le_bytes());
    assert_eq!(message(Options::default()), Ok(()));
    let (kind, text) = message(Options::writable()).unwrap_err();
    assert!(kind == ErrorKind::Unsupported && text.contains("Hurd"), "{text}");
    edit(0x48, &3_u32.to_le_bytes());
    assert_eq!(message(Options::writable()), Ok(()));
    edit(0x4c, &2_u32.to_le_bytes());
    let (kind, text) = message(Options::default()).unwrap_err();
    assert!(kind == ErrorKind::Unsupported && text.contains("revision"), "{text}");
    edit(0x38, &[0xef, 0x53]);
    let (kind, text) = message(Options::default()).unwrap_err();
    assert!(kind == ErrorKind::Unsupported && text.contains("big-endian"), "{text}");
}

#[test]
fn inode_tables_that_were_never_zeroed_are_cleared_as_they_are_used() {
    need!("mke2fs", "e2fsck", "debugfs", "dumpe2fs");
    let image = Image::file_of(48 << 20, 0xa5);
    let path = image.path().as_os_str();
    let options =
        ["-q", "-F", "-t", "ext4", "-b", "1024", "-N", "24000", "-E", "lazy_itable_init=1,nodiscard"];
    run("mke2fs", options.map(AsRef::as_ref).into_iter().chain([path]));
    let groups = run("dumpe2fs", [path]);
    assert!(groups.contains("INODE_UNINIT") && !groups.contains("ITABLE_ZEROED"), "{groups}");
    image.assert_sound("made by mke2fs");
    let mut volume = open(&image);
    let root = volume.root();
    for number in 0..40 {
        let dir = volume.create(root, format!("dir-{number}").as_bytes(), &directory()).unwrap();
        for number in 0..number {
            volume.create(dir, format!("file-{number}").as_bytes(), &file()).unwrap();
        }
    }
    volume.sync().unwrap();
    drop(volume);
    image.assert_sound("after we used it");
    if can_mount() {
        drop(Mount::new(image.path(), "noatime,init_itable=0"));
        image.assert_sound("after the kernel did");
    }
}

#[test]
fn volumes_that_were_resized_and_tuned_are_written() {
    need!("mke2fs", "e2fsck", "tune2fs", "resize2fs");
    let cases: [(&str, &[&str]); 5] = [
        ("default", &[]),
        ("1k", &["-O", "^dir_nlink,large_dir", "-e", "panic"]),
        ("32bit", &["-E", "hash_alg=tea", "-o", "acl,user_xattr"]),
        ("uninit", &["-O", "metadata_csum"]),
        ("plain", &["-O", "^huge_file,uninit_bg"]),
    ];
    for (kind, tuned) in cases {
        let image = Image::make(named(kind), 40);
        HostFile::open(image.path(), false).unwrap().set_len(300 << 20).unwrap();
        let mut online = false;
        if can_mount() {
            let mount = Mount::new(image.path(), "noatime");
            populate::everything(mount.path(), 100);
            let device = run("findmnt", ["-no".as_ref(), "SOURCE".as_ref(), mount.path().as_os_str()]);
            // The kernel grows it while it is in use, where we may tell it to.
            online = output("resize2fs", [device.trim()]).status.success();
        }
        if !online {
            run("e2fsck", ["-fy".as_ref(), image.path().as_os_str()]);
            run("resize2fs", ["-f".as_ref(), image.path().as_os_str()]);
        }
        if !tuned.is_empty() {
            // Some changes want a volume checked, and leave one that has to be: both are part of tuning it.
            output("e2fsck", ["-fy".as_ref(), image.path().as_os_str()]);
            run("tune2fs", tuned.iter().map(AsRef::as_ref).chain([image.path().as_os_str()]));
            output("e2fsck", ["-fy".as_ref(), image.path().as_os_str()]);
        }
        let mut volume = open(&image);
        let root = volume.root();
        for number in 0..600 {
            let dir = volume.create(root, format!("ours-{number}").as_bytes(), &directory()).unwrap();
            let file = volume.create(dir, b"file", &file()).unwrap();
            volume.write_at(file, &populate::noise(number, 30_000), 0).unwrap();
        }
        volume.sync().unwrap();
        drop(volume);
        image.assert_sound(&format!("{kind} after it was resized, tuned and written"));
    }
}
