//! Whole disks, judged by qemu-img: convert, compare, measure, map, checksum.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::*;
use vmwright_disk::{Disk, ErrorKind, MemDisk};
use vmwright_image::copy::{self, ConvertOptions};
use vmwright_image::{Compat, CreateOptions, Format, Layout, LuksOptions, Qcow2Options};
use vmwright_judges::{need, output, run};

fn quiet(_done: u64, _total: u64) {}

/// Data, zeros that are written, holes and something compressible, with ends at odd places.
fn sample(size: usize) -> Vec<u8> {
    let mut numbers = Numbers(11);
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        let len = (1 + numbers.below(300_000) as usize).min(size - at);
        match numbers.below(4) {
            0 => bytes[at..at + len].copy_from_slice(&numbers.bytes(len)),
            1 => bytes[at..at + len].fill(numbers.next() as u8),
            _ => {}
        }
        at += len;
    }
    bytes
}

/// What a map says about one sector: depth, present, zero, offset of data in the file.
type Sector = (u64, bool, bool, Option<u64>);

fn sectors(map: &Value) -> Vec<Sector> {
    let mut out = Vec::new();
    for entry in map.as_array().unwrap() {
        let number = |key: &str| entry[key].as_u64().unwrap();
        // QEMU calls zeros data too where they have a place.
        assert!(entry["data"] == true || entry["zero"] == true, "{entry}");
        assert_eq!(number("start"), out.len() as u64 * 512);
        for index in 0..number("length").div_ceil(512) {
            let zero = entry["zero"] == true;
            // Zeros may have a place too, which does not matter.
            let offset = entry["offset"].as_u64().filter(|_| !zero).map(|offset| offset + index * 512);
            out.push((number("depth"), entry["present"] == true, zero, offset));
        }
    }
    out
}

fn assert_same_map(path: &Path, format: &str) {
    let theirs = qemu_img(&format!("map --output=json -f {format} {{}}"), &[path]);
    let theirs = sectors(&serde_json::from_str(&theirs).unwrap());
    let image = open(path, true);
    let ours = sectors(&serde_json::to_value(copy::map(&image).unwrap()).unwrap());
    assert_eq!(ours.len(), theirs.len());
    for (index, (ours, theirs)) in ours.into_iter().zip(theirs).enumerate() {
        let at = index as u64 * 512;
        let knows_more = ours.2 && !theirs.2 && (ours.0, ours.1) == (theirs.0, theirs.1);
        if knows_more {
            // A hole of the host within an allocated cluster, where qemu-img does not look.
            let mut bytes = [1; 512];
            image.read_at(&mut bytes, at).unwrap();
            assert_eq!(bytes, [0; 512], "{} at {at}", path.display());
        } else {
            assert_eq!(ours, theirs, "{} at {at}", path.display());
        }
    }
}

#[test]
fn conversions_are_exact_in_every_direction() {
    need!("qemu-img");
    let folder = Folder::new();
    let (raw, image, back) = (folder.path("raw"), folder.path("image"), folder.path("back"));
    let bytes = sample(5_000_704);
    std::fs::write(&raw, &bytes).unwrap();
    for (cluster_bits, refcount_bits, compat, compress) in [
        (16, 16, Compat::V1_1, false),
        (16, 16, Compat::V1_1, true),
        (9, 1, Compat::V1_1, true),
        (9, 64, Compat::V1_1, false),
        (21, 8, Compat::V1_1, true),
        (12, 2, Compat::V1_1, true),
        (12, 4, Compat::V1_1, false),
        (16, 16, Compat::V0_10, true),
        (14, 32, Compat::V1_1, false),
    ] {
        let qcow2 = Qcow2Options {
            cluster_size: 1 << cluster_bits,
            refcount_bits,
            compat,
            ..Qcow2Options::default()
        };
        let options = ConvertOptions {
            layout: Layout::Qcow2(qcow2),
            compress,
            force: true,
            threads: 3,
            ..ConvertOptions::new(Format::Qcow2)
        };
        copy::convert(&open(&raw, true), &image, &options, &quiet).unwrap();
        check(&image);
        qemu_img("compare -q -f raw -F qcow2 {} {}", &[&raw, &image]);
        assert_same_map(&image, "qcow2");

        let options = ConvertOptions { force: true, ..ConvertOptions::new(Format::Raw) };
        copy::convert(&open(&image, true), &back, &options, &quiet).unwrap();
        assert!(std::fs::read(&back).unwrap() == bytes, "cluster bits {cluster_bits}");
        assert_same_map(&back, "raw");
    }
}

