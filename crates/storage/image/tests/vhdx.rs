//! VHDX images against the model of a disk, and against qemu-img in both directions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod model;
mod support;

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;
use support::{
    Folder, Numbers, change, content, open, open_with_small_cache, qemu_content, qemu_img, qemu_io,
};
use vmwright_disk::conformance::{Features, check, check_read_only};
use vmwright_disk::{Disk, ErrorKind, HostFile, MemDisk};
use vmwright_image::copy::{self, ConvertOptions};
use vmwright_image::{
    CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, VhdxOptions, VhdxSubformat, create,
    create_on, describe,
};
use vmwright_judges::{need, run, tool};

const MIB: u64 = 1 << 20;

fn small(subformat: VhdxSubformat) -> VhdxOptions {
    VhdxOptions { subformat, block_size: 1 << 20, ..VhdxOptions::default() }
}

fn make(options: &VhdxOptions, len: u64) -> Arc<dyn Disk> {
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    create_on(&file, &CreateOptions::laid_out(Layout::Vhdx(options.clone()), len)).unwrap();
    Arc::new(Image::open(file, FormatChoice::Exact(Format::Vhdx), OpenOptions::default()).unwrap())
}

#[test]
fn images_conform_to_the_contract_of_disks() {
    let features = Features { granularity: 512, resizable: true, operations: 100 };
    check(&|len| make(&small(VhdxSubformat::Dynamic), len), features);
    check(&|len| make(&small(VhdxSubformat::Fixed), len), features);
    let wide = VhdxOptions { logical_sector_size: 4096, ..small(VhdxSubformat::Dynamic) };
    check(&|len| make(&wide, len), Features { granularity: 4096, ..features });
}

#[test]
fn images_opened_for_reading_conform() {
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    let options = CreateOptions::laid_out(Layout::Vhdx(small(VhdxSubformat::Dynamic)), 3 * MIB);
    create_on(&file, &options).unwrap();
    let exact = FormatChoice::Exact(Format::Vhdx);
    let image = Image::open(file.clone(), exact, OpenOptions::default()).unwrap();
    image.write_at(&[7; 100_000], MIB - 1000).unwrap();
    image.flush().unwrap();
    check_read_only(&Image::open(file, exact, OpenOptions::read_only()).unwrap(), &content(&image));
}

fn cases() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 500 } else { 12 }
}

