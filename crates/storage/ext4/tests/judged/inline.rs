//! Content within inodes: it stays there as long as the kernel would keep it there, and moves out whole.

use vmwright_ext4::Ext4;
use vmwright_judges::{Mount, can_mount, need, run, skip};
use vmwright_vfs::{FileSystem, InodeNumber, NewNode, NodeKind, RenameMode, XattrMode};

use crate::images::{Image, named};
use crate::populate::noise;
use crate::tree;
use crate::writing::open;

const KINDS: [&str; 4] = ["inline", "inline_wide", "ea_inode_inline", "casefold_inline"];

fn create(volume: &mut Ext4, dir: InodeNumber, name: &str, kind: NodeKind) -> InodeNumber {
    volume.create(dir, name.as_bytes(), &NewNode { kind, mode: 0o755, uid: 0, gid: 0 }).unwrap()
}

fn sound(image: &Image, volume: &mut Ext4, when: &str) {
    volume.sync().unwrap();
    image.assert_sound(when);
}

/// Whether debugfs shows an inode's content as inline.
fn is_inline(image: &Image, inode: u64) -> bool {
    let request = format!("stat <{inode}>");
    let told = run("debugfs", ["-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
    let flags = told.split("Flags: 0x").nth(1).unwrap().split_whitespace().next().unwrap();
    u32::from_str_radix(flags, 16).unwrap() & 0x1000_0000 != 0
}

fn content(volume: &Ext4, inode: InodeNumber) -> Vec<u8> {
    let mut content = vec![0; volume.metadata(inode).unwrap().size as usize];
    volume.read_at(inode, &mut content, 0).unwrap();
    content
}

#[test]
fn a_file_stays_inline_until_it_is_too_large() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in KINDS {
        let image = Image::make(named(kind), 16);
        let mut volume = open(&image);
        let root = volume.root();
        let inode = create(&mut volume, root, "file", NodeKind::Regular);
        let mut model = Vec::new();
        let mut largest = 0;
        for len in (1..1100).step_by(13) {
            let data = noise(len as u64, 13.min(len));
            let at = len - data.len();
            model.resize(len, 0);
            model[at..].copy_from_slice(&data);
            volume.write_at(inode, &data, at as u64).unwrap();
            assert!(content(&volume, inode) == model, "{kind} {len}");
            volume.sync().unwrap();
            if len % 4 == 0 {
                image.assert_sound(&format!("with {len} bytes"));
            }
            if is_inline(&image, inode.0) {
                assert_eq!(largest + 13, len.max(13), "content that moved out stays out");
                largest = len;
            }
        }
        let expected = if kind == "inline_wide" { 880..897 } else { 110..129 };
        assert!(expected.contains(&largest), "{kind}: {largest}");
        let small = create(&mut volume, root, "small", NodeKind::Regular);
        volume.write_at(small, b"at its end", 50).unwrap();
        volume.truncate(small, 20).unwrap();
        volume.truncate(small, 100).unwrap();
        volume.write_at(small, b"begins", 0).unwrap();
        volume.punch(small, 1, 2).unwrap();
        let mut model = b"b\0\0ins".to_vec();
        model.resize(100, 0);
        assert!(content(&volume, small) == model);
        volume.set_xattr(small, b"user.in-the-way", &noise(1, 200), XattrMode::Set).unwrap();
        assert!(content(&volume, small) == model);
        sound(&image, &mut volume, "with an attribute in the way");
        assert!(is_inline(&image, small.0));
        volume.truncate(small, 0).unwrap();
        volume.write_at(small, b"again", 3).unwrap();
        assert_eq!(content(&volume, small), b"\0\0\0again");
        volume.truncate(small, 5000).unwrap();
        volume.write_at(small, b"far", 100_000).unwrap();
        sound(&image, &mut volume, "grown beyond the inode");
        assert!(!is_inline(&image, small.0));
        volume.unlink(root, b"small").unwrap();
        sound(&image, &mut volume, "in the end");
    }
}

#[test]
fn directories_are_inline_until_they_are_full() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in KINDS {
        let image = Image::make(named(kind), 16);
        let mut volume = open(&image);
        let root = volume.root();
        let (dir, other) = (
            create(&mut volume, root, "dir", NodeKind::Directory),
            create(&mut volume, root, "other", NodeKind::Directory),
        );
        sound(&image, &mut volume, "with empty directories");
        assert!(is_inline(&image, dir.0));
        let below = create(&mut volume, dir, "below", NodeKind::Directory);
        volume.rename((dir, b"below"), (other, b"moved"), RenameMode::Replace).unwrap();
        assert_eq!(volume.lookup(below, b"..").unwrap(), other);
        sound(&image, &mut volume, "with a directory moved");
        let mut inline = 0;
        for number in 0..120 {
            let name = format!("name-{number}");
            create(
                &mut volume,
                dir,
                &name,
                if number % 2 == 0 { NodeKind::Fifo } else { NodeKind::Directory },
            );
            assert!(volume.lookup(dir, name.as_bytes()).is_ok());
            if number < 60 {
                volume.sync().unwrap();
                if number % 3 == 1 {
                    image.assert_sound(&format!("with {number} names"));
                }
                inline += usize::from(is_inline(&image, dir.0));
            }
            if number % 3 == 0 {
                volume.rename((dir, name.as_bytes()), (dir, b"last"), RenameMode::NoReplace).unwrap();
                volume.rename((dir, b"last"), (other, b"taken"), RenameMode::Replace).unwrap_or_else(|_| {
                    volume.rename((dir, b"last"), (other, b"taken"), RenameMode::Exchange).unwrap();
                    let _ = volume.rmdir(dir, b"last").map_err(|_| volume.unlink(dir, b"last").unwrap());
                });
            }
        }
        assert!((3..=60).contains(&inline), "{kind}: {inline}");
        sound(&image, &mut volume, "full of names");
        assert!(is_inline(&image, other.0) && !is_inline(&image, dir.0));
        volume.rename((root, b"dir"), (other, b"dir"), RenameMode::Replace).unwrap();
        for number in (0..120).filter(|number| number % 3 > 0) {
            let name = format!("name-{number}");
            if number % 2 == 0 {
                volume.unlink(dir, name.as_bytes()).unwrap();
            } else {
                volume.rmdir(dir, name.as_bytes()).unwrap();
            }
        }
        volume.rmdir(other, b"dir").unwrap();
        sound(&image, &mut volume, "in the end");
    }
}