#[test]
fn compression_saves_about_as_much_as_qemu_img_does() {
    need!("qemu-img");
    let folder = Folder::new();
    let (raw, ours, theirs) = (folder.path("raw"), folder.path("ours"), folder.path("theirs"));
    let text: String = (0..400_000).map(|line| format!("line {line} of {}\n", line % 97)).collect();
    std::fs::write(&raw, &text.as_bytes()[..4 << 20]).unwrap();
    let options = ConvertOptions { compress: true, ..ConvertOptions::new(Format::Qcow2) };
    copy::convert(&open(&raw, true), &ours, &options, &quiet).unwrap();
    qemu_img("convert -c -O qcow2 {} {}", &[&raw, &theirs]);
    let len = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(len(&ours) <= len(&theirs) * 5 / 4, "{} against {}", len(&ours), len(&theirs));
}

#[test]
fn chains_convert_flat_and_map_alike() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let (base, middle, top) = (folder.path("base"), folder.path("middle"), folder.path("top"));
    std::fs::write(&base, sample(1_500_160)).unwrap();
    qemu_img("create -q -f qcow2 -o cluster_size=4k -F raw -b {} {} 2M", &[&base, &middle]);
    qemu_io(&middle, "qcow2", &["write -P 1 100k 30k", "write -z 300k 64k", "write -P 2 1800k 9k"]);
    qemu_img("create -q -f qcow2 -F qcow2 -b {} {} 4M", &[&middle, &top]);
    qemu_io(
        &top,
        "qcow2",
        &["write -P 3 64k 64k", "write -z 512k 128k", "discard 1M 64k", "write -P 4 3M 1k"],
    );
    for (path, format) in [(&base, "raw"), (&middle, "qcow2"), (&top, "qcow2")] {
        assert_same_map(path, format);
    }
    let flat = folder.path("flat");
    copy::convert(&open(&top, true), &flat, &ConvertOptions::new(Format::Qcow2), &quiet).unwrap();
    check(&flat);
    qemu_img("compare -q {} {}", &[&top, &flat]);
    assert!(qemu_content(&top) == content(&open(&flat, true)));
}

#[test]
fn maps_of_our_own_writes_and_of_snapshots_are_alike() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    qemu_img("create -q -f qcow2 -o cluster_size=4k {} 4M", &[&path]);
    let image = open(&path, false);
    image.write_at(&[1; 100_000], 5000).unwrap();
    image.zero_at(20_000, 30_000).unwrap();
    image.discard(60_000, 20_000).unwrap();
    image.write_at(&[2; 10_000], 3_000_000).unwrap();
    image.flush().unwrap();
    drop(image);
    qemu_img("snapshot -c first {}", &[&path]);
    assert_same_map(&path, "qcow2");
    let image = open(&path, false);
    image.write_at(&[3; 50_000], 10_000).unwrap();
    image.flush().unwrap();
    drop(image);
    check(&path);
    assert_same_map(&path, "qcow2");
}

#[test]
fn sizes_are_measured_as_qemu_img_does() {
    need!("qemu-img");
    let folder = Folder::new();
    let (raw, image) = (folder.path("raw"), folder.path("image"));
    std::fs::write(&raw, sample(3_000_832)).unwrap();
    qemu_img("convert -O qcow2 -o cluster_size=4k {} {}", &[&raw, &image]);
    for (options, qcow2) in [
        ("cluster_size=64k", Qcow2Options::default()),
        (
            "cluster_size=512,refcount_bits=64",
            Qcow2Options { cluster_size: 512, refcount_bits: 64, ..Default::default() },
        ),
        (
            "cluster_size=2M,refcount_bits=1",
            Qcow2Options { cluster_size: 2 << 20, refcount_bits: 1, ..Default::default() },
        ),
        (
            "encrypt.format=luks,encrypt.key-secret=key",
            Qcow2Options { encrypt: Some(LuksOptions::default()), ..Default::default() },
        ),
    ] {
        let theirs = qemu_img(
            &format!(
                "measure --object secret,id=key,data=a --output=json -O qcow2 -o {options} -f qcow2 {{}}"
            ),
            &[&image],
        );
        let target = CreateOptions::laid_out(Layout::Qcow2(qcow2), 0);
        let ours = serde_json::to_value(copy::measure(&open(&image, true), &target).unwrap()).unwrap();
        let theirs: Value = serde_json::from_str(&theirs).unwrap();
        for key in ["required", "fully-allocated"] {
            assert_eq!(ours[key], theirs[key], "{options}");
        }
    }
}

