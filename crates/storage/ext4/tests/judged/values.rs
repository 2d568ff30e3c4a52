//! Values of attributes in inodes of their own: what the kernel shares we count down, what we make it reads.

use vmwright_ext4::Ext4;
use vmwright_judges::{Mount, can_mount, need, run, skip};
use vmwright_vfs::{ErrorKind, FileSystem, InodeNumber, NewNode, NodeKind, SetAttributes, XattrMode};

use crate::images::{Image, named};
use crate::populate::noise;
use crate::tree;
use crate::writing::open;

const KINDS: [&str; 4] = ["ea_inode", "ea_inode_1k", "ea_inode_small", "ea_inode_inline"];

fn create(volume: &mut Ext4, name: &str, kind: NodeKind) -> InodeNumber {
    let root = volume.root();
    volume.create(root, name.as_bytes(), &NewNode { kind, mode: 0o700, uid: 5, gid: 6 }).unwrap()
}

fn sound(image: &Image, volume: &mut Ext4, when: &str) {
    volume.sync().unwrap();
    image.assert_sound(when);
}

fn free(volume: &Ext4) -> (u64, u64) {
    let free = volume.statfs().unwrap();
    (free.free_blocks, free.free_inodes)
}

#[test]
fn values_of_every_size_are_kept_changed_and_removed() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in KINDS.into_iter().chain(["quota_values"]) {
        let image = Image::make(named(kind), 16);
        let mut volume = open(&image);
        let empty = free(&volume);
        for (name, kind) in [("file", NodeKind::Regular), ("dir", NodeKind::Directory)] {
            let inode = create(&mut volume, name, kind);
            let set = |volume: &mut Ext4, name: &[u8], len: usize| {
                volume.set_xattr(inode, name, &noise(len as u64, len), XattrMode::Set).unwrap();
                assert_eq!(volume.xattr(inode, name).unwrap(), noise(len as u64, len));
            };
            let alone = volume.metadata(inode).unwrap().allocated;
            for len in [4000, 65_536, 1, 20_000, 4097, 65_536] {
                set(&mut volume, b"trusted.one", len);
                sound(&image, &mut volume, &format!("with a value of {len} bytes"));
            }
            set(&mut volume, b"trusted.two", 30_000);
            set(&mut volume, b"trusted.small", 30);
            set(&mut volume, b"security.other", 700);
            sound(&image, &mut volume, "with two large values");
            let taken = volume.metadata(inode).unwrap().allocated;
            assert!(taken >= alone + 95_536, "the owner counts what its values take: {taken}");
            assert_eq!(volume.xattr_names(inode).unwrap().len(), 4);
            let long = volume.set_xattr(inode, b"trusted.long", &[1; 65_537], XattrMode::Set).unwrap_err();
            assert_eq!(long.kind(), ErrorKind::InvalidInput);
            let owner = SetAttributes { uid: Some(70_000), gid: Some(80), ..Default::default() };
            volume.set_attributes(inode, &owner).unwrap();
            sound(&image, &mut volume, "with another owner");
            volume.remove_xattr(inode, b"trusted.one").unwrap();
            sound(&image, &mut volume, "with one large value");
            drop(volume);
            volume = open(&image);
            assert_eq!(volume.xattr(inode, b"trusted.two").unwrap(), noise(30_000, 30_000));
        }
        let link = create(&mut volume, "link", NodeKind::Symlink(b"short".to_vec()));
        let error = volume.set_xattr(link, b"trusted.one", &[1; 5000], XattrMode::Set).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "e2fsck would take it for blocks of the target");
        let root = volume.root();
        volume.unlink(root, b"file").unwrap();
        volume.rmdir(root, b"dir").unwrap();
        volume.unlink(root, b"link").unwrap();
        sound(&image, &mut volume, "when all is gone");
        // The quota files have grown for an owner that was not in them.
        let (blocks, inodes) = free(&volume);
        assert!(
            inodes == empty.1 && (blocks == empty.0 || kind == "quota_values"),
            "{kind}: values go with their owners"
        );
    }
}

#[test]
fn a_full_volume_keeps_the_value_that_it_has() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("ea_inode_1k"), 8);
    let mut volume = open(&image);
    let inode = create(&mut volume, "file", NodeKind::Regular);
    volume.set_xattr(inode, b"user.kept", &noise(1, 3000), XattrMode::Set).unwrap();
    let mut number = 0;
    let error = loop {
        number += 1;
        let name = format!("user.{number}");
        let other = create(&mut volume, &name, NodeKind::Regular);
        if let Err(error) = volume.set_xattr(other, b"user.x", &noise(number, 60_000), XattrMode::Set) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    sound(&image, &mut volume, "when it is full");
    let before = free(&volume);
    let error = volume.set_xattr(inode, b"user.kept", &noise(2, 65_000), XattrMode::Set).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!((free(&volume), volume.xattr(inode, b"user.kept").unwrap()), (before, noise(1, 3000)));
    sound(&image, &mut volume, "after what did not fit");
}

