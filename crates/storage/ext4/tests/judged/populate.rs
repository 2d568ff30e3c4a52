//! What the kernel is told to put into a volume.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, FileType, Mode, XattrFlags};

/// Bytes without a pattern that a mistake could hide behind; the same for equal seeds.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Makes one of everything, and a directory with this many names.
pub(crate) fn everything(top: &Path, names: usize) {
    files(&top.join("files"));
    directories(&top.join("directories"), names);
    specials(&top.join("specials"));
    attributes(&top.join("attributes"));
}

fn enter(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
}

fn files(dir: &Path) {
    enter(dir);
    for len in [0, 1, 59, 60, 61, 100, 160, 1023, 1024, 4095, 4096, 4097, 70_000, 3_000_000] {
        std::fs::write(dir.join(format!("of-{len}")), noise(len, len as usize)).unwrap();
    }
    let sparse = File::create(dir.join("sparse")).unwrap();
    for at in [0, 12 * 1024, 300_000, 5_000_000, 20_000_000, 70_000_000] {
        sparse.write_all_at(&noise(at, 5000), at).unwrap();
    }
    sparse.set_len(72_000_001).unwrap();
    // Every other kibibyte: as many extents as there are blocks.
    let fragmented = File::create(dir.join("fragmented")).unwrap();
    for number in 0..1500 {
        fragmented.write_all_at(&noise(number, 1024), number * 8192).unwrap();
    }
    std::fs::write(dir.join("shrunk"), noise(5, 900_000)).unwrap();
    let shrunk = OpenOptions::new().write(true).open(dir.join("shrunk")).unwrap();
    shrunk.set_len(12_345).unwrap();
    shrunk.set_len(50_000).unwrap();
    let reserved = File::create(dir.join("reserved")).unwrap();
    // ext2 and ext3 have no such thing.
    if rustix::fs::fallocate(&reserved, FallocateFlags::empty(), 0, 1 << 20).is_ok() {
        reserved.write_all_at(&noise(6, 10_000), 200_000).unwrap();
        rustix::fs::fallocate(&reserved, FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20).unwrap();
        rustix::fs::fallocate(
            &reserved,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            50_000,
            99_000,
        )
        .unwrap();
    }
    for number in 0..200 {
        std::fs::write(dir.join(format!("gone-{number}")), noise(number, 6000)).unwrap();
    }
    for number in (0..200).step_by(2) {
        std::fs::remove_file(dir.join(format!("gone-{number}"))).unwrap();
    }
}

fn directories(dir: &Path, names: usize) {
    enter(dir);
    let mut deep = dir.join("deep");
    for _ in 0..40 {
        enter(&deep);
        deep = deep.join("a name of some length");
    }
    let large = dir.join("large");
    enter(&large);
    for number in 0..names {
        File::create(large.join(format!("entry-{number:05}"))).unwrap();
    }
    let odd = dir.join("odd");
    enter(&odd);
    for number in 0..60 {
        let name = format!("ünïcödé-{number}-{}", "ÿ".repeat(number));
        File::create(odd.join(name)).unwrap();
    }
    for number in 0..40 {
        File::create(odd.join(format!("{number:0255}"))).unwrap();
    }
    File::create(odd.join(OsStr::from_bytes(b"\n\x01\xff\\ "))).unwrap();
    let emptied = dir.join("emptied");
    enter(&emptied);
    for number in 0..400 {
        File::create(emptied.join(format!("a long name for a short life {number}"))).unwrap();
    }
    for number in 0..400 {
        std::fs::remove_file(emptied.join(format!("a long name for a short life {number}"))).unwrap();
    }
    for few in 1..12 {
        let small = dir.join(format!("few-{few}"));
        enter(&small);
        for number in 0..few {
            enter(&small.join(format!("{number}-{}", "x".repeat(few))));
        }
    }
    std::fs::set_permissions(dir.join("few-1"), PermissionsExt::from_mode(0o3751)).unwrap();
}

fn specials(dir: &Path) {
    enter(dir);
    for len in [1, 30, 58, 59, 60, 61, 100, 900] {
        symlink("t".repeat(len), dir.join(format!("link-{len}"))).unwrap();
    }
    let make = |name: &str, kind, device| {
        let mode = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, dir.join(name), kind, mode, device).unwrap();
    };
    make("fifo", FileType::Fifo, 0);
    make("socket", FileType::Socket, 0);
    make("char-old", FileType::CharacterDevice, rustix::fs::makedev(5, 1));
    make("char-new", FileType::CharacterDevice, rustix::fs::makedev(300, 70_000));
    make("block", FileType::BlockDevice, rustix::fs::makedev(259, 3));
    std::fs::write(dir.join("linked"), b"linked").unwrap();
    for number in 0..20 {
        std::fs::hard_link(dir.join("linked"), dir.join(format!("linked-{number}"))).unwrap();
    }
    for (name, seconds) in [("old", -1_000_000_000), ("new", 4_000_000_000), ("far", 9_000_000_000)] {
        let file = File::create(dir.join(name)).unwrap();
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&file, &times).unwrap();
    }
    std::os::unix::fs::chown(dir.join("old"), Some(70_000), Some(4_000_000_000)).unwrap();
    std::fs::set_permissions(dir.join("new"), PermissionsExt::from_mode(0o6711)).unwrap();
}

/// An ACL as Linux hands it over.
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn attributes(dir: &Path) {
    enter(dir);
    // Whether there is room depends on the kind of volume; what counts is what the kernel then shows.
    let set = |path: &PathBuf, name: &str, value: &[u8]| {
        let _ = rustix::fs::lsetxattr(path, name, value, XattrFlags::empty());
    };
    let full =
        acl(&[(1, 6, !0), (2, 4, 1000), (2, 7, 2000), (4, 4, !0), (8, 1, 50), (0x10, 7, !0), (0x20, 0, !0)]);
    for number in 0..8 {
        let path = dir.join(format!("file-{number}"));
        std::fs::write(&path, noise(number, 30 * number as usize)).unwrap();
        set(&path, "user.same", b"shared by all");
        set(&path, "security.selinux", b"system_u:object_r:etc_t:s0\0");
        set(&path, "user.large", &noise(1, 600));
        if number % 2 == 1 {
            set(&path, "user.own", &noise(number, 40));
            set(&path, "trusted.empty", b"");
            set(&path, "user.n\u{e4}me", b"not ascii");
        }
    }
    let capable = dir.join("capable");
    std::fs::write(&capable, b"#!").unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set(&capable, "security.capability", &capability);
    set(&capable, "system.posix_acl_access", &full);
    let inherits = dir.join("inherits");
    enter(&inherits);
    set(&inherits, "system.posix_acl_default", &full);
    std::fs::write(inherits.join("child"), b"").unwrap();
    enter(&inherits.join("directory"));
    let huge = dir.join("huge");
    std::fs::write(&huge, b"").unwrap();
    set(&huge, "user.huge", &noise(9, 3500));
    set(&huge, "user.beyond-a-block", &noise(9, 20_000));
    let link = dir.join("link");
    symlink("nowhere", &link).unwrap();
    set(&link, "trusted.on-a-link", b"yes");
}
