//! What a conversion can besides converting: end early, go on, verify, keep to a rate, build on a base.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::*;
use vmwright_disk::{Disk, ErrorKind, Extent, MemDisk};
use vmwright_image::copy::{self, Base, ConvertOptions, SourceIdentity};
use vmwright_image::{BackingFile, Compat, Format, FormatChoice, Layout, OpenOptions, Qcow2Options};
use vmwright_judges::{need, run};

fn quiet(_done: u64, _total: u64) {}

/// Noise, something compressible and holes, with a length that is no multiple of anything.
fn sample(len: usize) -> Vec<u8> {
    let mut numbers = Numbers(5);
    let mut bytes = vec![0; len];
    let mut at = 0;
    while at < len {
        let step = (1 + numbers.below(200_000) as usize).min(len - at);
        match numbers.below(3) {
            0 => bytes[at..at + step].copy_from_slice(&numbers.bytes(step)),
            1 => bytes[at..at + step]
                .iter_mut()
                .enumerate()
                .for_each(|(index, byte)| *byte = (index / 9) as u8),
            _ => {}
        }
        at += step;
    }
    bytes
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn packed() -> ConvertOptions {
    ConvertOptions { compress: true, ..ConvertOptions::new(Format::Qcow2) }
}

/// A disk that sets a flag once some bytes were read.
struct Tripwire {
    disk: MemDisk,
    read: AtomicU64,
    limit: u64,
    flag: Arc<AtomicBool>,
}

impl Tripwire {
    fn new(bytes: &[u8], limit: u64) -> (Self, Arc<AtomicBool>) {
        let flag = Arc::new(AtomicBool::new(false));
        let disk = MemDisk::from_bytes(bytes.to_vec());
        (Self { disk, read: AtomicU64::new(0), limit, flag: flag.clone() }, flag)
    }
}

impl Disk for Tripwire {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        if self.read.fetch_add(buf.len() as u64, Ordering::Relaxed) >= self.limit {
            self.flag.store(true, Ordering::Relaxed);
        }
        self.disk.read_at(buf, offset)
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> vmwright_disk::Result<()> {
        Err(vmwright_disk::Error::read_only("a source"))
    }

    fn zero_at(&self, _offset: u64, _len: u64) -> vmwright_disk::Result<()> {
        Err(vmwright_disk::Error::read_only("a source"))
    }

    fn discard(&self, _offset: u64, _len: u64) -> vmwright_disk::Result<()> {
        Err(vmwright_disk::Error::read_only("a source"))
    }

    fn set_len(&self, _len: u64) -> vmwright_disk::Result<()> {
        Err(vmwright_disk::Error::read_only("a source"))
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        self.disk.extent_at(offset)
    }
}

#[test]
fn the_same_source_makes_the_same_image_with_any_number_of_threads() {
    let folder = Folder::new();
    let source = MemDisk::from_bytes(sample(20_000_257));
    for options in [ConvertOptions::new(Format::Qcow2), packed()] {
        let make = |threads| {
            let path = folder.path("image");
            let options = ConvertOptions { threads, force: true, ..options.clone() };
            copy::convert(&source, &path, &options, &quiet).unwrap();
            std::fs::read(path).unwrap()
        };
        let one = make(1);
        for threads in [2, 3, 8] {
            assert!(make(threads) == one, "{threads} threads, compressed: {}", options.compress);
        }
    }
}

#[test]
fn deflate_refers_back_no_further_than_every_reader_remembers() {
    need!("python3");
    need!("qemu-img");
    let folder = Folder::new();
    let (path, script) = (folder.path("image"), folder.path("read.py"));
    // What was here exactly 4 KiB, 8 KiB and 32 KiB before is here again.
    let mut bytes = Numbers(3).bytes(4 << 20);
    for distance in [4096, 8192, 32768, 300] {
        let start = distance * 40;
        for index in 0..20_000 {
            bytes[start + distance + index] = bytes[start + index];
        }
    }
    for (index, byte) in bytes[1 << 20..2 << 20].iter_mut().enumerate() {
        *byte = b"some words that come again and again, "[index * 7 / 5 % 38];
    }
    copy::convert(&MemDisk::from_bytes(bytes.clone()), &path, &packed(), &quiet).unwrap();
    std::fs::write(folder.path("raw"), &bytes).unwrap();
    qemu_img("compare -q -f raw -F qcow2 {} {}", &[&folder.path("raw"), &path]);
    // As dissect.hypervisor reads, and worse: Python's zlib is given little room, so that the window is all there is.
    let program = "
import sys, zlib
f = open(sys.argv[1], 'rb').read()
raw = open(sys.argv[2], 'rb').read()
u64 = lambda at: int.from_bytes(f[at:at + 8], 'big')
l2 = u64(u64(40)) & 0x00fffffffffffe00
packed = 0
for index in range(len(raw) >> 16):
    entry = u64(l2 + index * 8)
    if not entry >> 62 & 1:
        continue
    packed += 1
    host = entry & (1 << 54) - 1
    end = host - host % 512 + ((entry >> 54 & 255) + 1) * 512
    stream, left, out = zlib.decompressobj(-12), f[host:end], b''
    while len(out) < 65536:
        piece = stream.decompress(left, 100)
        left = stream.unconsumed_tail
        assert piece, 'a short cluster'
        out += piece
    assert out[:65536] == raw[index << 16:index + 1 << 16], index
print(packed)
";
    std::fs::write(&script, program).unwrap();
    let count: u64 = run("python3", [&script, &path, &folder.path("raw")]).trim().parse().unwrap();
    assert!(count >= 16, "{count} clusters are packed");
}

#[test]
fn a_cancelled_conversion_leaves_nothing() {
    let folder = Folder::new();
    for options in [ConvertOptions::new(Format::Qcow2), packed(), ConvertOptions::new(Format::Raw)] {
        let (source, flag) = Tripwire::new(&sample(30_000_000), 8 << 20);
        let options = ConvertOptions { cancel: Some(flag), threads: 3, ..options };
        let error = copy::convert(&source, &folder.path("image"), &options, &quiet).unwrap_err();
        assert!(error.is_cancelled(), "{error}");
        assert!(names(&folder.path("")).is_empty());
    }
}

#[test]
fn a_conversion_goes_on_where_it_was_cancelled() {
    need!("qemu-img");
    let folder = Folder::new();
    let (raw, path) = (folder.path("raw"), folder.path("image"));
    let bytes = sample(30_000_128);
    std::fs::write(&raw, &bytes).unwrap();
    let identity = SourceIdentity::of_files([&raw]).unwrap();
    let v2 = Layout::Qcow2(Qcow2Options { compat: Compat::V0_10, ..Qcow2Options::default() });
    for options in [
        ConvertOptions::new(Format::Raw),
        ConvertOptions::new(Format::Qcow2),
        packed(),
        ConvertOptions { layout: v2, ..packed() },
    ] {
        let options = ConvertOptions { resume: Some(identity.clone()), verify: true, ..options };
        let (source, flag) = Tripwire::new(&bytes, 12 << 20);
        let cancelled = ConvertOptions { cancel: Some(flag), ..options.clone() };
        assert!(copy::convert(&source, &path, &cancelled, &quiet).unwrap_err().is_cancelled());
        assert_eq!(names(&folder.path("")), ["image.vmwright-part", "image.vmwright-progress", "raw"]);
        let half = std::fs::read(folder.path("image.vmwright-part")).unwrap();
        let note = std::fs::read(folder.path("image.vmwright-progress")).unwrap();

        // Another source, or the same one changed, or another way to copy.
        let other = ConvertOptions {
            resume: Some(SourceIdentity::of_files([&raw, &raw]).unwrap()),
            ..options.clone()
        };
        let level = ConvertOptions { level: Some(1), ..options.clone() };
        let snapshot = ConvertOptions { resume: Some(identity.with(b"another snapshot")), ..options.clone() };
        for wrong in [other, level, snapshot] {
            let error =
                copy::convert(&MemDisk::from_bytes(bytes.clone()), &path, &wrong, &quiet).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(std::fs::read(folder.path("image.vmwright-part")).unwrap() == half);
        }
        std::fs::write(folder.path("image.vmwright-progress"), &note[1..]).unwrap();
        let error = copy::convert(&MemDisk::from_bytes(bytes.clone()), &path, &options, &quiet).unwrap_err();
        assert!(error.to_string().contains("record is damaged"), "{error}");
        std::fs::write(folder.path("image.vmwright-progress"), &note).unwrap();

        let done = copy::convert(&open(&raw, true), &path, &options, &quiet).unwrap();
        assert!(done.resumed_from >= 8 << 20 && done.verified && done.atomic, "{done:?}");
        assert!(done.bytes_read <= bytes.len() as u64 - done.resumed_from);
        assert_eq!(names(&folder.path("")), ["image", "raw"]);
        if options.layout.format() == Format::Qcow2 {
            check(&path);
        }
        assert!(qemu_content(&path) == bytes);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_is_written_in_one_go_is_not_gone_on_with() {
    let folder = Folder::new();
    let raw = folder.path("raw");
    std::fs::write(&raw, sample(1_000_000)).unwrap();
    let mut layout = Layout::new(Format::Vmdk);
    layout.set("subformat", "streamOptimized").unwrap();
    let resume = Some(SourceIdentity::of_files([&raw]).unwrap());
    let options = ConvertOptions { layout, resume, ..ConvertOptions::new(Format::Vmdk) };
    let error = copy::convert(&open(&raw, true), &folder.path("image"), &options, &quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(names(&folder.path("")), ["raw"]);
}

#[test]
fn what_a_crash_left_without_a_record_is_begun_anew() {
    let folder = Folder::new();
    let (raw, path) = (folder.path("raw"), folder.path("image"));
    std::fs::write(&raw, sample(3_000_000)).unwrap();
    std::fs::write(folder.path("image.vmwright-part"), b"half").unwrap();
    let identity = Some(SourceIdentity::of_files([&raw]).unwrap());
    let options = ConvertOptions { resume: identity, ..ConvertOptions::new(Format::Raw) };
    assert_eq!(copy::convert(&open(&raw, true), &path, &options, &quiet).unwrap().resumed_from, 0);
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&raw).unwrap());
}

#[test]
fn an_image_that_does_not_hold_what_was_read_is_not_made() {
    let folder = Folder::new();
    let bytes = sample(4_000_000);
    let source = MemDisk::from_bytes(bytes.clone());
    let options = ConvertOptions { verify: true, threads: 2, ..packed() };
    assert!(copy::convert(&source, &folder.path("good"), &options, &quiet).unwrap().verified);
    // Somebody else writes to the unfinished file: the progress at the end comes before the verification.
    let part = folder.path("bad.vmwright-part");
    let spoil = |done: u64, total: u64| {
        if done == total {
            let file = std::fs::OpenOptions::new().write(true).open(&part).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0xee; 64], 700_000).unwrap();
        }
    };
    let raw = ConvertOptions { verify: true, ..ConvertOptions::new(Format::Raw) };
    let error = copy::convert(&source, &folder.path("bad"), &raw, &spoil).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("re-read"), "{error}");
    assert_eq!(names(&folder.path("")), ["good"]);
}