fn qemu_judges(bytes: &[u8], expected: &[u8]) {
    if tool("qemu-img").is_none() {
        return;
    }
    let folder = Folder::new();
    let (image, raw) = (folder.path("image"), folder.path("raw"));
    std::fs::write(&image, bytes).unwrap();
    std::fs::write(&raw, expected).unwrap();
    qemu_img("check -q -f vhdx {}", &[&image]);
    qemu_img("compare -q -f vhdx -F raw {} {}", &[&image, &raw]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_equals_the_model(
        script in proptest::collection::vec(any::<u8>(), 40..240), fixed in any::<bool>(), zero in any::<bool>(),
    ) {
        let subformat = if fixed { VhdxSubformat::Fixed } else { VhdxSubformat::Dynamic };
        let layout = Layout::Vhdx(VhdxOptions { block_state_zero: zero, ..small(subformat) });
        let size = 4 * MIB + 512;
        let shape = model::Shape { layout, size, backing: None, resizable: true, scale: 1 << 17 };
        let (bytes, expected) = model::run(&shape, &model::steps(&script, shape.scale));
        qemu_judges(&bytes, &expected);
    }
}

fn qemu_info(path: &Path) -> Value {
    let text = run("qemu-img", ["info".as_ref(), "--output=json".as_ref(), path.as_os_str()]);
    stripped(serde_json::from_str(&text).unwrap())
}

fn our_info(path: &Path) -> Value {
    let file = HostFile::open(path, true).unwrap();
    stripped(serde_json::to_value(describe(&file, FormatChoice::Probe).unwrap()).unwrap())
}

/// Without names of files as the caller gave them, and space as counted in blocks by the host.
fn stripped(mut value: Value) -> Value {
    for key in ["filename", "actual-size"] {
        value.as_object_mut().unwrap().remove(key);
    }
    value
}

/// The options that `qemu-img create -o` and we both take.
const OPTIONS: [&str; 10] = [
    "subformat=dynamic",
    "subformat=fixed",
    "block_size=1M",
    "block_size=256M",
    "block_size=2M,subformat=fixed",
    "log_size=3M",
    "block_state_zero=off",
    "block_state_zero=on,block_size=1M",
    "block_size=4M,log_size=2M,block_state_zero=off",
    "block_size=0",
];

fn layout(options: &str) -> Layout {
    let mut layout = Layout::new(Format::Vhdx);
    for option in options.split(',') {
        let (key, value) = option.split_once('=').unwrap();
        layout.set(key, value).unwrap();
    }
    layout
}

/// Writes in the first and the last block and across others, the same for both programs.
const WRITES: [(u64, u64, u8); 5] = [
    (0, 4096, 17),
    (1_000_000, 3_000_000, 33),
    (8_388_608 - 512, 1024, 49),
    (10_485_248, 512, 65),
    (512, 512, 81),
];
const SIZE: u64 = 10_485_760;

fn written() -> Vec<u8> {
    let mut raw = vec![0; SIZE as usize];
    for (offset, len, byte) in WRITES {
        raw[offset as usize..(offset + len) as usize].fill(byte);
    }
    raw
}

#[test]
fn what_we_make_with_every_option_is_what_qemu_reads_and_writes_on() {
    need!("qemu-img");
    need!("qemu-io");
    let folder = Folder::new();
    let (path, raw) = (folder.path("image.vhdx"), folder.path("raw"));
    for options in OPTIONS {
        create(&path, &CreateOptions::laid_out(layout(options), SIZE), true).unwrap();
        qemu_img("check -q -f vhdx {}", &[&path]);
        assert_eq!(our_info(&path), qemu_info(&path), "{options}");
        let image = open(&path, false);
        for (offset, len, byte) in WRITES {
            image.write_at(&vec![byte; len as usize], offset).unwrap();
        }
        image.flush().unwrap();
        drop(image);
        std::fs::write(&raw, written()).unwrap();
        qemu_img("check -q -f vhdx {}", &[&path]);
        qemu_img("compare -q -f vhdx -F raw {} {}", &[&path, &raw]);
        qemu_io(
            &path,
            "vhdx",
            &["write -P 5 2M 100k", "write -P 6 9M 512", "read -P 33 1000448 1000000", "flush"],
        );
        let mut expected = written();
        expected[2 << 20..][..100 << 10].fill(5);
        expected[9 << 20..][..512].fill(6);
        assert!(content(&open(&path, true)) == expected, "{options}");
        assert!(open(&path, true).check().unwrap().is_clean(), "{options}");
    }
}

#[test]
fn what_qemu_makes_with_every_option_is_what_we_read_and_write_on() {
    need!("qemu-img");
    need!("qemu-io");
    let folder = Folder::new();
    let (path, raw) = (folder.path("image.vhdx"), folder.path("raw"));
    std::fs::write(&raw, written()).unwrap();
    for options in OPTIONS {
        let _ = std::fs::remove_file(&path);
        qemu_img(&format!("create -q -f vhdx -o {options} {{}} {SIZE}"), &[&path]);
        assert_eq!(our_info(&path), qemu_info(&path), "{options}");
        assert_eq!(open(&path, true).check().unwrap().corruptions, 0, "{options}");
        if options != "block_state_zero=off" && !options.contains("state_zero=off") {
            qemu_img(&format!("convert -q -f raw -O vhdx -o {options} {{}} {{}}"), &[&raw, &path]);
        } else {
            let writes = WRITES.map(|(offset, len, byte)| format!("write -P {byte} {offset} {len}"));
            qemu_io(&path, "vhdx", &writes.each_ref().map(String::as_str));
        }
        assert!(content(&open(&path, true)) == written(), "{options}");
        let image = open_with_small_cache(&path);
        image.write_at(&[99; 70_000], 5_000_000).unwrap();
        image.discard(0, 8 << 20).unwrap();
        image.write_at(&[98; 70_000], 6_000_000).unwrap();
        image.flush().unwrap();
        assert!(image.check().unwrap().is_clean(), "{options}");
        let ours = content(&image);
        drop(image);
        qemu_img("check -q -f vhdx {}", &[&path]);
        assert!(qemu_content(&path) == ours, "{options}");
    }
}

#[test]
fn sizes_are_rounded_and_blocks_chosen_as_qemu_does() {
    need!("qemu-img");
    let folder = Folder::new();
    let (ours, theirs) = (folder.path("ours"), folder.path("theirs"));
    let gib = 1u64 << 30;
    // QEMU cannot open an empty disk whose table is no longer than it needs to be.
    for size in [1, 513, MIB, gib, gib + 1, 100 * gib, 100 * gib + 512, 32 << 40, (32 << 40) + 512, 64 << 40]
    {
        let _ = std::fs::remove_file(&theirs);
        create(&ours, &CreateOptions::new(Format::Vhdx, size), true).unwrap();
        qemu_img(&format!("create -q -f vhdx {{}} {size}"), &[&theirs]);
        assert_eq!(our_info(&ours), our_info(&theirs), "{size}");
        assert_eq!(our_info(&ours), qemu_info(&ours), "{size}");
        qemu_img("check -q -f vhdx {}", &[&ours]);
    }
}

#[test]
fn the_end_of_the_largest_disk_can_be_written() {
    need!("qemu-io");
    let folder = Folder::new();
    let path = folder.path("image");
    create(&path, &CreateOptions::laid_out(layout("block_size=1M"), 64 << 40), false).unwrap();
    let image = open_with_small_cache(&path);
    let last = (64 << 40) - 4096;
    image.write_at(&[7; 4096], last).unwrap();
    image.write_at(&[8; 4096], 4095 * MIB - 1000).unwrap();
    image.flush().unwrap();
    assert_eq!(image.extent_at(1 << 40).unwrap().start, 1 << 40);
    drop(image);
    qemu_io(
        &path,
        "vhdx",
        &[&format!("read -P 7 {last} 4096"), &format!("read -P 8 {} 4096", 4095 * MIB - 1000)],
    );
}

#[test]
fn random_changes_under_a_small_cache_are_what_qemu_reads() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    for (seed, options) in ["block_size=1M", "block_size=2M,subformat=fixed"].into_iter().enumerate() {
        create(&path, &CreateOptions::laid_out(layout(options), 20 * MIB + 512), true).unwrap();
        let mut numbers = Numbers(seed as u64);
        let mut model = vec![0; (20 * MIB + 512) as usize];
        for _ in 0..4 {
            let image = open_with_small_cache(&path);
            for _ in 0..40 {
                change(&image, &mut model, &mut numbers, 300_000);
            }
            assert!(content(&image) == model);
            image.flush().unwrap();
            assert!(image.check().unwrap().is_clean());
        }
        qemu_img("check -q -f vhdx {}", &[&path]);
        assert!(qemu_content(&path) == model);
    }
}

