//! Superblocks and descriptors that are damaged on purpose: a copy stands in, and a repair writes it back.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use vmwright_disk::{Disk, HostFile, MemDisk};
use vmwright_ext4::{CheckOptions, ErrorKind, Ext4, Options, Report, check};
use vmwright_judges::{need, run};
use vmwright_vfs::{FileSystem, NewNode, NodeKind};

use crate::images::Image;
use crate::making::ours;
use crate::populate;
use crate::random::effort;
use crate::repairing::readable;
use crate::verdicts::{sample, told};

/// Something that happens to the head of a volume: what it is called, where, and what stands there then.
type Damage = (&'static str, u64, Vec<u8>);

fn noise(len: usize) -> Vec<u8> {
    populate::noise(11, len)
}

fn read(image: &Image, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::fs::File::open(image.path()).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn flipped(image: &Image, at: u64) -> Vec<u8> {
    read(image, at, 1).iter().map(|byte| byte ^ 0x15).collect()
}

/// What is done to a volume; its checksums tell of a changed byte, where it has any.
fn damages(image: &Image) -> Vec<Damage> {
    let superblock = read(image, 1024, 1024);
    let block = 1024_u64 << superblock[0x18];
    let sealed = superblock[0x65] & 0x4 != 0;
    let sums = sealed || superblock[0x64] & 0x10 != 0;
    let descriptors = (1024 / block + 1) * block;
    let size = if superblock[0x60] & 0x80 != 0 { 64 } else { 32 };
    let mut damages = vec![
        ("no superblock", 1024, vec![0; 1024]),
        ("noise for a superblock", 1024, noise(1024)),
        ("another magic", 1024 + 0x38, flipped(image, 1024 + 0x38)),
        ("another number of inodes", 1024, flipped(image, 1024)),
        ("no superblock and descriptors", 1024, vec![0; (descriptors + block - 1024) as usize]),
        ("noise for superblock and descriptors", 0, noise((descriptors + block) as usize)),
        ("no descriptors", descriptors, vec![0; block as usize]),
        ("noise for descriptors", descriptors, noise(block as usize)),
        ("inode table of no group", descriptors + 8, vec![0; 4]),
        ("inode table of the first beyond the end", descriptors + 8, vec![0xff; 4]),
        ("second descriptor gone", descriptors + size, vec![0; size as usize]),
    ];
    if sealed {
        damages.push(("another length", 1024 + 4, flipped(image, 1024 + 4)));
        damages.push(("another hash seed", 1024 + 0xec, flipped(image, 1024 + 0xec)));
        damages.push(("other features", 1024 + 0x60, vec![0xff; 4]));
    }
    if sums {
        damages.push(("another block bitmap", descriptors + size, flipped(image, descriptors + size)));
    }
    damages
}

fn checked(path: &Path, repair: bool) -> vmwright_ext4::Result<Report> {
    let disk = Arc::new(HostFile::open(path, !repair).unwrap());
    check(disk, &CheckOptions { repair, ..CheckOptions::default() })
}

/// Damages a volume in every way, and repairs it.
fn judge(image: &Image, name: &str, number: usize) {
    let before = readable(&std::fs::read(image.path()).unwrap());
    assert!(before.len() > 3, "{name}");
    let step = if effort() > 1 { 1 } else { 6 };
    for (what, at, bytes) in damages(image).into_iter().skip(number % step).step_by(step) {
        let damaged = image.copy();
        let file = std::fs::File::options().write(true).open(damaged.path()).unwrap();
        file.write_all_at(&bytes, at).unwrap();
        let report = checked(damaged.path(), false).unwrap_or_else(|error| panic!("{name}, {what}: {error}"));
        assert!(!report.clean && report.repaired == 0, "{name}, {what}:\n{}", told(Some(&report)));
        let report = checked(damaged.path(), true).unwrap();
        assert!(report.clean && report.repaired > 0, "{name}, {what}:\n{}", told(Some(&report)));
        let complaints = damaged.complaints();
        assert!(complaints.is_none(), "{name}, {what}:\n{}{}", told(Some(&report)), complaints.unwrap());
        assert!(
            readable(&std::fs::read(damaged.path()).unwrap()) == before,
            "{name}, {what}: content differs"
        );
        let again = checked(damaged.path(), false).unwrap();
        assert!(again.clean && again.total == 0, "{name}, {what}:\n{}", told(Some(&again)));
    }
}

#[test]
fn a_copy_stands_in_for_what_is_damaged_and_is_written_back() {
    need!("mke2fs", "e2fsck", "debugfs");
    let kinds = [
        ("1k", 24),
        ("ext2_1k", 24),
        ("2k", 40),
        ("no_flex", 72),
        ("meta_bg", 24),
        ("plain", 200),
        ("uninit", 200),
    ];
    for (number, (kind, mebibytes)) in kinds.into_iter().enumerate() {
        judge(&sample(kind, mebibytes), kind, number);
    }
}

#[test]
fn a_copy_stands_in_for_what_we_made_too() {
    need!("e2fsck");
    let kinds = [
        "blocks_per_group=8192",
        "type=ext2 blocks_per_group=8192",
        "block_size=1K",
        "blocks_per_group=8192 features=sparse_super2,^resize_inode",
        "block_size=1K features=bigalloc",
        "blocks_per_group=8192 features=orphan_file,quota",
    ];
    for (number, words) in kinds.into_iter().enumerate() {
        let image = Image::file_of(if words.contains("bigalloc") { 300 << 20 } else { 72 << 20 }, 0);
        ours(image.path(), &format!("inodes=2000 {words}"));
        let mut volume = Ext4::open(image.disk(false), Options::writable()).unwrap();
        for file in 0..40_u32 {
            let node = NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 0, gid: 0 };
            let inode = volume.create(volume.root(), format!("file{file}").as_bytes(), &node).unwrap();
            volume.write_at(inode, &populate::noise(file.into(), 9000), 0).unwrap();
        }
        volume.sync().unwrap();
        drop(volume);
        image.assert_sound(words);
        judge(&image, words, number);
    }
}

#[test]
fn noise_is_no_volume() {
    for len in [0, 1000, 1 << 20, 20 << 20] {
        let disk = Arc::new(MemDisk::from_bytes(noise(len)));
        for repair in [false, true] {
            let options = CheckOptions { repair, ..CheckOptions::default() };
            let error = check(disk.clone() as Arc<dyn Disk>, &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}");
        }
        assert!(disk.to_bytes() == noise(len), "{len}");
    }
}

#[test]
fn the_volume_that_a_disk_had_before_does_not_stand_in() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = sample("no_flex", 72);
    let before = readable(&std::fs::read(image.path()).unwrap());
    // One of blocks of 1 KiB was there before; its second group began at 8 MiB, where files may be now.
    let former = Image::file_of(72 << 20, 0);
    run(
        "mke2fs",
        ["-q", "-F", "-t", "ext4", "-b", "1024"]
            .map(std::ffi::OsStr::new)
            .into_iter()
            .chain([former.path().as_os_str()]),
    );
    let file = std::fs::File::options().write(true).open(image.path()).unwrap();
    let place = 8193 * 1024;
    file.write_all_at(&read(&former, place, 1024), place).unwrap();
    file.write_all_at(&[0; 1024], 1024).unwrap();
    let report = checked(image.path(), true).unwrap();
    assert!(report.clean, "{}", told(Some(&report)));
    image.assert_sound("after its own copy stood in");
    assert!(readable(&std::fs::read(image.path()).unwrap()) == before);
}

#[test]
fn copies_that_are_damaged_too_are_made_anew() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = sample("1k", 64);
    let copy = |group: u64| (group * 8192 + 1) * 1024;
    let file = std::fs::File::options().write(true).open(image.path()).unwrap();
    for at in [1024, copy(1), copy(3)] {
        file.write_all_at(&noise(2048), at).unwrap();
    }
    let report = checked(image.path(), true).unwrap();
    assert!(
        report.clean && report.findings[0].kind.code() == "superblock-invalid",
        "{}",
        told(Some(&report))
    );
    image.assert_sound("after the copy of the fifth group stood in");
    for group in [1, 3, 5] {
        let how = format!("{}", group * 8192 + 1);
        let copy = image.copy();
        let args = ["-fn", "-b", &how, "-B", "1024"].map(str::to_owned);
        let output = vmwright_judges::output(
            "e2fsck",
            args.iter().map(AsRef::as_ref).chain([copy.path().as_os_str()]),
        );
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("Pass 5") && !text.contains("Bad magic"), "{group}: {text}");
    }
}
