//! Volumes that somebody prepared, or left half done: told, finished, and never the end of the program.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use vmwright_disk::HostFile;
use vmwright_ext4::{ErrorKind, Ext4, Options};
use vmwright_judges::{need, output, run};
use vmwright_vfs::{FileSystem, InodeNumber, NewNode, NodeKind, Timestamp};

struct Image {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Image {
    fn make(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
        run("mke2fs", [&["-q", "-F"], options, &[path.to_str().unwrap()]].concat());
        Self { path, _dir: dir }
    }

    fn disk(&self) -> Arc<HostFile> {
        Arc::new(HostFile::open(&self.path, false).unwrap())
    }

    fn open(&self) -> Ext4 {
        let mut volume = Ext4::open(self.disk(), Options::writable()).unwrap();
        volume.set_now(Timestamp { seconds: 1_790_000_000, nanoseconds: 5 });
        volume
    }

    /// Changes the bytes at an offset.
    fn edit<const N: usize>(&self, offset: u64, change: impl FnOnce(&mut [u8; N])) {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, offset).unwrap();
        change(&mut bytes);
        file.write_all_at(&bytes, offset).unwrap();
    }

    fn debugfs(&self, command: &str) {
        run("debugfs", ["-w", "-R", command, self.path.to_str().unwrap()]);
    }
}

fn file(volume: &mut Ext4, name: &str, content: &[u8]) -> InodeNumber {
    let node = NewNode { kind: NodeKind::Regular, mode: 0o640, uid: 0, gid: 0 };
    let inode = volume.create(volume.root(), name.as_bytes(), &node).unwrap();
    volume.write_at(inode, content, 0).unwrap();
    inode
}

#[test]
fn groups_that_share_a_bitmap_are_corrupt_when_their_counts_no_longer_fit() {
    need!("mke2fs");
    let image = Image::make(&["-t", "ext2", "-b", "1024", "-N", "32", "-g", "8192", "-O", "^resize_inode"]);
    let mut volume = image.open();
    for name in ["a", "b", "c", "d"] {
        file(&mut volume, name, &[1; 100]);
    }
    file(&mut volume, "big", &[7; 1 << 20]);
    volume.sync().unwrap();
    drop(volume);
    // The second descriptor takes over the first one's bitmap.
    image.edit::<64>(2048, |descriptors| {
        let (first, second) = descriptors.split_at_mut(32);
        second[..4].copy_from_slice(&first[..4]);
        // It has one block less than the first.
        let free = u16::from_le_bytes([first[12], first[13]]) - 1;
        second[12..14].copy_from_slice(&free.to_le_bytes());
    });
    let mut volume = image.open();
    let root = volume.root();
    // The first inode of the second group: its content goes there.
    let inode = file(&mut volume, "second", b"");
    assert_eq!(inode.0, 17, "the volume has 16 inodes per group");
    volume.unlink(root, b"big").unwrap();
    let error = volume.write_at(inode, &vec![9; 8 << 20], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn a_truncation_under_way_is_finished_down_to_the_byte() {
    need!("mke2fs", "debugfs", "e2fsck");
    for options in [&["-t", "ext4", "-b", "4096"][..], &["-t", "ext3", "-b", "4096"]] {
        let image = Image::make(options);
        let mut volume = image.open();
        let inode = file(&mut volume, "cut", &[0xaa; 9000]);
        volume.sync().unwrap();
        drop(volume);
        image.debugfs(&format!("sif <{}> size 1000", inode.0));
        image.debugfs(&format!("ssv last_orphan {}", inode.0));
        let volume = image.open();
        assert_eq!(volume.metadata(inode).unwrap().size, 1000);
        let at = match volume.extent_at(inode, 0).unwrap().kind {
            vmwright_disk::ExtentKind::Data { offset, .. } => offset,
            other => panic!("{other:?}"),
        };
        let mut bytes = vec![0; 4096];
        std::fs::File::open(&image.path).unwrap().read_exact_at(&mut bytes, at).unwrap();
        assert!(bytes[..1000].iter().all(|byte| *byte == 0xaa));
        assert!(bytes[1000..].iter().all(|byte| *byte == 0), "{options:?}: what was cut off is still there");
        drop(volume);
        let judged = output("e2fsck", ["-fn".as_ref(), image.path.as_os_str()]);
        assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
    }
}
