//! VDI images: what qemu-img makes is read, and what is written here qemu-img reads and finds sound.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod model;
mod support;

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use support::{Folder, Numbers, change, content, qemu_img, qemu_io};
use vmwright_disk::conformance::{self, Features};
use vmwright_disk::{Disk, ErrorKind, MemDisk};
use vmwright_image::chain::{self, AllowAll, ChainOptions};
use vmwright_image::{
    BackingFile, CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, Repair, VdiOptions, copy,
    create, create_on, probe,
};
use vmwright_judges::{need, tool};

const VDI: FormatChoice = FormatChoice::Exact(Format::Vdi);

fn layout(preallocated: bool) -> Layout {
    Layout::Vdi(VdiOptions { preallocated, ..VdiOptions::default() })
}

fn make(layout: &Layout, size: u64) -> Arc<dyn Disk> {
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    create_on(&file, &CreateOptions::laid_out(layout.clone(), size)).unwrap();
    file
}

fn open(file: &Arc<dyn Disk>) -> Image {
    Image::open(file.clone(), VDI, OpenOptions::default()).unwrap()
}

fn open_path(path: &Path) -> Image {
    chain::open(path, VDI, &AllowAll::default(), ChainOptions::default()).unwrap()
}

fn clean(path: &Path) {
    qemu_img("check -q -f vdi {}", &[path]);
}

#[test]
fn vdi_images_conform() {
    let features = Features { granularity: 512, resizable: true, operations: 300 };
    let small =
        |preallocated| Layout::Vdi(VdiOptions { block_size: 4096, preallocated, ..VdiOptions::default() });
    for layout in [layout(false), small(false), small(true)] {
        conformance::check(&|len| Arc::new(open(&make(&layout, len))), features);
        let file = make(&layout, 1 << 20);
        let image = open(&file);
        image.write_at(&[7; 100_000], 1000).unwrap();
        image.flush().unwrap();
        let reader = Image::open(file, VDI, OpenOptions::read_only()).unwrap();
        conformance::check_read_only(&reader, &content(&image));
    }
}

#[test]
fn what_qemu_img_makes_is_read_and_written() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let (raw, path) = (folder.path("raw"), folder.path("image"));
    for options in ["static=off", "static=on"] {
        std::fs::write(&raw, [Numbers(1).bytes(5 << 20), vec![0; (3 << 20) + 512]].concat()).unwrap();
        qemu_img(&format!("convert -f raw -O vdi -o {options} {{}} {{}}"), &[&raw, &path]);
        qemu_io(&path, "vdi", &["write -P 5 7000k 100k"]);
        assert_eq!(probe(&vmwright_disk::HostFile::open(&path, true).unwrap()).unwrap(), Format::Vdi);
        let image = open_path(&path);
        assert!(image.check().unwrap().is_clean(), "{options}");
        let mut model = content(&image);
        assert_eq!(model[7000 << 10], 5);
        let qemu: serde_json::Value =
            serde_json::from_str(&qemu_img("info -U -f vdi --output=json {}", &[&path])).unwrap();
        assert_eq!(qemu["virtual-size"].as_u64(), Some(image.len()), "{options}");
        assert_eq!(qemu["cluster-size"].as_u64(), image.cluster_size(), "{options}");
        let mut numbers = Numbers(2);
        for _ in 0..60 {
            change(&image, &mut model, &mut numbers, 1 << 20);
        }
        image.flush().unwrap();
        drop(image);
        clean(&path);
        std::fs::write(&raw, &model).unwrap();
        qemu_img("compare -f vdi -F raw {} {}", &[&path, &raw]);
    }
}