#[test]
fn a_rate_is_kept_to() {
    let folder = Folder::new();
    let source = MemDisk::from_bytes(Numbers(1).bytes(8 << 20));
    let options = ConvertOptions { rate_limit: Some(16 << 20), ..ConvertOptions::new(Format::Raw) };
    let start = Instant::now();
    copy::convert(&source, &folder.path("image"), &options, &quiet).unwrap();
    // 8 MiB at 16 MiB a second, of which the first did not wait.
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
}

#[test]
fn only_what_differs_from_the_base_is_stored() {
    need!("qemu-img");
    let folder = Folder::new();
    let (base, path) = (folder.path("base"), folder.path("image"));
    let mut bytes = sample(6_000_128);
    std::fs::write(&base, &bytes).unwrap();
    // Changed, cleared, and longer than the base.
    bytes[1_000_000..1_000_010].fill(0x77);
    bytes[2_000_000..2_400_000].fill(0);
    bytes.extend(Numbers(8).bytes(300_000));
    bytes.resize(6_400_512, 0);
    for compress in [false, true] {
        let name = BackingFile { name: "base".into(), format: Some("raw".into()) };
        let base = Base { name, disk: Arc::new(open(&base, true)), parent: None };
        let options = ConvertOptions {
            base: Some(base),
            compress,
            force: true,
            verify: true,
            ..ConvertOptions::new(Format::Qcow2)
        };
        let done = copy::convert(&MemDisk::from_bytes(bytes.clone()), &path, &options, &quiet).unwrap();
        assert!(done.bytes_written < 700_000, "{done:?}");
        check(&path);
        assert!(qemu_content(&path) == bytes);
        assert!(content(&open(&path, true)) == bytes);
    }
}