#[test]
fn what_qemu_img_cannot_measure_is_measured_from_above() {
    let folder = Folder::new();
    let bytes = sample(9_000_448);
    let (raw, path) = (folder.path("raw"), folder.path("image"));
    std::fs::write(&raw, &bytes).unwrap();
    copy::convert(&open(&raw, true), &folder.path("sparse"), &ConvertOptions::new(Format::Raw), &quiet)
        .unwrap();
    let source = open(&folder.path("sparse"), true);
    let full = MemDisk::from_bytes(Numbers(4).bytes(9_000_448));
    let mut measured = 0;
    for format in [Format::Raw, Format::Qcow2, Format::Vhd, Format::Vhdx, Format::Vdi, Format::Vmdk] {
        for option in
            ["", "subformat=fixed", "static=on", "subformat=monolithicFlat", "subformat=streamOptimized"]
        {
            let mut layout = Layout::new(format);
            if let Some((key, value)) = option.split_once('=')
                && layout.set(key, value).is_err()
            {
                continue;
            }
            let compress = option.ends_with("streamOptimized");
            let options = ConvertOptions { force: true, compress, layout, ..ConvertOptions::new(format) };
            let target = CreateOptions::laid_out(options.layout.clone(), 0);
            let files = || -> u64 {
                let entries = std::fs::read_dir(folder.path("")).unwrap().map(Result::unwrap);
                let made = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("image"));
                made.map(|entry| entry.metadata().unwrap().len()).sum()
            };
            for (disk, all) in [(&source as &dyn Disk, false), (&full, true)] {
                match copy::convert(disk, &path, &options, &quiet) {
                    Err(error) if error.kind() == ErrorKind::Unsupported => continue,
                    made => made.unwrap(),
                };
                let bound = copy::measure(disk, &target).unwrap();
                let bound = if all { bound.fully_allocated } else { bound.required };
                let len = files();
                assert!(len <= bound, "{format:?} {option}: {len} bytes, measured {bound}");
                assert!(bound <= len + len / 4 + (8 << 20), "{format:?} {option}: {len}, measured {bound}");
                measured += 1;
            }
            for entry in std::fs::read_dir(folder.path("")).unwrap().map(Result::unwrap) {
                if entry.file_name().to_string_lossy().starts_with("image") {
                    std::fs::remove_file(entry.path()).unwrap();
                }
            }
        }
    }
    assert!(measured >= 8, "only {measured} were made");
}

#[test]
fn a_disk_of_a_size_alone_is_measured_as_qemu_img_does() {
    need!("qemu-img");
    for options in
        ["cluster_size=64k", "cluster_size=2M,extended_l2=on", "preallocation=full", "preallocation=metadata"]
    {
        for size in ["1M", "100G", "3T"] {
            let theirs = qemu_img(&format!("measure --output=json -O qcow2 -o {options} --size {size}"), &[]);
            let theirs: Value = serde_json::from_str(&theirs).unwrap();
            let mut layout = Layout::new(Format::Qcow2);
            for (key, value) in options.split(',').map(|option| option.split_once('=').unwrap()) {
                layout.set(key, value).unwrap();
            }
            let bytes = [("1M", 1 << 20), ("100G", 100 << 30), ("3T", 3u64 << 40)];
            let bytes = bytes.iter().find(|(name, _)| *name == size).unwrap().1;
            let ours = copy::measure_empty(&CreateOptions::laid_out(layout, bytes)).unwrap();
            let ours = serde_json::to_value(ours).unwrap();
            for key in ["required", "fully-allocated"] {
                assert_eq!(ours[key], theirs[key], "{options} {size}");
            }
        }
    }
}

#[test]
fn strict_comparison_agrees_with_qemu_img() {
    need!("qemu-img");
    let folder = Folder::new();
    let paths = ["plain", "same", "zeros", "stored", "longer"].map(|name| folder.path(name));
    for path in &paths {
        qemu_img("create -q -f qcow2 {} 2M", &[path]);
        qemu_io(path, "qcow2", &["write -P 1 0 128k", "write -P 2 1M 64k"]);
    }
    qemu_io(&paths[2], "qcow2", &["write -z 512k 128k"]);
    qemu_io(&paths[3], "qcow2", &["write -P 0 512k 128k"]);
    qemu_img("resize -q {} 3M", &[&paths[4]]);
    for (index, path) in paths.iter().enumerate() {
        let theirs =
            output("qemu-img", ["compare", "-q", "-s", paths[0].to_str().unwrap(), path.to_str().unwrap()]);
        let ours = copy::compare_strictly(&open(&paths[0], true), &open(path, true), 2, &quiet).unwrap();
        assert_eq!(ours.is_same(), theirs.status.success(), "{}: {ours:?}", path.display());
        let content = copy::compare(&open(&paths[0], true), &open(path, true), 2, &quiet).unwrap();
        assert_eq!(content.first_difference, None);
        assert_eq!(
            ours.first_difference_in_allocation,
            [None, None, Some(512 << 10), Some(512 << 10), None][index]
        );
    }
}