#[test]
fn blocks_that_are_given_up_are_filled_so_that_qemu_goes_on_writing() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = folder.path("image");
    create(&path, &CreateOptions::new(Format::Vdi, 40 << 20), true).unwrap();
    let image = open_path(&path);
    for block in [30, 2, 7, 11, 3, 25] {
        image.write_at(&vec![block as u8; 1 << 20], block << 20).unwrap();
    }
    image.flush().unwrap();
    image.discard(30 << 20, 1 << 20).unwrap();
    image.discard(7 << 20, 1 << 20).unwrap();
    image.flush().unwrap();
    assert_eq!(image.info().unwrap().virtual_size, 40 << 20);
    let report = image.check().unwrap();
    assert_eq!((report.allocated_clusters, report.is_clean()), (Some(4), true), "{report:?}");
    drop(image);
    clean(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 5 << 20);
    let reads: Vec<String> = [2, 11, 3, 25].map(|b| format!("read -P {b} {}M 1M", b)).to_vec();
    let mut commands: Vec<&str> = vec!["write -P 77 20M 1M", "read -P 0 30M 1M", "read -P 0 7M 1M"];
    commands.extend(reads.iter().map(String::as_str));
    commands.push("read -P 77 20M 1M");
    qemu_io(&path, "vdi", &commands);
    clean(&path);
    let image = open_path(&path);
    let mut byte = [0];
    image.read_at(&mut byte, 20 << 20).unwrap();
    assert_eq!(byte, [77]);
}

#[test]
fn sizes_change_also_where_the_first_blocks_must_make_room() {
    need!("qemu-img");
    let folder = Folder::new();
    let (path, raw) = (folder.path("image"), folder.path("raw"));
    // QEMU leaves no room behind the table: 128 blocks fit.
    qemu_img("create -q -f vdi {} 100M", &[&path]);
    let mut model = vec![0; 6 << 20];
    for (round, size) in
        [120 << 20, 200 << 20, 300u64 << 30, 90 << 20, (600 << 30) + 512, 50 << 20].into_iter().enumerate()
    {
        let image = open_path(&path);
        let data = Numbers(round as u64).bytes(3 << 20);
        image.write_at(&data, (round as u64 % 3) << 20).unwrap();
        model[(round % 3) << 20..][..3 << 20].copy_from_slice(&data);
        image.set_len(size).unwrap();
        assert_eq!(image.len(), size);
        let mut now = vec![1; model.len()];
        image.read_at(&mut now, 0).unwrap();
        assert!(now == model, "{size}");
        image.write_at(&[8; 70_000], size - 70_000).unwrap();
        image.flush().unwrap();
        drop(image);
        clean(&path);
        let info: serde_json::Value =
            serde_json::from_str(&qemu_img("info -f vdi --output=json {}", &[&path])).unwrap();
        assert_eq!(info["virtual-size"].as_u64(), Some(size));
    }
    model.resize(50 << 20, 0);
    let end = model.len() - 70_000;
    model[end..].fill(8);
    std::fs::write(&raw, &model).unwrap();
    qemu_img("compare -f vdi -F raw {} {}", &[&path, &raw]);
    // A static image stays static.
    qemu_img("create -q -f vdi -o static=on {} 3M", &[&path]);
    let image = open_path(&path);
    image.set_len(150 << 20).unwrap();
    assert_eq!(image.check().unwrap().allocated_clusters, Some(150));
    drop(image);
    clean(&path);
}

#[test]
fn a_count_that_is_too_low_is_a_damage_and_one_that_is_too_high_a_leak() {
    let file = make(&layout(false), 5 << 20);
    open(&file).write_at(&[6; 2 << 20], 1 << 20).unwrap();
    let image = open(&file);
    image.write_at(&[6; 2 << 20], 1 << 20).unwrap();
    image.flush().unwrap();
    let expected = content(&image);
    for (count, leaks, corruptions) in [(1u32, 0, 1), (4, 2, 0)] {
        file.write_at(&count.to_le_bytes(), 388).unwrap();
        let image = open(&file);
        let report = image.check().unwrap();
        assert_eq!((report.leaks, report.corruptions), (leaks, corruptions), "{report:?}");
        let report = image.repair(Repair::All).unwrap();
        assert!(report.is_clean() && report.leaks_fixed + report.corruptions_fixed > 0, "{report:?}");
        assert!(content(&open(&file)) == expected);
    }
}

