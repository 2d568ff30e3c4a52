//! VHD images: what qemu-img makes is read, and what is written here qemu-img reads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod model;
mod support;

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use support::{Folder, Numbers, change, content, qemu_img, qemu_io};
use vmwright_disk::conformance::{self, Features};
use vmwright_disk::fault::{Fault, FaultDisk};
use vmwright_disk::{Disk, ErrorKind, HostFile, MemDisk};
use vmwright_image::chain::{self, AllowAll, ChainOptions};
use vmwright_image::{
    CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, Repair, VhdOptions, VhdSubformat, copy,
    create, create_on, probe,
};
use vmwright_judges::{corpus, need, output, run, skip, tool};

const VHD: FormatChoice = FormatChoice::Exact(Format::Vhd);
const BOTH: [VhdSubformat; 2] = [VhdSubformat::Dynamic, VhdSubformat::Fixed];

fn layout(subformat: VhdSubformat) -> Layout {
    Layout::Vhd(VhdOptions { subformat, ..VhdOptions::default() })
}

fn make(subformat: VhdSubformat, size: u64) -> Arc<dyn Disk> {
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    create_on(&file, &CreateOptions::laid_out(layout(subformat), size)).unwrap();
    file
}

fn open(file: &Arc<dyn Disk>) -> Image {
    Image::open(file.clone(), VHD, OpenOptions::default()).unwrap()
}

fn bytes_of(file: &Arc<dyn Disk>) -> Vec<u8> {
    content(&**file)
}

fn open_path(path: &Path) -> Image {
    chain::open(path, VHD, &AllowAll::default(), ChainOptions::default()).unwrap()
}

#[test]
fn vhd_images_conform() {
    let features = Features { granularity: 512, resizable: true, operations: 300 };
    for subformat in BOTH {
        conformance::check(&|len| Arc::new(open(&make(subformat, len))), features);
    }
    let small = |len| -> Arc<dyn Disk> {
        let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
        let layout = Layout::Vhd(VhdOptions { block_size: 4096, ..VhdOptions::default() });
        create_on(&file, &CreateOptions::laid_out(layout, len)).unwrap();
        Arc::new(open(&file))
    };
    conformance::check(&small, features);
    for subformat in BOTH {
        let file = make(subformat, 1 << 20);
        let image = open(&file);
        image.write_at(&[7; 100_000], 1000).unwrap();
        image.flush().unwrap();
        let reader = Image::open(file, VHD, OpenOptions::read_only()).unwrap();
        conformance::check_read_only(&reader, &content(&image));
    }
}

#[test]
fn what_qemu_img_makes_is_read_and_written() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let raw = folder.path("raw");
    std::fs::write(&raw, Numbers(1).bytes(5 << 20)).unwrap();
    for options in ["subformat=dynamic", "subformat=fixed", "force_size=on", "subformat=fixed,force_size=on"]
    {
        let path = folder.path("image");
        qemu_img(&format!("convert -f raw -O vpc -o {options} {{}} {{}}"), &[&raw, &path]);
        qemu_io(&path, "vpc", &["write -P 5 4000k 100k"]);
        let image = open_path(&path);
        assert!(image.check().unwrap().is_clean(), "{options}");
        let mut model = content(&image);
        assert_eq!(model.len() as u64, image.info().unwrap().virtual_size);
        let qemu: serde_json::Value =
            serde_json::from_str(&qemu_img("info -U -f vpc --output=json {}", &[&path])).unwrap();
        assert_eq!(qemu["virtual-size"].as_u64(), Some(image.len()), "{options}");
        assert_eq!(qemu["cluster-size"].as_u64(), image.cluster_size(), "{options}");
        let mut numbers = Numbers(2);
        for _ in 0..60 {
            change(&image, &mut model, &mut numbers, 65536);
        }
        image.flush().unwrap();
        drop(image);
        std::fs::write(&raw, &model).unwrap();
        qemu_img("compare -f vpc -F raw {} {}", &[&path, &raw]);
        std::fs::write(&raw, Numbers(1).bytes(5 << 20)).unwrap();
    }
}

#[test]
fn what_is_written_here_qemu_goes_on_writing() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    for subformat in BOTH {
        let path = folder.path("image");
        create(&path, &CreateOptions::laid_out(layout(subformat), 9 << 20), true).unwrap();
        let image = open_path(&path);
        image.write_at(&[3; 5000], 3_000_000).unwrap();
        image.discard(2 << 20, 2 << 20).unwrap();
        image.write_at(&[4; 5000], 7_000_000).unwrap();
        image.write_at(&[5; 5000], 100).unwrap();
        image.discard(0, 2 << 20).unwrap();
        image.flush().unwrap();
        let before = content(&image);
        drop(image);
        qemu_io(&path, "vpc", &["write -P 9 3000k 64k", "read -P 4 7000000 5000", "write -P 8 1k 1k"]);
        let image = open_path(&path);
        assert!(image.check().unwrap().is_clean());
        let after = content(&image);
        assert_eq!((after[3000 << 10], after[1024], after[7_000_000]), (9, 8, 4));
        assert_eq!(before[4 << 20..], after[4 << 20..]);
    }
}

