//! Writing qcow2: against a flat model, and as QEMU sees the result.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::Path;
use std::sync::Arc;

use support::*;
use vmwright_disk::{Disk, ErrorKind, MemDisk, Window};
use vmwright_image::{
    Compat, CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, Preallocation, Qcow2Options,
    chain, create, create_on,
};
use vmwright_judges::need;

/// Changes an image at random, reopening it now and then, and has qemu-img judge it.
fn change_and_judge(path: &Path, mut model: Vec<u8>, numbers: &mut Numbers, scale: u64, rounds: usize) {
    for round in 0..rounds {
        let image = if round % 2 == 0 { open(path, false) } else { open_with_small_cache(path) };
        for _ in 0..12 {
            change(&image, &mut model, numbers, scale);
        }
        image.flush().unwrap();
        assert!(content(&image) == model, "reading back differs");
    }
    check(path);
    assert!(content(&open(path, true)) == model, "reading back after reopening differs");
    assert!(qemu_content(path) == model, "qemu-img reads something else");
}

#[test]
fn random_changes_are_right_for_every_geometry() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    let mut numbers = Numbers(1);
    for (index, cluster_bits) in [9, 10, 12, 14, 16, 17, 21, 9, 12, 16].into_iter().enumerate() {
        let refcount_bits = [1, 2, 4, 8, 16, 32, 64, 64, 1, 8][index];
        let qcow2 = Qcow2Options {
            cluster_size: 1 << cluster_bits,
            refcount_bits,
            lazy_refcounts: index % 3 == 0,
            preallocation: if index % 4 == 1 { Preallocation::Metadata } else { Preallocation::Off },
            ..Qcow2Options::default()
        };
        let size = (40u64 << cluster_bits).min(6 << 20) + 512;
        let options = CreateOptions::laid_out(Layout::Qcow2(qcow2), size);
        create(&path, &options, true).unwrap();
        check(&path);
        change_and_judge(&path, vec![0; size as usize], &mut numbers, 1 << cluster_bits, 4);
    }
}

#[test]
fn random_changes_are_right_in_version_2_with_and_without_a_base() {
    need!("qemu-img");
    let folder = Folder::new();
    let (path, base) = (folder.path("image"), folder.path("base"));
    let mut numbers = Numbers(2);
    let qcow2 = Qcow2Options { compat: Compat::V0_10, cluster_size: 4096, ..Qcow2Options::default() };
    let options = CreateOptions::laid_out(Layout::Qcow2(qcow2), 300_032);
    create(&path, &options, false).unwrap();
    change_and_judge(&path, vec![0; 300_032], &mut numbers, 4096, 4);

    let bytes = numbers.bytes(200_192);
    std::fs::write(&base, &bytes).unwrap();
    let command = "create -q -f qcow2 -o compat=0.10,cluster_size=4096 -F raw -b {} {} 300032";
    qemu_img(command, &[&base, &path]);
    let mut model = bytes.clone();
    model.resize(300_032, 0);
    change_and_judge(&path, model, &mut numbers, 4096, 4);
    assert!(std::fs::read(&base).unwrap() == bytes, "the base changed");
}

#[test]
fn random_changes_of_an_overlay_leave_its_shorter_base_alone() {
    need!("qemu-img");
    let folder = Folder::new();
    let (path, base) = (folder.path("image"), folder.path("base"));
    let mut numbers = Numbers(3);
    let bytes = numbers.bytes(1_000_960);
    std::fs::write(&base, &bytes).unwrap();
    let size = 1_500_160;
    chain::create_overlay(&path, Path::new("base"), Format::Raw, Some(size), false).unwrap();
    let mut model = bytes.clone();
    model.resize(size as usize, 0);
    change_and_judge(&path, model, &mut numbers, 65536, 5);
    assert!(std::fs::read(&base).unwrap() == bytes, "the base changed");
}