#[test]
fn the_kernel_keeps_inline_what_we_keep_inline() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    for kind in ["inline", "inline_wide", "ea_inode_inline"] {
        let (ours, theirs) = (Image::make(named(kind), 16), Image::make(named(kind), 16));
        let mut volume = open(&ours);
        let root = volume.root();
        let sizes =
            [0, 1, 59, 60, 61, 100, 123, 124, 125, 126, 127, 128, 129, 130, 160, 500, 895, 896, 897, 900];
        for size in sizes {
            let inode = create(&mut volume, root, &format!("file-{size}"), NodeKind::Regular);
            volume.write_at(inode, &noise(size as u64, size), 0).unwrap();
        }
        for count in 0..60 {
            let dir = create(&mut volume, root, &format!("dir-{count}"), NodeKind::Directory);
            for number in 0..count {
                create(&mut volume, dir, &format!("n{number}"), NodeKind::Regular);
            }
        }
        sound(&ours, &mut volume, "ours");
        {
            let mount = Mount::new(theirs.path(), "noatime");
            for size in sizes {
                std::fs::write(mount.path().join(format!("file-{size}")), noise(size as u64, size)).unwrap();
            }
            for count in 0..60 {
                let dir = mount.path().join(format!("dir-{count}"));
                std::fs::create_dir(&dir).unwrap();
                for number in 0..count {
                    std::fs::write(dir.join(format!("n{number}")), b"").unwrap();
                }
            }
        }
        let kernels = theirs.open();
        for name in
            sizes.map(|size| format!("file-{size}")).into_iter().chain((0..60).map(|n| format!("dir-{n}")))
        {
            let (here, there) = (
                volume.lookup(root, name.as_bytes()).unwrap(),
                kernels.lookup(root, name.as_bytes()).unwrap(),
            );
            assert_eq!(is_inline(&ours, here.0), is_inline(&theirs, there.0), "{kind} {name}");
        }
        drop(volume);
        let shown = tree::of_ours(&ours.open());
        let mount = Mount::new(ours.path(), "noatime");
        tree::assert_equal(&shown, &tree::of_kernel(mount.path()), kind);
        // The kernel goes on with what we made.
        for count in 0..60 {
            std::fs::write(mount.path().join(format!("dir-{count}/more")), noise(1, 70)).unwrap();
            let _ = std::fs::remove_file(mount.path().join(format!("dir-{count}/n0")));
        }
        for size in sizes {
            let path = mount.path().join(format!("file-{size}"));
            std::fs::write(&path, noise(2, size / 2)).unwrap();
        }
        drop(mount);
        ours.assert_sound("after the kernel went on");
        tree::assert_equal(
            &tree::of_ours(&ours.open()),
            &tree::of_kernel(Mount::new(ours.path(), "ro,noatime").path()),
            kind,
        );
    }
}

#[test]
fn a_file_longer_than_its_inline_content_ends_in_zeros() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("inline"), 8);
    let mut volume = open(&image);
    let root = volume.root();
    let inode = create(&mut volume, root, "file", NodeKind::Regular);
    volume.write_at(inode, b"short", 0).unwrap();
    volume.sync().unwrap();
    drop(volume);
    // Kernels leave such files where one was truncated to more than its inode can hold.
    let request = format!("sif <{}> size 5000", inode.0);
    run("debugfs", ["-w".as_ref(), "-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
    image.assert_sound("longer than it has content");
    let mut volume = open(&image);
    let mut model = b"short".to_vec();
    model.resize(5000, 0);
    assert!(content(&volume, inode) == model);
    if can_mount() {
        let mount = Mount::new(image.path(), "ro,noatime");
        assert!(std::fs::read(mount.path().join("file")).unwrap() == model);
    }
    volume.write_at(inode, b"more", 4000).unwrap();
    model[4000..4004].copy_from_slice(b"more");
    assert!(content(&volume, inode) == model);
    sound(&image, &mut volume, "moved out");
}