#[test]
fn converting_there_and_back_keeps_every_sector_of_a_gpt() {
    need!("qemu-img", "sgdisk");
    let folder = Folder::new();
    let (raw, vhd, back) = (folder.path("raw"), folder.path("vhd"), folder.path("back"));
    // A size that no geometry makes.
    let size = (33 << 20) + 512 * 7;
    HostFile::create(&raw, size).unwrap();
    run("sgdisk", ["-n", "1:2048:0", raw.to_str().unwrap()]);
    for subformat in BOTH {
        let source = HostFile::open(&raw, true).unwrap();
        let mut options = copy::ConvertOptions::new(Format::Vhd);
        (options.layout, options.force) = (layout(subformat), true);
        copy::convert(&source, &vhd, &options, &|_, _| {}).unwrap();
        drop(source);
        assert_eq!(open_path(&vhd).len(), size);
        let options = copy::ConvertOptions { force: true, ..copy::ConvertOptions::new(Format::Raw) };
        copy::convert(&open_path(&vhd), &back, &options, &|_, _| {}).unwrap();
        let verdict = run("sgdisk", ["-v", back.to_str().unwrap()]);
        assert!(verdict.contains("No problems found"), "{verdict}");
        assert_eq!(std::fs::read(&raw).unwrap(), std::fs::read(&back).unwrap());
        // QEMU sees the same size.
        qemu_img("convert -f vpc -O raw {} {}", &[&vhd, &back]);
        let verdict = run("sgdisk", ["-v", back.to_str().unwrap()]);
        assert!(verdict.contains("No problems found"), "{verdict}");
    }
}

#[test]
fn without_force_size_the_geometry_is_the_size_as_qemu_rounds_it() {
    need!("qemu-img");
    let folder = Folder::new();
    for size in [512, 1 << 20, (33 << 20) + 512 * 7, 3 << 30] {
        let (ours, theirs) = (folder.path("ours"), folder.path("theirs"));
        let layout = Layout::Vhd(VhdOptions { force_size: false, ..VhdOptions::default() });
        create(&ours, &CreateOptions::laid_out(layout, size), true).unwrap();
        qemu_img(&format!("create -q -f vpc {{}} {size}"), &[&theirs]);
        let (ours, theirs) = (open_path(&ours), open_path(&theirs));
        assert!(ours.len() >= size);
        assert_eq!(ours.len(), theirs.len(), "{size}");
    }
}

#[test]
fn a_disk_of_more_than_2040_gib_is_refused() {
    let limit = 2040u64 << 30;
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    for subformat in BOTH {
        let options = CreateOptions::laid_out(layout(subformat), limit + 1);
        let error = create_on(&file, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("2040 GiB"), "{error}");
    }
    create_on(&file, &CreateOptions::new(Format::Vhd, limit)).unwrap();
    let image = open(&file);
    assert_eq!(image.len(), limit);
    image.write_at(&[7; 512], limit - 512).unwrap();
    image.flush().unwrap();
    assert_eq!(image.set_len(limit + 512).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(open(&file).check().unwrap().is_clean());
}

#[test]
fn a_damaged_end_leaves_the_head_and_a_damaged_head_the_end() {
    let file = make(VhdSubformat::Dynamic, 5 << 20);
    let image = open(&file);
    image.write_at(&[6; 100_000], 1_000_000).unwrap();
    image.flush().unwrap();
    let sound = bytes_of(&file);
    let expected = content(&image);
    for (at, leaks, corruptions) in [(sound.len() - 500, 1, 0), (12, 0, 1)] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        let file: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(bytes));
        let image = open(&file);
        assert_eq!(content(&image), expected);
        let report = image.check().unwrap();
        assert_eq!((report.leaks, report.corruptions), (leaks, corruptions), "{report:?}");
        assert_eq!(report.findings.len(), 1, "{report:?}");
        assert!(image.repair(Repair::All).unwrap().is_clean());
        assert!(image.check().unwrap().is_clean());
        assert_eq!(bytes_of(&file), sound);
    }
    // An end that is cut off, as by a full host.
    let file: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(sound[..sound.len() - 300].to_vec()));
    assert_eq!(content(&open(&file)), expected);
    // Neither.
    let mut bytes = sound.clone();
    (bytes[12], bytes[sound.len() - 500]) = (0xff, 0xff);
    let file: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(bytes));
    let error = Image::open(file.clone(), VHD, OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let lenient = OpenOptions { lenient: true, ..OpenOptions::default() };
    assert!(Image::open(file, VHD, lenient).is_err(), "the version is wrong too");
}