#[test]
fn compressed_clusters_are_read_and_replaced() {
    need!("qemu-img");
    let folder = Folder::new();
    let (raw, path) = (folder.path("raw"), folder.path("image"));
    let mut numbers = Numbers(4);
    let mut bytes = vec![0; 3 << 20];
    for chunk in bytes.chunks_mut(4000) {
        let word = numbers.bytes(16);
        for (index, byte) in chunk.iter_mut().enumerate() {
            *byte = word[index % 16] ^ (index / 160) as u8;
        }
    }
    std::fs::write(&raw, &bytes).unwrap();
    for options in [
        "compression_type=zlib,cluster_size=64k",
        "compression_type=zstd,cluster_size=64k",
        "compat=0.10,cluster_size=4k",
        "cluster_size=2M,refcount_bits=1",
        "cluster_size=512,refcount_bits=64",
    ] {
        let command = format!("convert -c -f raw -O qcow2 -o {options} {{}} {{}}");
        qemu_img(&command, &[&raw, &path]);
        assert!(content(&open(&path, true)) == bytes, "{options}");
        change_and_judge(&path, bytes.clone(), &mut numbers, 16384, 4);
        // Everything written over: nothing compressed is left, and nothing leaked.
        let image = open(&path, false);
        image.write_at(&bytes, 0).unwrap();
        image.flush().unwrap();
        drop(image);
        check(&path);
        qemu_img("compare -q {} {}", &[&raw, &path]);
    }
}

#[test]
fn internal_snapshots_keep_their_content() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = folder.path("image");
    for options in ["cluster_size=64k", "cluster_size=4k,refcount_bits=8", "cluster_size=512,compat=0.10"] {
        let mut numbers = Numbers(5);
        let size = 2_000_384;
        qemu_img(&format!("create -q -f qcow2 -o {options} {{}} {size}"), &[&path]);
        qemu_io(&path, "qcow2", &["write -P 17 0 1M", "write -P 18 1500k 100k", "write -z 200k 64k"]);
        let first = qemu_content(&path);
        qemu_img("snapshot -c first {}", &[&path]);
        let mut model = first.clone();
        let image = open(&path, false);
        for _ in 0..20 {
            change(&image, &mut model, &mut numbers, 65536);
        }
        image.flush().unwrap();
        drop(image);
        check(&path);
        qemu_img("snapshot -c second {}", &[&path]);
        change_and_judge(&path, model.clone(), &mut numbers, 20000, 4);
        assert_eq!(open(&path, true).info().unwrap().snapshots.len(), 2);

        qemu_img("snapshot -a first {}", &[&path]);
        assert!(qemu_content(&path) == first, "{options}: the first snapshot changed");
        assert!(content(&open(&path, true)) == first);
        qemu_img("snapshot -a second {}", &[&path]);
        assert!(qemu_content(&path) == model, "{options}: the second snapshot changed");
        qemu_img("snapshot -d first {}", &[&path]);
        qemu_img("snapshot -d second {}", &[&path]);
        change_and_judge(&path, model, &mut numbers, 20000, 2);
    }
}

#[test]
fn bitmaps_are_marked_before_anything_changes() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    qemu_img("create -q -f qcow2 {} 4M", &[&path]);
    qemu_img("bitmap --add {} changes", &[&path]);
    let flags = |path: &Path| {
        let info = serde_json::to_value(open_alone(path).info().unwrap()).unwrap();
        info["format-specific"]["data"]["bitmaps"][0]["flags"].to_string()
    };
    assert_eq!(flags(&path), r#"["auto"]"#);
    let image = open_alone(&path);
    image.read_at(&mut [0; 512], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    assert_eq!(flags(&path), r#"["auto"]"#);

    let image = open_alone(&path);
    image.write_at(&[1; 512], 0).unwrap();
    drop(image);
    // Not flushed, yet the mark is there.
    assert_eq!(flags(&path), r#"["in-use","auto"]"#);
    let image = open_alone(&path);
    image.write_at(&[1; 512], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    check(&path);
    let theirs = qemu_img("info {}", &[&path]);
    assert!(theirs.contains("in-use"), "{theirs}");
}

#[test]
fn unknown_autoclear_bits_are_cleared_by_the_first_change_only() {
    let folder = Folder::new();
    let path = folder.path("image");
    create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20), false).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[88] = 0x40;
    std::fs::write(&path, &bytes).unwrap();
    let image = open_alone(&path);
    image.flush().unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[88], 0x40);
    image.zero_at(0, 512).unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[88], 0);
}