#[test]
fn zeros_that_are_stored_stay_stored_if_nobody_looks_for_them() {
    let folder = Folder::new();
    let source = MemDisk::new(8 << 20);
    for (find_zeros, written) in [(true, 0), (false, 8 << 20)] {
        let options = ConvertOptions { find_zeros, force: true, ..ConvertOptions::new(Format::Qcow2) };
        let done = copy::convert(&source, &folder.path("image"), &options, &quiet).unwrap();
        assert_eq!((done.bytes_read, done.bytes_written), (8 << 20, written));
    }
}

#[test]
fn zeros_inside_of_blocks_take_no_space() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new();
    // Four kilobytes of every 32: no block of any format is without data.
    let mut bytes = vec![0; 8 << 20];
    bytes.chunks_mut(32 << 10).for_each(|piece| piece[4096..8192].fill(7));
    for format in [Format::Raw, Format::Qcow2, Format::Vmdk, Format::Vhd, Format::Vhdx, Format::Vdi] {
        let path = folder.path(&format!("{format:?}"));
        let options = ConvertOptions { verify: true, ..ConvertOptions::new(format) };
        let done = copy::convert(&MemDisk::from_bytes(bytes.clone()), &path, &options, &quiet).unwrap();
        assert_eq!(done.bytes_written, 1 << 20, "{format:?}");
        assert!(qemu_content(&path)[..bytes.len()] == bytes, "{format:?}");
        let stored = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(stored < 5 << 20, "{format:?} takes {stored} bytes");
    }
}