#[test]
fn the_kernel_reads_our_values_and_we_let_go_of_those_it_shares() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    for kind in KINDS {
        let image = Image::make(named(kind), 32);
        let mut volume = open(&image);
        for number in 0..4 {
            let inode = create(&mut volume, &format!("ours-{number}"), NodeKind::Regular);
            let value = noise(number % 2, 10_000 + 9000 * number as usize);
            volume.set_xattr(inode, b"user.value", &value, XattrMode::Set).unwrap();
        }
        sound(&image, &mut volume, "ours");
        drop(volume);
        {
            let mount = Mount::new(image.path(), "noatime");
            for number in 0..12 {
                let path = mount.path().join(format!("kernels-{number}"));
                std::fs::write(&path, b"").unwrap();
                for name in ["user.shared", "trusted.a-second-time"] {
                    rustix::fs::setxattr(&path, name, &noise(7, 20_000), rustix::fs::XattrFlags::empty())
                        .unwrap();
                }
            }
            for number in [0, 3] {
                std::fs::remove_file(mount.path().join(format!("ours-{number}"))).unwrap();
            }
        }
        image.assert_sound("after the kernel");
        let mut volume = open(&image);
        let root = volume.root();
        for number in 0..12 {
            let name = format!("kernels-{number}");
            let inode = volume.lookup(root, name.as_bytes()).unwrap();
            match number % 4 {
                0 => volume.unlink(root, name.as_bytes()).unwrap(),
                1 => volume.remove_xattr(inode, b"user.shared").unwrap(),
                2 => {
                    volume.set_xattr(inode, b"user.shared", &noise(number, 5000), XattrMode::Replace).unwrap()
                }
                _ => volume.set_xattr(inode, b"user.more", &noise(number, 500), XattrMode::Create).unwrap(),
            }
            sound(&image, &mut volume, &format!("our change of {name}"));
        }
        drop(volume);
        let ours = tree::of_ours(&image.open());
        let kernel = tree::of_kernel(Mount::new(image.path(), "ro,noatime").path());
        tree::assert_equal(&ours, &kernel, kind);
        let mut volume = open(&image);
        for number in (1..12).filter(|number| number % 4 > 0) {
            volume.unlink(root, format!("kernels-{number}").as_bytes()).unwrap();
        }
        sound(&image, &mut volume, "when the kernel's are gone");
    }
}

#[test]
fn a_value_that_does_not_have_its_hash_is_corrupt() {
    need!("mke2fs", "debugfs");
    let image = Image::make(named("ea_inode"), 8);
    let mut volume = open(&image);
    let inode = create(&mut volume, "file", NodeKind::Regular);
    volume.set_xattr(inode, b"user.value", &noise(1, 9000), XattrMode::Set).unwrap();
    volume.sync().unwrap();
    drop(volume);
    let debugfs = |request: &str| {
        run("debugfs", ["-w".as_ref(), "-R".as_ref(), request.as_ref(), image.path().as_os_str()])
    };
    let value = inode.0 + 1;
    debugfs(&format!("sif <{value}> atime @7"));
    assert_eq!(image.open().xattr(inode, b"user.value").unwrap_err().kind(), ErrorKind::Corrupt);
    // The older form has no hash and names its owner instead.
    debugfs(&format!("sif <{value}> mtime @{}", inode.0));
    let generation = debugfs(&format!("stat <{}>", inode.0));
    let generation = generation.split("Generation: ").nth(1).unwrap().split_whitespace().next().unwrap();
    debugfs(&format!("sif <{value}> generation {generation}"));
    assert_eq!(image.open().xattr(inode, b"user.value").unwrap(), noise(1, 9000));
    let mut volume = open(&image);
    let root = volume.root();
    volume.unlink(root, b"file").unwrap();
    volume.sync().unwrap();
    image.assert_sound("without the old form");
    // An owner that counts for more than its value does.
    let inode = create(&mut volume, "file", NodeKind::Regular);
    volume.set_xattr(inode, b"user.value", &noise(1, 9000), XattrMode::Set).unwrap();
    volume.sync().unwrap();
    drop(volume);
    debugfs(&format!("sif <{}> version 0", inode.0 + 1));
    let mut volume = open(&image);
    assert_eq!(volume.unlink(root, b"file").unwrap_err().kind(), ErrorKind::Corrupt);
    volume.lookup(root, b"file").unwrap();
}