#[test]
fn fixed_images_are_known_by_their_end_and_old_footers_are_short() {
    let file = make(VhdSubformat::Fixed, 1 << 20);
    open(&file).write_at(&[7; 4096], 4096).unwrap();
    assert_eq!(probe(&*file).unwrap(), Format::Vhd);
    let bytes = bytes_of(&file);
    let short: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(bytes[..bytes.len() - 1].to_vec()));
    assert_eq!(probe(&*short).unwrap(), Format::Vhd);
    let image = open(&short);
    assert_eq!((image.len(), content(&image)[5000]), (1 << 20, 7));
    image.set_len(2 << 20).unwrap();
    assert_eq!(short.len(), (2 << 20) + 512);
    assert!(content(&open(&short))[8192..].iter().all(|byte| *byte == 0));
    // A size that is not that of the file is no proof.
    let longer: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes([vec![0; 512], bytes.clone()].concat()));
    assert_eq!(probe(&*longer).unwrap(), Format::Raw);
    let mut wrong = bytes.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(probe(&MemDisk::from_bytes(wrong)).unwrap(), Format::Raw);
    // What a guest writes at the beginning of a disk of fixed size is data.
    let file = make(VhdSubformat::Fixed, 1 << 20);
    open(&file).write_at(&bytes_of(&make(VhdSubformat::Dynamic, 1 << 30))[..4096], 0).unwrap();
    assert_eq!(open(&file).len(), 1 << 20);
}

#[test]
fn sizes_change_both_ways_and_qemu_sees_them() {
    need!("qemu-img");
    let folder = Folder::new();
    for subformat in BOTH {
        let path = folder.path("image");
        create(&path, &CreateOptions::laid_out(layout(subformat), 9 << 20), true).unwrap();
        let image = open_path(&path);
        image.write_at(&[3; 9 << 20], 0).unwrap();
        let mut model = vec![3; 9 << 20];
        // Longer than the table has room for, shorter, longer again.
        for size in [10 << 20, 3 << 30, (5 << 20) + 512, 7 << 20, 40 << 30, 8 << 20] {
            image.set_len(size).unwrap();
            let kept = model.len().min(size as usize);
            model.truncate(kept);
            model.resize(size.min(12 << 20) as usize, 0);
            let mut now = vec![1; model.len()];
            image.read_at(&mut now, 0).unwrap();
            assert!(now == model, "{size}");
            assert!(image.check().unwrap().is_clean(), "{:?}", image.check());
            let info: serde_json::Value =
                serde_json::from_str(&qemu_img("info -U -f vpc --output=json {}", &[&path])).unwrap();
            assert_eq!(info["virtual-size"].as_u64(), Some(size));
            image.write_at(&[8; 70_000], size - 70_000).unwrap();
            if size <= 12 << 20 {
                let at = model.len() - 70_000;
                model[at..].fill(8);
            }
            image.flush().unwrap();
            model.resize(size.min(13 << 20) as usize, 0);
        }
        drop(image);
        let raw = folder.path("raw");
        std::fs::write(&raw, &model).unwrap();
        qemu_img("compare -f vpc -F raw {} {}", &[&path, &raw]);
    }
}

/// A parent of each kind with a child over it, and what the child must show.
fn family(folder: &Folder, parent: VhdSubformat) -> Vec<u8> {
    let mut numbers = Numbers(7);
    let base = folder.path("base.vhd");
    create(&base, &CreateOptions::laid_out(layout(parent), 6 << 20), true).unwrap();
    let image = open_path(&base);
    image.write_at(&numbers.bytes(3 << 20), 1 << 20).unwrap();
    image.flush().unwrap();
    let expected = content(&image);
    drop(image);
    let make = |path: &str, base: &str| {
        let (path, base) = (folder.path(path), Path::new(base));
        chain::create_overlay_as(&path, base, Format::Vhd, Layout::new(Format::Vhd), None, true).unwrap();
    };
    make("child.vhd", "base.vhd");
    make("grandchild.vhd", folder.path("child.vhd").to_str().unwrap());
    expected
}

