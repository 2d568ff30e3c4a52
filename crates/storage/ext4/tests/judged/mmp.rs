//! Multiple mount protection: who has a volume open is respected, and others are told of us.

use std::sync::{Arc, Mutex};

use vmwright_disk::{Disk, Extent, MemDisk};
use vmwright_ext4::resize::Target;
use vmwright_ext4::{ErrorKind, Ext4, Options};
use vmwright_judges::{Mount, can_mount, need, run, skip};
use vmwright_vfs::{FileSystem, NewNode, NodeKind};

use crate::images::{Image, named};
use crate::writing::{agrees_with_the_model, open};

fn dump(image: &Image) -> String {
    run("debugfs", ["-R".as_ref(), "dump_mmp".as_ref(), image.path().as_os_str()])
}

fn directory() -> NewNode {
    NewNode { kind: NodeKind::Directory, mode: 0o755, uid: 0, gid: 0 }
}

#[test]
fn a_volume_that_a_kernel_has_mounted_is_refused_until_that_is_overruled() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    let image = Image::make(named("mmp"), 16);
    let caught = {
        let mount = Mount::new(image.path(), "noatime");
        let file = std::fs::File::create(mount.path().join("file")).unwrap();
        rustix::fs::syncfs(file).unwrap();
        image.copy()
    };
    let before = std::fs::read(caught.path()).unwrap();
    let error = Ext4::open(caught.disk(false), Options::writable()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    let text = error.to_string();
    let node = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(
        text.contains("a kernel on") && text.contains(node.trim()) && text.contains("clear_mmp"),
        "{text}"
    );
    assert!(std::fs::read(caught.path()).unwrap() == before);
    caught.open();
    drop(Ext4::open(caught.disk(false), Options { ignore_mmp: true, ..Options::writable() }).unwrap());
    assert!(dump(&caught).contains("node_name: vmwright"), "{}", dump(&caught));
    caught.assert_sound("once it was overruled");
    drop(open(&caught));
    drop(open(&image));
}

#[test]
fn a_volume_that_e2fsck_has_open_and_one_with_a_damaged_block_are_refused() {
    need!("mke2fs", "debugfs", "tune2fs");
    for (value, kind) in [(0xe24d_4d50_u32, ErrorKind::InUse), (0xe24d_4d51, ErrorKind::Corrupt)] {
        // Without checksums, so that the sequence alone can be set.
        let image = Image::make(named("mmp_plain"), 16);
        set_sequence(&image, value);
        let error = Ext4::open(image.disk(false), Options::writable()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let args = ["-f", "-E", "clear_mmp"].map(AsRef::as_ref);
        run("tune2fs", args.into_iter().chain([image.path().as_os_str()]));
        drop(open(&image));
    }
    let image = Image::make(named("mmp"), 16);
    set_sequence(&image, 0xe24d_4d50);
    let error = Ext4::open(image.disk(false), Options::writable()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    drop(Ext4::open(image.disk(false), Options { ignore_mmp: true, ..Options::writable() }).unwrap());
    drop(open(&image));
    image.assert_sound("once the block was made anew");
}

fn block(disk: &dyn Disk) -> u64 {
    let mut bytes = [0; 8];
    disk.read_at(&mut bytes, 1024 + 0x168).unwrap();
    u64::from_le_bytes(bytes) * 4096
}

fn set_sequence(image: &Image, value: u32) {
    let disk = image.disk(false);
    disk.write_at(&value.to_le_bytes(), block(&*disk) + 4).unwrap();
}

#[test]
fn resizing_and_tuning_leave_a_guarded_volume_clean() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["mmp", "mmp_plain"] {
        let image = Image::make(named(kind), 48);
        let clean = |when: &str| {
            image.assert_sound(when);
            assert!(dump(&image).contains("sequence: ff4d4d50"), "{when}: {}", dump(&image));
            drop(open(&image));
        };
        let mut volume = open(&image);
        volume.set_uuid("01234567-89ab-4cde-8f01-23456789abcd").unwrap();
        volume.sync().unwrap();
        drop(volume);
        clean("another UUID");
        for features in [["^metadata_csum"], ["metadata_csum"]] {
            let features = features.map(str::to_owned).to_vec();
            let changes = vmwright_ext4::tune::Changes { features, ..Default::default() };
            vmwright_ext4::tune::tune(image.disk(false), &changes).unwrap();
            clean("other checksums");
        }
        for blocks in [20_000_u64, 6000] {
            let disk = image.disk(false);
            disk.set_len(disk.len().max(blocks * 4096)).unwrap();
            vmwright_ext4::resize::resize(disk, Target::Bytes(blocks * 4096), &Default::default()).unwrap();
            clean("another size");
        }
    }
}

/// A disk that remembers what its guarding block said at each other write.
struct Watched {
    disk: MemDisk,
    block: u64,
    seen: Mutex<Vec<u32>>,
}

impl Watched {
    fn sequence(&self) -> u32 {
        let mut bytes = [0; 4];
        self.disk.read_at(&mut bytes, self.block + 4).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn note(&self, offset: u64) {
        if offset != self.block {
            self.seen.lock().unwrap().push(self.sequence());
        }
    }
}

impl Disk for Watched {
    fn is_read_only(&self) -> bool {
        false
    }
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        self.disk.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        self.note(offset);
        self.disk.write_at(data, offset)
    }
    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.note(offset);
        self.disk.zero_at(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.disk.discard(offset, len)
    }
    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        self.disk.set_len(len)
    }
    fn flush(&self) -> vmwright_disk::Result<()> {
        self.disk.flush()
    }
    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        self.disk.extent_at(offset)
    }
}

