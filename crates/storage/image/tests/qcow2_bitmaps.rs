//! Persistent dirty bitmaps, made and used by this crate and by QEMU in turn.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::{Folder, Numbers, change, check, open, qemu_content, qemu_img, qemu_io};
use vmwright_disk::{Disk, ErrorKind};
use vmwright_image::chain::{self, AllowAll, ChainOptions};
use vmwright_image::{Format, FormatChoice, Image, Repair};
use vmwright_judges::{need, run};

type Ranges = Vec<(u64, u64)>;

/// The dirty ranges as QEMU's NBD server tells them.
fn qemu_dirty(path: &Path, name: &str) -> Ranges {
    let socket = path.with_extension("sock");
    let _ = std::fs::remove_file(&socket);
    let mut server = Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-B", name, "-k", socket.to_str().unwrap()])
        .arg(path)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..500 {
        if socket.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let map = run("nbdinfo", ["--json", &format!("--map=qemu:dirty-bitmap:{name}"), &uri]);
    server.kill().unwrap();
    server.wait().unwrap();
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let dirty = map.iter().filter(|run| run["type"] == 1);
    merge(dirty.map(|run| (run["offset"].as_u64().unwrap(), run["length"].as_u64().unwrap())))
}

fn merge(ranges: impl Iterator<Item = (u64, u64)>) -> Ranges {
    let mut merged: Ranges = Vec::new();
    for (start, len) in ranges {
        match merged.last_mut() {
            Some((last, last_len)) if *last + *last_len == start => *last_len += len,
            _ => merged.push((start, len)),
        }
    }
    merged
}

fn dirty(image: &Image, name: &str) -> Ranges {
    let runs = image.bitmaps().unwrap().dirty(name).unwrap();
    merge(runs.iter().map(|run| {
        assert!(run.dirty);
        (run.start, run.length)
    }))
}

/// Bits by bits, what a bitmap must say.
struct Model {
    bits: Vec<bool>,
    granularity: u64,
}

impl Model {
    fn new(size: u64, granularity: u64) -> Self {
        Self { bits: vec![false; size.div_ceil(granularity) as usize], granularity }
    }

    fn mark(&mut self, offset: u64, len: u64) {
        let range = offset / self.granularity..(offset + len).div_ceil(self.granularity);
        self.bits[range.start as usize..range.end as usize].fill(true);
    }

    fn ranges(&self, size: u64) -> Ranges {
        let set = self.bits.iter().enumerate().filter(|(_, bit)| **bit);
        merge(set.map(|(index, _)| {
            let start = index as u64 * self.granularity;
            (start, self.granularity.min(size - start))
        }))
    }
}

fn flags(path: &Path, name: &str) -> Vec<String> {
    let info: serde_json::Value = serde_json::from_str(&qemu_img("info --output=json {}", &[path])).unwrap();
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    let bitmap = bitmaps.iter().find(|bitmap| bitmap["name"] == name);
    let Some(bitmap) = bitmap else { return vec!["missing".to_owned()] };
    bitmap["flags"].as_array().unwrap().iter().map(|flag| flag.as_str().unwrap().to_owned()).collect()
}

#[test]
fn bitmaps_note_every_change_as_those_of_qemu_do() {
    need!("qemu-img", "qemu-io", "qemu-nbd", "nbdinfo");
    let folder = Folder::new();
    let path = folder.path("image");
    let size = (5 << 20) + 512;
    for (options, fine, coarse) in [("cluster_size=64k", 512, 65536), ("cluster_size=512", 4096, 1 << 20)] {
        qemu_img(&format!("create -q -f qcow2 -o {options} {{}} {size}"), &[&path]);
        let (mut a, mut b) = (Model::new(size, fine), Model::new(size, coarse));
        open(&path, false).bitmaps().unwrap().add("ours", Some(fine)).unwrap();
        qemu_img(&format!("bitmap --add -g {coarse} {{}} theirs"), &[&path]);
        check(&path);
        let mut numbers = Numbers(fine);
        for round in 0..3 {
            let image = open(&path, false);
            for step in 0..10 {
                let offset = numbers.below(size);
                let kind = numbers.below(4);
                let len = if kind == 1 { 1 } else { 1 + numbers.below(150_000) }.min(size - offset);
                match kind {
                    0 => image.zero_at(offset, len).unwrap(),
                    _ => image.write_at(&numbers.bytes(len as usize), offset).unwrap(),
                }
                a.mark(offset, len);
                b.mark(offset, len);
                assert_eq!(dirty(&image, "ours"), a.ranges(size), "{offset}+{len}");
                if step % 5 == 4 {
                    image.flush().unwrap();
                }
            }
            image.flush().unwrap();
            assert_eq!(dirty(&image, "theirs"), b.ranges(size));
            drop(image);
            check(&path);
            assert_eq!(flags(&path, "ours"), ["auto"]);
            assert_eq!(qemu_dirty(&path, "ours"), a.ranges(size), "{options}");
            assert_eq!(qemu_dirty(&path, "theirs"), b.ranges(size), "{options}");
            let offset = 1_000_000u64 * round;
            qemu_io(&path, "qcow2", &[&format!("write -P 1 {offset} 1000")]);
            // QEMU writes whole sectors.
            let (start, end) = (offset / 512 * 512, (offset + 1000).next_multiple_of(512));
            a.mark(start, end - start);
            b.mark(start, end - start);
            let image = open(&path, true);
            assert_eq!(dirty(&image, "theirs"), b.ranges(size), "{options}");
            assert_eq!(dirty(&image, "ours"), a.ranges(size), "{options}");
        }
    }
}

#[test]
fn bitmaps_are_changed_as_by_qemu_img() {
    need!("qemu-img", "qemu-io", "qemu-nbd", "nbdinfo");
    let folder = Folder::new();
    let (path, base) = (folder.path("image"), folder.path("base"));
    std::fs::write(&base, vec![1; 8 << 20]).unwrap();
    qemu_img("create -q -f qcow2 -F raw -b {} {} 8M", &[&base, &path]);
    let before = qemu_content(&path);
    let image = open(&path, false);
    let bitmaps = image.bitmaps().unwrap();
    assert!(bitmaps.list().unwrap().is_empty());
    bitmaps.add("first", None).unwrap();
    bitmaps.add("second", Some(4096)).unwrap();
    assert_eq!(bitmaps.add("first", None).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(bitmaps.remove("third").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bitmaps.add("third", Some(3000)).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(bitmaps.list().unwrap()[0].granularity, 65536);
    image.write_at(&[2; 5000], 1 << 20).unwrap();
    bitmaps.disable("second").unwrap();
    image.write_at(&[3; 5000], 2 << 20).unwrap();
    image.flush().unwrap();
    drop(image);
    check(&path);
    assert!(qemu_content(&path) != before);
    assert_eq!(flags(&path, "second"), [""; 0]);
    assert_eq!(qemu_dirty(&path, "first"), [(1 << 20, 65536), (2 << 20, 65536)]);
    assert_eq!(qemu_dirty(&path, "second"), [(1 << 20, 8192)]);

    // What qemu-img disables, enables and clears is so here.
    qemu_img("bitmap --enable {} second", &[&path]);
    qemu_img("bitmap --disable {} first", &[&path]);
    let image = open(&path, false);
    let bitmaps = image.bitmaps().unwrap();
    image.write_at(&[4; 5000], 4 << 20).unwrap();
    assert_eq!(dirty(&image, "first"), [(1 << 20, 65536), (2 << 20, 65536)]);
    assert_eq!(dirty(&image, "second"), [(1 << 20, 8192), (4 << 20, 8192)]);
    bitmaps.merge("first", "second").unwrap();
    bitmaps.enable("first").unwrap();
    let merged = [(1 << 20, 65536), (2 << 20, 65536), (4 << 20, 65536)];
    assert_eq!(dirty(&image, "first"), merged);
    drop(image);
    check(&path);
    assert_eq!(qemu_dirty(&path, "first"), merged);
    // The other way round, as qemu-img merges a coarse one into a fine one.
    let twin = folder.path("twin");
    std::fs::copy(&path, &twin).unwrap();
    qemu_img("bitmap --merge first {} second", &[&twin]);
    open(&path, false).bitmaps().unwrap().merge("second", "first").unwrap();
    assert_eq!(dirty(&open(&path, true), "second"), qemu_dirty(&twin, "second"));
    check(&path);

    let image = open(&path, false);
    let bitmaps = image.bitmaps().unwrap();
    bitmaps.clear("first").unwrap();
    assert!(dirty(&image, "first").is_empty());
    image.discard(0, 65536).unwrap();
    image.flush().unwrap();
    assert_eq!(dirty(&image, "first"), [(0, 65536)]);
    let run = bitmaps.run_at("first", 1000, 100_000).unwrap();
    assert_eq!((run.start, run.length, run.dirty), (1000, 64536, true));
    drop(image);
    qemu_img("bitmap --clear {} second", &[&path]);
    qemu_img("bitmap --add --enable {} third", &[&path]);
    let image = open(&path, false);
    let bitmaps = image.bitmaps().unwrap();
    assert!(dirty(&image, "second").is_empty());
    for name in ["second", "first", "third"] {
        bitmaps.remove(name).unwrap();
    }
    drop(image);
    check(&path);
    assert_eq!(flags(&path, "first"), ["missing"]);
    let text = qemu_img("info {}", &[&path]);
    assert!(!text.contains("bitmap"), "{text}");
    // The header is whole: the backing file shows, and a new bitmap finds its place.
    qemu_img("bitmap --add {} fourth", &[&path]);
    check(&path);
    let image = open(&path, true);
    assert_eq!(image.backing_file().unwrap().name, base.to_str().unwrap());
    assert_eq!(image.bitmaps().unwrap().list().unwrap()[0].name, "fourth");
}

#[test]
fn a_bitmap_survives_conversion_by_qemu_img_and_compressed_data() {
    need!("qemu-img", "qemu-nbd", "nbdinfo");
    let folder = Folder::new();
    let (path, copy) = (folder.path("image"), folder.path("copy"));
    qemu_img("create -q -f qcow2 {} 8M", &[&path]);
    let image = open(&path, false);
    image.bitmaps().unwrap().add("b", None).unwrap();
    image.write_at(&[1; 200_000], 300_000).unwrap();
    image.flush().unwrap();
    let expected = dirty(&image, "b");
    drop(image);
    qemu_img("convert --bitmaps -O qcow2 {} {}", &[&path, &copy]);
    assert_eq!(dirty(&open(&copy, true), "b"), expected);
}

#[test]
fn an_image_that_was_not_flushed_has_bitmaps_that_say_they_are_out_of_date() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    qemu_img("create -q -f qcow2 {} 8M", &[&path]);
    qemu_img("bitmap --add {} b", &[&path]);
    qemu_img("bitmap --add --disable {} still", &[&path]);
    let before = std::fs::read(&path).unwrap();
    let image = open(&path, true);
    image.read_at(&mut [0; 512], 0).unwrap();
    drop(image);
    assert!(std::fs::read(&path).unwrap() == before, "reading changed the image");

    let image = open(&path, false);
    image.write_at(&[1; 512], 0).unwrap();
    // Here it is known, in the file it is not.
    assert_eq!(dirty(&image, "b"), [(0, 65536)]);
    drop(image);
    assert_eq!(flags(&path, "b"), ["in-use", "auto"]);
    assert_eq!(flags(&path, "still"), [""; 0]);
    let image = open(&path, false);
    let bitmaps = image.bitmaps().unwrap();
    for result in
        [bitmaps.clear("b"), bitmaps.enable("b"), bitmaps.merge("still", "b"), bitmaps.dirty("b").map(|_| ())]
    {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    // It stays so, whatever is done, until it is removed.
    image.write_at(&[1; 512], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    assert_eq!(flags(&path, "b"), ["in-use", "auto"]);
    let image = open(&path, false);
    image.bitmaps().unwrap().remove("b").unwrap();
    drop(image);
    check(&path);
    assert_eq!(flags(&path, "b"), ["missing"]);
    assert_eq!(flags(&path, "still"), [""; 0]);
}

#[test]
fn a_bitmap_over_a_large_range_takes_no_space_for_it() {
    need!("qemu-img", "qemu-nbd", "nbdinfo");
    let folder = Folder::new();
    let path = folder.path("image");
    qemu_img("create -q -f qcow2 {} 1T", &[&path]);
    let image = open(&path, false);
    image.bitmaps().unwrap().add("b", Some(512)).unwrap();
    image.zero_at(1000, (1 << 40) - 5000).unwrap();
    image.flush().unwrap();
    drop(image);
    check(&path);
    // 256 MiB of bits, nearly all in entries that need no cluster.
    assert!(std::fs::metadata(&path).unwrap().len() < 4 << 20);
    let image = open(&path, false);
    let whole = [(512, (1 << 40) - 512 - 3584)];
    assert_eq!(dirty(&image, "b"), whole);
    image.bitmaps().unwrap().clear("b").unwrap();
    drop(image);
    assert!(
        vmwright_image::check(
            std::sync::Arc::new(vmwright_disk::HostFile::open(&path, true).unwrap()),
            FormatChoice::Probe,
            Repair::Nothing
        )
        .unwrap()
        .is_clean()
    );
}

#[test]
fn several_threads_lose_no_bit() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    let size = 4u64 << 20;
    qemu_img(&format!("create -q -f qcow2 -o cluster_size=4k {{}} {size}"), &[&path]);
    let image = open(&path, false);
    image.bitmaps().unwrap().add("b", Some(512)).unwrap();
    let models: Vec<Model> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..4u64)
            .map(|seed| {
                let image = &image;
                scope.spawn(move || {
                    let (mut numbers, mut model) = (Numbers(seed), Model::new(size, 512));
                    for _ in 0..60 {
                        let offset = numbers.below(size);
                        let len = (1 + numbers.below(20_000)).min(size - offset);
                        image.write_at(&numbers.bytes(len as usize), offset).unwrap();
                        model.mark(offset, len);
                        if numbers.below(6) == 0 {
                            image.flush().unwrap();
                        }
                    }
                    model
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    image.flush().unwrap();
    let mut all = Model::new(size, 512);
    for model in models {
        for (bit, other) in all.bits.iter_mut().zip(model.bits) {
            *bit |= other;
        }
    }
    assert_eq!(dirty(&image, "b"), all.ranges(size));
    drop(image);
    check(&path);
    assert_eq!(dirty(&open(&path, true), "b"), all.ranges(size));
}

#[test]
fn a_random_sequence_with_a_bitmap_keeps_data_and_bits() {
    need!("qemu-img", "qemu-nbd", "nbdinfo");
    let folder = Folder::new();
    let path = folder.path("image");
    qemu_img("create -q -f qcow2 -o cluster_size=4k {} 3M", &[&path]);
    let mut model = vec![0; 3 << 20];
    let mut numbers = Numbers(77);
    let image = open(&path, false);
    image.bitmaps().unwrap().add("b", None).unwrap();
    for _ in 0..80 {
        let before = model.clone();
        change(&image, &mut model, &mut numbers, 10_000);
        // Wherever the content differs, a bit is set.
        let marked = dirty(&image, "b");
        for (at, _) in before.iter().zip(&model).enumerate().filter(|(_, (a, b))| a != b).step_by(97) {
            assert!(marked.iter().any(|(start, len)| (*start..start + len).contains(&(at as u64))), "{at}");
        }
    }
    image.flush().unwrap();
    let marked = dirty(&image, "b");
    drop(image);
    check(&path);
    assert!(qemu_content(&path) == model);
    assert_eq!(qemu_dirty(&path, "b"), marked);
}

#[test]
fn bitmaps_follow_a_disk_that_changes_its_size() {
    need!("qemu-img", "qemu-io", "qemu-nbd", "nbdinfo");
    let folder = Folder::new();
    let path = folder.path("image");
    let (small, large) = (1 << 20, 9 << 20);
    // A cluster of bits stands for 2 MiB. The names of features leave no room for the bitmaps' extension.
    let size = small.to_string();
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path.to_str().unwrap(), &size]);
    let filler = "x".repeat(90);
    let image = open(&path, false);
    for name in ["followed", "still"] {
        image.bitmaps().unwrap().add(&format!("{name}{filler}"), Some(512)).unwrap();
    }
    let (followed, still) = (format!("followed{filler}"), format!("still{filler}"));
    image.write_at(&[1; 1000], 500_000).unwrap();
    image.bitmaps().unwrap().disable(&still).unwrap();
    let mut model = Model::new(large, 512);
    model.mark(500_000, 1000);
    image.set_len(large).unwrap();
    image.write_at(&[2; 3000], 5 << 20).unwrap();
    model.mark(5 << 20, 3000);
    assert_eq!(dirty(&image, &followed), model.ranges(large));
    image.flush().unwrap();
    drop(image);
    check(&path);
    assert_eq!(flags(&path, &followed), ["auto"]);
    assert_eq!(qemu_dirty(&path, &followed), model.ranges(large));
    assert_eq!(qemu_dirty(&path, &still).len(), 1);
    let image = open(&path, false);
    let less = 6 << 20;
    image.set_len(less).unwrap();
    image.write_at(&[3; 512], less - 512).unwrap();
    model.mark(less - 512, 512);
    image.flush().unwrap();
    drop(image);
    check(&path);
    assert_eq!(qemu_dirty(&path, &followed), model.ranges(less));
    run("qemu-img", ["resize", "-q", path.to_str().unwrap(), "12M"]);
    check(&path);
    assert_eq!(dirty(&open(&path, true), &followed), model.ranges(less));
}

#[test]
fn the_smallest_header_gives_up_the_names_of_features_for_bitmaps() {
    need!("qemu-img", "qemu-nbd", "nbdinfo");
    let folder = Folder::new();
    let (base, path) = (folder.path("base"), folder.path("image"));
    run("qemu-img", ["create", "-q", "-f", "raw", base.to_str().unwrap(), "1M"]);
    let options = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "-F", "raw", "-b"];
    run("qemu-img", options.into_iter().chain([base.to_str().unwrap(), path.to_str().unwrap()]));
    let image =
        chain::open(&path, FormatChoice::Exact(Format::Qcow2), &AllowAll::default(), ChainOptions::default());
    let image = image.unwrap();
    image.bitmaps().unwrap().add("since", Some(512)).unwrap();
    image.write_at(&[1; 512], 4096).unwrap();
    image.flush().unwrap();
    drop(image);
    check(&path);
    assert_eq!(qemu_dirty(&path, "since"), [(4096, 512)]);
    let info = qemu_img("info --output=json {}", &[&path]);
    assert!(info.contains(base.to_str().unwrap()), "{info}");
}