#[test]
fn both_digests_are_found_at_once_and_are_those_of_the_raw_disk() {
    let bytes = sample(7_000_321);
    let disk = MemDisk::from_bytes(bytes.clone());
    let folder = Folder::new();
    let image = folder.path("image");
    copy::convert(
        &disk,
        &image,
        &ConvertOptions { compress: true, ..ConvertOptions::new(Format::Qcow2) },
        &quiet,
    )
    .unwrap();
    // The image has whole sectors.
    let whole = [bytes, vec![0; 7_000_321usize.next_multiple_of(512) - 7_000_321]].concat();
    for threads in [1, 4] {
        let wanted = copy::Digests { sha256: true, blake3: true };
        let found = copy::checksum(&open(&image, true), wanted, threads, &quiet).unwrap();
        assert_eq!(found.blake3.unwrap(), *blake3::hash(&whole).as_bytes());
        assert_eq!(found.sha256.unwrap(), copy::sha256(&MemDisk::from_bytes(whole.clone()), &quiet).unwrap());
        let only = copy::checksum(
            &open(&image, true),
            copy::Digests { sha256: false, blake3: true },
            threads,
            &quiet,
        );
        let json = serde_json::to_value(only.unwrap()).unwrap();
        assert_eq!(json["blake3"].as_str().unwrap(), blake3::hash(&whole).to_hex().as_str());
        assert!(json.get("sha256").is_none());
    }
}

#[test]
fn a_checksum_of_what_cannot_be_read_is_an_error() {
    let folder = Folder::new();
    let path = folder.path("image");
    let bytes = Numbers(2).bytes(5 << 20).iter().map(|byte| byte & 3).collect();
    let options = ConvertOptions { compress: true, ..ConvertOptions::new(Format::Qcow2) };
    copy::convert(&MemDisk::from_bytes(bytes), &path, &options, &quiet).unwrap();
    let mut image = std::fs::read(&path).unwrap();
    let middle = image.len() / 2;
    // No block of a deflate stream begins so.
    image[middle..].fill(0xff);
    std::fs::write(&path, image).unwrap();
    let wanted = copy::Digests { sha256: true, blake3: true };
    let error = copy::checksum(&open(&path, true), wanted, 3, &quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn the_first_difference_is_found_and_zeros_may_be_missing() {
    let a = MemDisk::new(9_000_000);
    let b = MemDisk::new(9_500_000);
    let result = copy::compare(&a, &b, 4, &quiet).unwrap();
    assert_eq!((result.first_difference, result.same_size), (None, false));
    b.write_at(&[1], 9_400_000).unwrap();
    assert_eq!(copy::compare(&a, &b, 4, &quiet).unwrap().first_difference, Some(9_400_000));
    a.write_at(&[1], 7_000_001).unwrap();
    a.write_at(&[1], 8_999_999).unwrap();
    assert_eq!(copy::compare(&a, &b, 4, &quiet).unwrap().first_difference, Some(7_000_001));
}

#[test]
fn the_checksum_is_that_of_the_raw_disk() {
    need!("sha256sum");
    let folder = Folder::new();
    let (raw, image) = (folder.path("raw"), folder.path("image"));
    std::fs::write(&raw, sample(3_000_832)).unwrap();
    copy::convert(&open(&raw, true), &image, &ConvertOptions::new(Format::Qcow2), &quiet).unwrap();
    let ours: String =
        copy::sha256(&open(&image, true), &quiet).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(run("sha256sum", [&raw]).starts_with(&ours));
}

#[test]
fn a_conversion_that_fails_leaves_no_file() {
    let folder = Folder::new();
    let target = folder.path("image");
    let options = ConvertOptions { compress: true, ..ConvertOptions::new(Format::Raw) };
    let error = copy::convert(&MemDisk::new(4096), &target, &options, &quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    copy::convert(&MemDisk::new(4096), &target, &ConvertOptions::new(Format::Raw), &quiet).unwrap();
    let again = copy::convert(&MemDisk::new(4096), &target, &ConvertOptions::new(Format::Raw), &quiet);
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(std::fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn progress_ends_at_the_total() {
    let last = std::sync::atomic::AtomicU64::new(0);
    let source = MemDisk::from_bytes(sample(9_000_000));
    let folder = Folder::new();
    let count = |done, total| {
        assert_eq!(total, 9_000_000);
        last.fetch_max(done, std::sync::atomic::Ordering::Relaxed);
    };
    copy::convert(&source, &folder.path("image"), &ConvertOptions::new(Format::Qcow2), &count).unwrap();
    assert_eq!(last.into_inner(), 9_000_000);
}

#[test]
fn qemu_refuses_an_image_that_is_open_here() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    qemu_img("create -q -f qcow2 {} 1M", &[&path]);
    let image = open(&path, false);
    let theirs = output("qemu-img", ["info", path.to_str().unwrap()]);
    assert!(!theirs.status.success());
    drop(image);
    qemu_img("info {}", &[&path]);
}