fn watched(image: &Image) -> Arc<Watched> {
    let bytes = std::fs::read(image.path()).unwrap();
    let disk = MemDisk::new(bytes.len());
    disk.write_at(&bytes, 0).unwrap();
    Arc::new(Watched { block: block(&disk), disk, seen: Mutex::default() })
}

#[test]
fn others_are_told_before_each_change_and_after_each_sync() {
    need!("mke2fs", "debugfs");
    let disk = watched(&Image::make(named("mmp"), 16));
    let mut volume = Ext4::open(disk.clone(), Options::writable()).unwrap();
    assert_eq!(disk.sequence(), 0xff4d_4d50, "nothing has changed yet");
    for name in ["one", "two"] {
        let root = volume.root();
        volume.create(root, name.as_bytes(), &directory()).unwrap();
        volume.sync().unwrap();
        assert_eq!(disk.sequence(), 0xff4d_4d50);
    }
    let seen = disk.seen.lock().unwrap().clone();
    assert!(seen.len() > 4 && seen.iter().all(|sequence| *sequence == 0xe24d_4d50), "{seen:x?}");
}

#[test]
fn a_volume_that_is_taken_over_meanwhile_is_told() {
    need!("mke2fs", "debugfs");
    let disk = watched(&Image::make(named("mmp"), 16));
    let mut volume = Ext4::open(disk.clone(), Options { metadata_cache: 0, ..Options::writable() }).unwrap();
    let root = volume.root();
    // With so little memory some of it is written before the sync.
    for number in 0..400 {
        volume.create(root, format!("dir-{number}").as_bytes(), &directory()).unwrap();
    }
    assert_eq!(disk.sequence(), 0xe24d_4d50);
    disk.disk.write_at(&1234_u32.to_le_bytes(), disk.block + 4).unwrap();
    let error = volume.sync().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
}

#[test]
fn random_operations_leave_a_guarded_volume_clean() {
    need!("mke2fs", "e2fsck", "debugfs");
    let words: Vec<[u32; 4]> = (0..300_u32)
        .map(|step| [1, 2, 3, 4].map(|word: u32| (step * 4 + word).wrapping_mul(0x9e37_79b9).rotate_left(11)))
        .collect();
    for kind in ["mmp", "mmp_plain"] {
        agrees_with_the_model(named(kind), 24, &words);
    }
}
