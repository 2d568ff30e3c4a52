//! Journals on disks of their own.

use std::fs::File;
use std::path::Path;

use vmwright_ext4::{ErrorKind, Ext4, Options};
use vmwright_judges::{can_mount, need, output, run, skip};
use vmwright_vfs::{FileSystem, NewNode, NodeKind};

use crate::images::Image;
use crate::{populate, tree};

/// A loop device, given back when dropped.
struct Loop(String);

impl Loop {
    fn new(image: &Image) -> Self {
        let device = run("losetup", ["-f".as_ref(), "--show".as_ref(), image.path().as_os_str()]);
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        output("losetup", ["-d", &self.0]);
    }
}

/// A volume and the disk of its journal.
struct Pair {
    volume: Image,
    journal: Image,
}

impl Pair {
    fn make(block_size: &str) -> Self {
        let (volume, journal) = (Image::file_of(32 << 20, 0), Image::file_of(8 << 20, 0));
        let fixed = ["-q", "-F", "-b", block_size].map(AsRef::as_ref);
        let device = ["-O", "journal_dev"].map(AsRef::as_ref);
        run("mke2fs", fixed.into_iter().chain(device).chain([journal.path().as_os_str()]));
        let attached = Loop::new(&journal);
        let with = format!("device={}", attached.0);
        let options = ["-t", "ext4", "-J", &with].map(AsRef::as_ref);
        run("mke2fs", fixed.into_iter().chain(options).chain([volume.path().as_os_str()]));
        Self { volume, journal }
    }

    fn mounted<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        let journal = Loop::new(&self.journal);
        let dir = tempfile::tempdir().unwrap();
        let options = format!("loop,noatime,commit=300,journal_path={}", journal.0);
        let args = ["-o".as_ref(), options.as_ref(), self.volume.path().as_os_str(), dir.path().as_os_str()];
        run("mount", args);
        let result = work(dir.path());
        let mut tries = (0..100).map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            output("umount", [dir.path()]).status.success()
        });
        assert!(tries.any(|done| done));
        result
    }

    fn copy(&self) -> Self {
        Self { volume: self.volume.copy(), journal: self.journal.copy() }
    }

    fn open(&self, options: Options) -> vmwright_ext4::Result<Ext4> {
        let read_only = !options.write;
        Ext4::open_with_journal(self.volume.disk(read_only), self.journal.disk(read_only), options)
    }

    fn assert_sound(&self, when: &str) {
        let args =
            ["-fn".as_ref(), "-j".as_ref(), self.journal.path().as_os_str(), self.volume.path().as_os_str()];
        let checked = output("e2fsck", args);
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success(), "{when}: {text}");
    }
}

fn file() -> NewNode {
    NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 0, gid: 0 }
}

#[test]
fn a_journal_on_its_own_disk_is_followed_and_replayed_as_the_kernel_does() {
    need!("mke2fs", "e2fsck", "losetup", "umount");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    for block_size in ["4096", "1024"] {
        let pair = Pair::make(block_size);
        let dirty = pair.mounted(|top| {
            populate::everything(top, 300);
            File::create(top.join("last")).unwrap().sync_all().unwrap();
            pair.copy()
        });
        let before =
            (std::fs::read(dirty.volume.path()).unwrap(), std::fs::read(dirty.journal.path()).unwrap());
        let read = tree::of_ours(&dirty.open(Options::default()).unwrap());
        for options in [Options::default(), Options::writable()] {
            let error = Ext4::open(dirty.volume.disk(!options.write), options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("UUID"), "{error}");
        }
        let read_only =
            Ext4::open_with_journal(dirty.volume.disk(false), dirty.journal.disk(true), Options::writable());
        assert_eq!(read_only.unwrap_err().kind(), ErrorKind::ReadOnly);
        let after =
            (std::fs::read(dirty.volume.path()).unwrap(), std::fs::read(dirty.journal.path()).unwrap());
        assert!(before == after, "reading and refusing changed a disk");
        let kernel = dirty.copy().mounted(tree::of_kernel);
        tree::assert_equal(&read, &kernel, "read");
        let mut volume = dirty.open(Options::writable()).unwrap();
        tree::assert_equal(&tree::of_ours(&volume), &kernel, "opened for writing");
        let root = volume.root();
        volume.create(root, b"ours", &file()).unwrap();
        volume.sync().unwrap();
        drop(volume);
        dirty.assert_sound("once it was replayed");
        for _ in 0..2 {
            assert!(dirty.mounted(|top| top.join("ours").exists()));
        }
        dirty.assert_sound("once the kernel went on");
        // With nothing to replay the journal's disk is not needed, and what it held does not come back.
        let mut volume = Ext4::open(dirty.volume.disk(false), Options::writable()).unwrap();
        volume.unlink(volume.root(), b"ours").unwrap();
        volume.create(volume.root(), b"alone", &file()).unwrap();
        volume.sync().unwrap();
        drop(volume);
        dirty.assert_sound("once it was written without the journal");
        assert!(dirty.mounted(|top| top.join("alone").exists() && !top.join("ours").exists()));
        dirty.assert_sound("at the end");
    }
}

#[test]
fn disks_that_are_not_the_volumes_journal_are_refused() {
    need!("mke2fs", "losetup");
    if !can_mount() {
        skip!("loop devices are not allowed here");
    }
    let (pair, other) = (Pair::make("4096"), Pair::make("4096"));
    let refused = |volume: &Image, journal: &Image| {
        let opened = Ext4::open_with_journal(volume.disk(true), journal.disk(true), Options::default());
        let error = opened.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        error.to_string()
    };
    assert!(refused(&pair.volume, &other.journal).contains("another filesystem"));
    assert!(refused(&pair.volume, &other.volume).contains("holds none"));
    let plain = Image::make(crate::images::named("default"), 8);
    assert!(refused(&plain, &pair.journal).contains("its own"));
    let error = Ext4::open(pair.journal.disk(true), Options::default()).unwrap_err();
    assert!(error.to_string().contains("journal of filesystems"), "{error}");
    pair.journal.disk(false).write_at(&2_u32.to_be_bytes(), 4096 + 0x40).unwrap();
    let shared = pair.open(Options::writable()).unwrap_err();
    assert!(matches!(shared.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{shared}");
}
