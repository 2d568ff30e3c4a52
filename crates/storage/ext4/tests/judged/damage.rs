//! Damaged volumes, and disks that fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vmwright_disk::{Disk, Extent, MemDisk};
use vmwright_ext4::{ErrorKind, Ext4, Options};
use vmwright_judges::need;
use vmwright_vfs::FileSystem;
use vmwright_vfs::conformance::Op;

use crate::images::{Image, named};
use crate::oracle;
use crate::random::effort;
use crate::writing::open;

/// Words that give the same operations each time.
fn words(seed: u64, count: usize) -> Vec<[u32; 4]> {
    let bytes = crate::populate::noise(seed, count * 16);
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    bytes.chunks(16).map(|b| [word(&b[..4]), word(&b[4..8]), word(&b[8..12]), word(&b[12..])]).collect()
}

/// A small volume with a bit of everything in it.
fn sample(kind: &str) -> Vec<u8> {
    let image = Image::make(named(kind), 8);
    let mut volume = open(&image);
    for words in words(3, 400) {
        let _ = Op::from_words(words, 60_000).apply(&mut volume);
    }
    volume.sync().unwrap();
    drop(volume);
    image.assert_sound("before it is damaged");
    let bytes = std::fs::read(image.path()).unwrap();
    assert!(oracle::walk(&bytes).unwrap().len() > 60);
    bytes
}

/// Where the sample is not zero: damage elsewhere mostly goes unread.
fn interesting(bytes: &[u8]) -> Vec<usize> {
    let used = bytes.chunks(64).enumerate().filter(|(_, chunk)| chunk.iter().any(|&byte| byte != 0));
    used.map(|(number, _)| number * 64).collect()
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases: cases * effort(), failure_persistence: None, ..Config::default() })
}

#[test]
fn flipped_bits_are_told_or_harmless_and_never_end_the_program() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["default", "plain", "ext2_1k", "ext3", "inline", "quota_1k"] {
        let bytes = sample(kind);
        let places = interesting(&bytes);
        let flips = prop::collection::vec((0..places.len(), 0..64 * 8_usize), 1..4);
        runner(60)
            .run(&(flips, any::<u64>()), |(flips, seed)| {
                let mut damaged = bytes.clone();
                for (place, bit) in flips {
                    damaged[places[place] + bit / 8] ^= 1 << (bit % 8);
                }
                let _ = oracle::walk(&damaged);
                oracle::change(&damaged, &words(seed, 30));
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn with_checksums_one_flipped_bit_never_changes_what_is_known() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["default", "1k", "inline"] {
        let bytes = sample(kind);
        let (places, before) = (interesting(&bytes), oracle::walk(&bytes).unwrap());
        let flip = (0..places.len(), 0..64 * 8_usize);
        runner(120)
            .run(&flip, |(place, bit)| {
                let mut damaged = bytes.clone();
                damaged[places[place] + bit / 8] ^= 1 << (bit % 8);
                if let Ok(after) = oracle::walk(&damaged) {
                    prop_assert!(after == before, "{}", first_difference(&before, &after));
                }
                Ok(())
            })
            .unwrap();
    }
}

fn first_difference(before: &BTreeMap<Vec<u8>, String>, after: &BTreeMap<Vec<u8>, String>) -> String {
    let changed = before.iter().find(|(path, known)| after.get(*path) != Some(known));
    format!("{changed:.300?}, then {:.300?}", changed.and_then(|(path, _)| after.get(path)))
}

#[test]
fn cut_volumes_are_corrupt() {
    need!("mke2fs", "e2fsck", "debugfs");
    let bytes = sample("default");
    for len in [0, 1, 1023, 1024, 2047, 2048, 5000, 1 << 20, (8 << 20) - 1] {
        assert_eq!(oracle::walk(&bytes[..len]).unwrap_err(), ErrorKind::Corrupt, "{len}");
    }
}

#[test]
fn noise_is_not_a_volume() {
    for seed in 0..20 {
        let mut bytes = crate::populate::noise(seed, 1 << 20);
        assert_eq!(oracle::walk(&bytes).unwrap_err(), ErrorKind::Corrupt);
        bytes[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        assert!(oracle::walk(&bytes).is_err());
    }
}

/// A disk whose writes fail from the n-th on.
struct Failing {
    disk: MemDisk,
    left: AtomicI64,
}

impl Failing {
    fn spend(&self) -> vmwright_disk::Result<()> {
        match self.left.fetch_sub(1, Ordering::Relaxed) > 0 {
            true => Ok(()),
            false => {
                let error = std::io::Error::other("the cable came loose");
                Err(vmwright_disk::Error::host("write", std::path::Path::new("disk"), error))
            }
        }
    }
}

impl Disk for Failing {
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        self.disk.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        self.spend()?;
        self.disk.write_at(data, offset)
    }
    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.spend()?;
        self.disk.zero_at(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.disk.discard(offset, len)
    }
    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        self.disk.set_len(len)
    }
    fn flush(&self) -> vmwright_disk::Result<()> {
        self.spend()
    }
    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        self.disk.extent_at(offset)
    }
}

#[test]
fn a_write_that_fails_is_told_and_tried_again_later() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("default"), 8);
    let bytes = std::fs::read(image.path()).unwrap();
    let script = words(11, 300);
    let (mut told, mut whole) = (0, 0);
    for left in (0..60).chain((60..400).step_by(17)) {
        let disk = Arc::new(Failing { disk: MemDisk::from_bytes(bytes.clone()), left: AtomicI64::new(left) });
        let mut failed = false;
        let mut volume = Ext4::open(disk.clone(), Options::writable()).unwrap();
        for words in &script {
            failed |= Op::from_words(*words, 60_000).apply(&mut volume) == Err(ErrorKind::Io);
        }
        failed |= volume.sync().is_err();
        if failed {
            told += 1;
        }
        // With the cable back, what is in memory can still be written, and is sound but for what was refused.
        let works_again = !failed;
        disk.left.store(i64::MAX, Ordering::Relaxed);
        volume.sync().unwrap();
        drop(volume);
        if works_again {
            whole += 1;
            Image::from_bytes(&disk.disk.to_bytes()).assert_sound(&format!("after {left} writes"));
        }
    }
    assert!(told > 20 && whole > 0, "{told} told, {whole} whole");
}