#[test]
fn levels_trade_size_for_time_and_do_not_change_the_content() {
    let folder = Folder::new();
    let source = MemDisk::from_bytes(sample(4_000_000));
    let len = |level| {
        let options = ConvertOptions { level: Some(level), force: true, verify: true, ..packed() };
        copy::convert(&source, &folder.path("image"), &options, &quiet).unwrap().bytes_written
    };
    assert!(len(9) < len(1));
    let options = ConvertOptions { level: Some(40), force: true, ..packed() };
    let error = copy::convert(&source, &folder.path("image"), &options, &quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_huge_sparse_disk_costs_next_to_nothing() {
    let folder = Folder::new();
    let raw = folder.path("raw");
    std::fs::File::create(&raw).unwrap().set_len(1 << 40).unwrap();
    let source = open(&raw, true);
    for format in [Format::Raw, Format::Qcow2] {
        let path = folder.path(&format!("{format:?}"));
        let start = Instant::now();
        let done = copy::convert(&source, &path, &ConvertOptions::new(format), &quiet).unwrap();
        assert_eq!(done.bytes_read, 0);
        let image = open(&path, true);
        assert_eq!(image.len(), 1 << 40);
        assert_eq!(copy::map(&image).unwrap().len(), 1);
        assert!(copy::compare(&source, &image, 2, &quiet).unwrap().is_same());
        assert!(start.elapsed() < Duration::from_secs(2), "{format:?} took {:?}", start.elapsed());
    }
}

#[test]
fn an_image_in_memory_is_a_source_like_any_other() {
    // Through the disk interface alone: no host file, no extents but opaque ones.
    let folder = Folder::new();
    let bytes = sample(2_000_000);
    let first = folder.path("first");
    copy::convert(&MemDisk::from_bytes(bytes.clone()), &first, &packed(), &quiet).unwrap();
    let file = Arc::new(MemDisk::from_bytes(std::fs::read(&first).unwrap()));
    let image =
        vmwright_image::Image::open(file, FormatChoice::Exact(Format::Qcow2), OpenOptions::read_only())
            .unwrap();
    let second = folder.path("second");
    copy::convert(&image, &second, &ConvertOptions::new(Format::Raw), &quiet).unwrap();
    assert!(std::fs::read(&second).unwrap()[..bytes.len()] == bytes);
}

#[test]
fn the_host_copies_what_nobody_looks_at() {
    let folder = Folder::new();
    let (raw, image, path) = (folder.path("raw"), folder.path("source"), folder.path("image"));
    let bytes = sample(9_000_000 / 512 * 512);
    std::fs::write(&raw, &bytes).unwrap();
    copy::convert(&open(&raw, true), &image, &ConvertOptions::new(Format::Qcow2), &quiet).unwrap();
    for source in [&raw, &image] {
        let options = ConvertOptions { find_zeros: false, force: true, ..ConvertOptions::new(Format::Raw) };
        copy::convert(&open(source, true), &path, &options, &quiet).unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}

#[test]
fn nobody_changes_an_image_while_it_is_compacted() {
    let folder = Folder::new();
    let path = folder.path("image");
    let bytes = sample(3_000_000);
    copy::convert(&MemDisk::from_bytes(bytes.clone()), &path, &ConvertOptions::new(Format::Qcow2), &quiet)
        .unwrap();
    let tried = AtomicBool::new(false);
    let change = |_: u64, _: u64| {
        let error = vmwright_disk::HostFile::open(&path, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        tried.store(true, Ordering::Relaxed);
    };
    let gate = vmwright_image::chain::DenyAll;
    let how = copy::CompactOptions { compress: true, ..copy::CompactOptions::default() };
    // Before the old image is first looked at, too: by who looks for free space.
    let find = |_: &Arc<dyn Disk>| -> vmwright_disk::Result<Box<dyn vmwright_disk::FreeMap>> {
        change(0, 0);
        Err(vmwright_disk::Error::read_only("this one"))
    };
    let choice = FormatChoice::Exact(Format::Qcow2);
    assert!(copy::compact(&path, choice, &gate, Some(&find), &how, &change).is_err());
    assert!(tried.swap(false, Ordering::Relaxed));
    copy::compact(&path, choice, &gate, None, &how, &change).unwrap();
    assert!(tried.into_inner());
    assert!(content(&open(&path, true))[..bytes.len()] == bytes);
    assert_eq!(names(&folder.path("")), ["image"]);
}