#[test]
fn marked_zeros_are_zeros_and_can_be_written() {
    let file = make(&layout(false), 5 << 20);
    file.write_at(&0xffff_fffe_u32.to_le_bytes(), 512 + 8).unwrap();
    let image = open(&file);
    assert_eq!(copy::map(&image).unwrap()[1].start, 2 << 20);
    assert!(image.extent_at(2 << 20).unwrap().is_zero());
    image.write_at(&[7; 10], (2 << 20) + 5).unwrap();
    image.flush().unwrap();
    assert!(image.check().unwrap().is_clean());
    let now = content(&open(&file));
    assert_eq!((now[(2 << 20) + 4], now[(2 << 20) + 5], now[(2 << 20) + 15]), (0, 7, 0));
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let file = make(&layout(false), 5 << 20);
    file.write_at(&4u32.to_le_bytes(), 76).unwrap();
    let error = Image::open(file, VDI, OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("parent"), "{error}");
    let backing = Some(BackingFile { name: "base".into(), format: None });
    let options = CreateOptions { backing, ..CreateOptions::new(Format::Vdi, 1 << 20) };
    let error = create_on(&(Arc::new(MemDisk::new(0)) as Arc<dyn Disk>), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let huge = CreateOptions::new(Format::Vdi, 1 << 60);
    let error = create_on(&(Arc::new(MemDisk::new(0)) as Arc<dyn Disk>), &huge).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(
        open(&make(&layout(false), 5 << 20)).set_len(1 << 60).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

#[test]
fn given_ids_make_the_same_file_twice() {
    let mut layout = layout(false);
    layout.set("uuid", "01020304-0506-0708-090a-0b0c0d0e0f10").unwrap();
    layout.set("snapshot_uuid", "01020304-0506-0708-090a-0b0c0d0e0f11").unwrap();
    let (a, b) = (make(&layout, 5 << 20), make(&layout, 5 << 20));
    assert_eq!(content(&*a), content(&*b));
    let info = serde_json::to_value(open(&a).info().unwrap()).unwrap();
    assert_eq!(info["format-specific"]["data"]["uuid"], "01020304-0506-0708-090a-0b0c0d0e0f10");
}

#[test]
fn entries_past_the_end_and_shared_places_are_found_and_stop_writing() {
    let file = make(&layout(false), 5 << 20);
    let image = open(&file);
    image.write_at(&[6; 2 << 20], 0).unwrap();
    image.flush().unwrap();
    for raw in [0u32, 2, 5, 70_000, 0xffff_fff0] {
        file.write_at(&raw.to_le_bytes(), 512 + 4).unwrap();
        let image = open(&file);
        assert!(image.check().unwrap().corruptions > 0, "{raw}");
        assert_eq!(image.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::Corrupt, "{raw}");
        let read = image.read_at(&mut [0; 512], 1 << 20);
        assert_eq!(read.is_ok(), raw == 0, "{raw}");
        assert!(!image.repair(Repair::All).unwrap().is_safe());
    }
}

fn cases() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 3000 } else { 60 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_equals_the_model(
        script in proptest::collection::vec(any::<u8>(), 40..400),
        small in any::<bool>(),
        preallocated in any::<bool>(),
    ) {
        let block_size = if small { 4096 } else { 1 << 20 };
        let vdi = VdiOptions { preallocated, block_size, ..VdiOptions::default() };
        let size = if small { 300_032 } else { 3_000_320 };
        let shape = model::Shape {
            layout: Layout::Vdi(vdi),
            size,
            backing: None,
            resizable: true,
            scale: size / 64,
        };
        let (bytes, expected) = model::run(&shape, &model::steps(&script, shape.scale));
        if !small && tool("qemu-img").is_some() {
            let folder = Folder::new();
            let (image, raw) = (folder.path("image"), folder.path("raw"));
            std::fs::write(&image, &bytes).unwrap();
            std::fs::write(&raw, &expected).unwrap();
            clean(&image);
            qemu_img("compare -q -f vdi -F raw {} {}", &[&image, &raw]);
        }
    }
}