#[test]
fn a_dirty_image_has_its_refcounts_rebuilt_before_it_is_written() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = folder.path("image");
    for (options, lose_table) in [
        ("lazy_refcounts=on,cluster_size=64k", false),
        ("lazy_refcounts=on,cluster_size=512,refcount_bits=64", false),
        ("lazy_refcounts=on,cluster_size=512,refcount_bits=16", true),
    ] {
        qemu_img(&format!("create -q -f qcow2 -o {options} {{}} 4M"), &[&path]);
        qemu_io(&path, "qcow2", &["write -P 17 0 1M", "write -P 18 3M 100k"]);
        qemu_img("snapshot -c first {}", &[&path]);
        qemu_io(&path, "qcow2", &["write -P 19 0 300k"]);
        qemu_img("bitmap --add {} changes", &[&path]);
        let model = qemu_content(&path);

        // As after a crash: the dirty bit set, and refcounts that never reached the file.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[79] |= 1;
        let number = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let table = number(&bytes, 48) as usize;
        let cluster_size = 1 << bytes[23];
        let entries = if lose_table { cluster_size / 8 } else { 1 };
        for entry in 0..entries {
            let block = number(&bytes, table + entry * 8) as usize;
            if block != 0 {
                bytes[block + 20..block + cluster_size].fill(0);
            }
            if lose_table && entry > 2 {
                bytes[table + entry * 8..][..8].fill(0);
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        assert!(open_alone(&path).info().unwrap().dirty_flag);

        let mut numbers = Numbers(6);
        change_and_judge(&path, model, &mut numbers, 65536, 3);
        assert!(!open_alone(&path).info().unwrap().dirty_flag);
    }
}

#[test]
fn an_image_marked_corrupt_is_read_but_not_written() {
    let folder = Folder::new();
    let path = folder.path("image");
    create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20), false).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[79] |= 2;
    std::fs::write(&path, &bytes).unwrap();
    let image = open_alone(&path);
    image.read_at(&mut [0; 512], 0).unwrap();
    assert!(image.is_read_only());
    assert_eq!(image.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn damage_met_while_writing_marks_the_image_and_ends_the_writing() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20), false).unwrap();
    let image = open_alone(&path);
    image.write_at(&[1; 1 << 18], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    // The second cluster of the disk is where the L1 table is.
    let mut bytes = std::fs::read(&path).unwrap();
    let number = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = number(&bytes, 40);
    let l2 = (number(&bytes, l1 as usize) & !(1 << 63)) as usize;
    bytes[l2 + 8..l2 + 16].copy_from_slice(&(l1 | 1 << 63).to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();

    let image = open_alone(&path);
    image.write_at(&[2; 512], 0).unwrap();
    assert_eq!(image.write_at(&[3; 512], 65536).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(image.is_read_only());
    assert_eq!(image.write_at(&[4; 512], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    drop(image);
    let info = qemu_img("info {}", &[&path]);
    assert!(info.contains("corrupt: true"), "{info}");
}

#[test]
fn compressed_clusters_of_extended_entries_are_replaced_whole() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let (path, raw) = (folder.path("image"), folder.path("raw"));
    let mut model: Vec<u8> = (0..3u32 << 20).map(|index| (index / 5000) as u8).collect();
    std::fs::write(&raw, &model).unwrap();
    qemu_img("convert -c -f raw -O qcow2 -o extended_l2=on,cluster_size=64k {} {}", &[&raw, &path]);
    assert!(content(&open(&path, true)) == model);
    let mut numbers = Numbers(7);
    let image = open(&path, false);
    for scale in [512, 2048, 65536] {
        for _ in 0..8 {
            change(&image, &mut model, &mut numbers, scale);
        }
    }
    image.flush().unwrap();
    drop(image);
    check(&path);
    assert!(qemu_content(&path) == model);
}

#[test]
fn a_small_write_over_a_base_copies_parts_of_a_cluster_only() {
    need!("qemu-img");
    let folder = Folder::new();
    let (path, base) = (folder.path("image"), folder.path("base"));
    let mut model = Numbers(7).bytes(1 << 20);
    std::fs::write(&base, &model).unwrap();
    let command = "create -q -f qcow2 -o extended_l2=on,cluster_size=64k -F raw -b {} {}";
    qemu_img(command, &[&base, &path]);
    let image = open(&path, false);
    image.write_at(&[9; 1000], 67_000).unwrap();
    image.zero_at(70_000, 10_000).unwrap();
    image.flush().unwrap();
    model[67_000..68_000].fill(9);
    model[70_000..80_000].fill(0);
    let depth = |offset| image.extent_at(offset).unwrap().depth;
    // Parts of 2 KiB.
    assert_eq!([63_488, 65_536, 67_584, 69_632, 71_680, 79_872, 81_920].map(depth), [1, 0, 0, 0, 0, 0, 1]);
    assert!(image.extent_at(71_680).unwrap().is_zero());
    drop(image);
    check(&path);
    assert!(qemu_content(&path) == model);
}

#[test]
fn a_table_grows_past_its_first_clusters() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    // 64-bit counts in 512-byte clusters: a block covers 32 KiB, a table cluster 2 MiB.
    let qcow2 = Qcow2Options { cluster_size: 512, refcount_bits: 64, ..Qcow2Options::default() };
    let size = 12 << 20;
    create(&path, &CreateOptions::laid_out(Layout::Qcow2(qcow2), size), false).unwrap();
    let bytes = Numbers(8).bytes(size as usize);
    let image = open(&path, false);
    for (index, chunk) in bytes.chunks(100_000).enumerate() {
        image.write_at(chunk, index as u64 * 100_000).unwrap();
    }
    image.flush().unwrap();
    assert!(content(&image) == bytes);
    drop(image);
    check(&path);
    assert!(qemu_content(&path) == bytes);
}

#[test]
fn several_threads_read_and_write_at_once() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    let size = 8u64 << 20;
    create(&path, &CreateOptions::new(Format::Qcow2, size), false).unwrap();
    let image = open(&path, false);
    let part = size / 4;
    // Parts that do not begin at a cluster, so that neighbours share clusters.
    let start = |index: u64| index * part + if index == 0 { 0 } else { 5000 };
    std::thread::scope(|scope| {
        for index in 0..4 {
            let (image, from) = (&image, start(index));
            let to = if index == 3 { size } else { start(index + 1) };
            scope.spawn(move || {
                let mut numbers = Numbers(index);
                let mut model = vec![0; (to - from) as usize];
                for _ in 0..60 {
                    let offset = numbers.below(to - from);
                    let len = (1 + numbers.below(200_000)).min(to - from - offset);
                    let data = numbers.bytes(len as usize);
                    image.write_at(&data, from + offset).unwrap();
                    model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                    if numbers.below(10) == 0 {
                        image.flush().unwrap();
                    }
                }
                let mut now = vec![0; model.len()];
                image.read_at(&mut now, from).unwrap();
                assert!(now == model, "thread {index} lost a write");
            });
        }
    });
    image.flush().unwrap();
    let bytes = content(&image);
    drop(image);
    check(&path);
    assert!(qemu_content(&path) == bytes);
}

#[test]
fn an_image_on_a_device_that_is_too_small_is_full() {
    let memory = Arc::new(MemDisk::new(0));
    let file: Arc<dyn Disk> = memory.clone();
    create_on(&file, &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
    memory.set_len(file.len() + 3 * 65536 + 512).unwrap();
    // A window has a fixed length, as a device has.
    let device = Arc::new(Window::new(file.clone(), 0, file.len()).unwrap());
    let image = Image::open(device, FormatChoice::Exact(Format::Qcow2), OpenOptions::default()).unwrap();
    image.write_at(&[1; 2 * 65536], 0).unwrap();
    let error = image.write_at(&[2; 2 * 65536], 2 * 65536).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    image.flush().unwrap();
    assert!(image.check().unwrap().is_safe());
    let mut bytes = vec![0; 2 * 65536];
    image.read_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
}