#[test]
fn growing_past_the_room_of_the_table_moves_it() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    // A table of 1 MiB has 131,072 entries, of which every 4,097th is of a sector bitmap.
    create(&path, &CreateOptions::laid_out(layout("block_size=1M"), 131_000 * MIB), false).unwrap();
    let image = open(&path, false);
    image.write_at(&[7; 4096], 100_000 * MIB).unwrap();
    image.set_len(300_000 * MIB + 512).unwrap();
    image.write_at(&[8; 4096], 299_999 * MIB).unwrap();
    image.flush().unwrap();
    assert!(image.check().unwrap().is_clean());
    drop(image);
    qemu_img("check -q -f vhdx {}", &[&path]);
    qemu_io(
        &path,
        "vhdx",
        &[
            &format!("read -P 7 {} 4096", 100_000 * MIB),
            &format!("read -P 8 {} 4096", 299_999 * MIB),
            &format!("read -P 0 {} 1M", 299_000 * MIB),
        ],
    );
    let image = open(&path, false);
    image.set_len(3 * MIB).unwrap();
    image.flush().unwrap();
    drop(image);
    assert_eq!(our_info(&path), qemu_info(&path));
    assert!(open(&path, true).check().unwrap().is_clean());
}

#[test]
fn blocks_that_were_given_back_are_used_again() {
    let options = small(VhdxSubformat::Dynamic);
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    create_on(&file, &CreateOptions::laid_out(Layout::Vhdx(options), 16 * MIB)).unwrap();
    let exact = FormatChoice::Exact(Format::Vhdx);
    let image = Image::open(file.clone(), exact, OpenOptions::default()).unwrap();
    image.write_at(&vec![7; 8 << 20], 0).unwrap();
    image.flush().unwrap();
    let len = file.len();
    image.discard(0, 4 * MIB).unwrap();
    image.flush().unwrap();
    image.write_at(&vec![8; 2 << 20], 8 * MIB).unwrap();
    image.flush().unwrap();
    assert_eq!(file.len(), len);
    // The gaps are found again by whoever opens the image next.
    let image = Image::open(file.clone(), exact, OpenOptions::default()).unwrap();
    image.write_at(&[9; 100], 12 * MIB).unwrap();
    image.flush().unwrap();
    assert_eq!(file.len(), len);
    assert_eq!(content(&image)[12 << 20..][..200], [[9; 100], [0; 100]].concat());
    assert!(image.check().unwrap().is_clean());
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_is_made() {
    let folder = Folder::new();
    let path = folder.path("image");
    let good = VhdxOptions::default;
    let bad = [
        (VhdxOptions { block_size: 512 << 10, ..good() }, MIB),
        (VhdxOptions { block_size: 3 << 20, ..good() }, MIB),
        (VhdxOptions { block_size: 512 << 20, ..good() }, MIB),
        (VhdxOptions { log_size: 0, ..good() }, MIB),
        (VhdxOptions { log_size: 1_500_000, ..good() }, MIB),
        (VhdxOptions { logical_sector_size: 1024, ..good() }, MIB),
        (VhdxOptions { physical_sector_size: 0, ..good() }, MIB),
        (good(), (64 << 40) + 1),
    ];
    for (vhdx, size) in bad {
        let options = CreateOptions::laid_out(Layout::Vhdx(vhdx), size);
        assert_eq!(
            create(&path, &options, false).unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{options:?}"
        );
        assert!(!path.exists());
    }
    let mut layout = Layout::new(Format::Vhdx);
    for (key, value) in [("subformat", "sparse"), ("block_size", "1X"), ("log_size", "8G"), ("nocow", "on")] {
        assert_eq!(layout.set(key, value).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

/// Data, zeros that are written and holes, with ends at odd places.
fn patchwork(size: usize) -> Vec<u8> {
    let mut numbers = Numbers(5);
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        let len = (1 + numbers.below(700_000) as usize).min(size - at);
        if numbers.below(2) == 0 {
            bytes[at..at + len].copy_from_slice(&numbers.bytes(len));
        }
        at += len;
    }
    bytes
}

#[test]
fn conversions_to_and_from_vhdx_are_what_qemu_makes_of_them() {
    need!("qemu-img");
    let folder = Folder::new();
    let (raw, path, back) = (folder.path("raw"), folder.path("image.vhdx"), folder.path("back"));
    let disk = patchwork(21 * MIB as usize + 512);
    std::fs::write(&raw, &disk).unwrap();
    for options in ["block_size=1M", "block_size=8M", "subformat=fixed", "log_size=2M,block_state_zero=off"] {
        let source = HostFile::open(&raw, true).unwrap();
        let mut how = ConvertOptions::new(Format::Vhdx);
        how.layout = layout(options);
        how.threads = 4;
        how.force = true;
        copy::convert(&source, &path, &how, &|_, _| {}).unwrap();
        qemu_img("check -q -f vhdx {}", &[&path]);
        qemu_img("compare -q -f vhdx -F raw {} {}", &[&path, &raw]);
        assert!(open(&path, true).check().unwrap().is_clean());

        let how = ConvertOptions { force: true, ..ConvertOptions::new(Format::Raw) };
        copy::convert(&open(&path, true), &back, &how, &|_, _| {}).unwrap();
        assert!(std::fs::read(&back).unwrap() == disk, "{options}");
    }
    let image = open(&path, true);
    // Blocks that only zeros are in are left out.
    assert!(image.info().unwrap().actual_size < 21 * MIB + 12 * MIB);
}

#[test]
fn a_last_block_that_the_file_holds_in_part_keeps_its_place() {
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    let layout = Layout::Vhdx(VhdxOptions { block_size: 2 << 20, ..VhdxOptions::default() });
    create_on(&file, &CreateOptions::laid_out(layout, 2 * MIB + 4096)).unwrap();
    let open =
        || Image::open(file.clone(), FormatChoice::Exact(Format::Vhdx), OpenOptions::default()).unwrap();
    let image = open();
    image.write_at(&[7; 4096], 2 * MIB).unwrap();
    image.flush().unwrap();
    drop(image);
    // As other programs may leave it: nothing is behind the end of the disk.
    file.set_len(file.len() - 2 * MIB + 4096).unwrap();
    let image = open();
    image.write_at(&[8; 2 << 20], 0).unwrap();
    image.flush().unwrap();
    assert!(image.check().unwrap().is_safe(), "{:?}", image.check());
    image.set_len(4 * MIB).unwrap();
    let mut model = vec![8; 2 << 20];
    model.resize(2 * MIB as usize + 4096, 7);
    model.resize(4 * MIB as usize, 0);
    assert!(content(&image) == model);
}