#[test]
fn children_show_parents_of_every_kind_and_keep_what_is_written() {
    for parent in BOTH {
        let folder = Folder::new();
        let mut model = family(&folder, parent);
        for name in ["child.vhd", "grandchild.vhd"] {
            let path = folder.path(name);
            let options = ChainOptions { cache_bytes: 1, ..ChainOptions::default() };
            let image = chain::open(&path, VHD, &AllowAll::default(), options).unwrap();
            assert!(content(&image) == model);
            let mut numbers = Numbers(3);
            for _ in 0..80 {
                change(&image, &mut model, &mut numbers, 3000);
            }
            image.flush().unwrap();
            assert!(image.check().unwrap().is_clean());
            assert_eq!(image.info().unwrap().backing_filename_format.as_deref(), Some("vpc"));
            drop(image);
            assert!(content(&open_path(&path)) == model);
        }
    }
}

#[test]
fn a_parent_that_is_another_is_refused() {
    let folder = Folder::new();
    family(&folder, VhdSubformat::Dynamic);
    create(&folder.path("base.vhd"), &CreateOptions::new(Format::Vhd, 6 << 20), true).unwrap();
    let read = ChainOptions::read_only();
    let error = chain::open(&folder.path("child.vhd"), VHD, &AllowAll::default(), read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    std::fs::remove_file(folder.path("base.vhd")).unwrap();
    let read = ChainOptions::read_only();
    let error = chain::open(&folder.path("child.vhd"), VHD, &AllowAll::default(), read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let file: Arc<dyn Disk> = Arc::new(HostFile::open(&folder.path("child.vhd"), true).unwrap());
    let alone = Image::open(file, VHD, OpenOptions::read_only()).unwrap();
    assert_eq!(alone.read_at(&mut [0; 512], 0).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(alone.len(), 6 << 20);
}

#[test]
fn the_samples_of_others_need_leniency_and_show_what_they_hold() {
    let Some(corpus) = corpus() else { skip!("no sample data") };
    need!("xz");
    let folder = Folder::new();
    for name in ["image.vhd", "image-differential.vhd"] {
        let packed = corpus.join("images").join(format!("{name}.xz"));
        if !packed.exists() {
            skip!("no {name}");
        }
        let unpacked = output("xz", ["-dc", packed.to_str().unwrap()]);
        std::fs::write(folder.path(name), unpacked.stdout).unwrap();
    }
    let strict = ChainOptions::read_only();
    let child = folder.path("image-differential.vhd");
    let error = chain::open(&child, VHD, &AllowAll::default(), strict.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let lenient = ChainOptions { lenient: true, ..strict };
    let base = chain::open(&folder.path("image.vhd"), VHD, &AllowAll::default(), lenient.clone()).unwrap();
    let child = chain::open(&child, VHD, &AllowAll::default(), lenient).unwrap();
    let (base, child) = (content(&base), content(&child));
    assert_eq!(base.len(), child.len());
    // Both hold an ext2 filesystem.
    assert_eq!((base[1080], base[1081], child[1080], child[1081]), (0x53, 0xef, 0x53, 0xef));
    // The child holds every sector itself, each as its parent has it.
    assert!(base == child);
}

fn cases() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 3000 } else { 60 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_equals_the_model(
        script in proptest::collection::vec(any::<u8>(), 40..400),
        block_bits in 12u32..16,
        fixed in any::<bool>(),
    ) {
        let subformat = if fixed { VhdSubformat::Fixed } else { VhdSubformat::Dynamic };
        let vhd = VhdOptions { subformat, block_size: 1 << block_bits, ..VhdOptions::default() };
        let shape = model::Shape {
            layout: Layout::Vhd(vhd),
            size: 300_032,
            backing: None,
            resizable: true,
            scale: 4096,
        };
        let (bytes, expected) = model::run(&shape, &model::steps(&script, shape.scale));
        // QEMU knows blocks of any size.
        if tool("qemu-img").is_some() {
            let folder = Folder::new();
            let (image, raw) = (folder.path("image"), folder.path("raw"));
            std::fs::write(&image, &bytes).unwrap();
            std::fs::write(&raw, &expected).unwrap();
            qemu_img("compare -q -f vpc -F raw {} {}", &[&image, &raw]);
        }
    }

}

#[test]
fn a_fixed_image_that_could_not_grow_is_as_it_was() {
    let file = make(VhdSubformat::Fixed, 1 << 20);
    for nth in 0..3 {
        for fault in [Fault::Fail, Fault::NoSpace] {
            let failing: Arc<dyn Disk> = Arc::new(FaultDisk::with_fault(file.clone(), nth, fault));
            open(&failing).set_len(2 << 20).unwrap_err();
            assert_eq!(open(&file).len(), 1 << 20, "{fault:?} at change {nth}");
        }
    }
}
