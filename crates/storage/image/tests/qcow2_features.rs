//! Every combination of what qcow2 can be, made by QEMU and written by us, and made by us and written by QEMU.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::{Path, PathBuf};

use support::*;
use vmwright_disk::Disk;
use vmwright_image::{BackingFile, CreateOptions, Format, FormatChoice, Layout, chain, create};
use vmwright_judges::need;

/// One combination of options, as `-o` takes them.
#[derive(Debug, Clone)]
struct Combination {
    options: Vec<String>,
    cluster_size: u64,
    backing: bool,
    data_file: bool,
}

/// Every combination that QEMU allows, thinned out evenly so that every pair of options stays.
fn combinations(keep: u64) -> Vec<Combination> {
    let mut all = Vec::new();
    for cluster_size in [512u64, 4096, 16384, 65536, 2 << 20] {
        for compat in ["0.10", "1.1"] {
            for refcount_bits in [1, 16, 64] {
                for extended in [false, true] {
                    for data in ["", "file", "raw"] {
                        for compression in ["zlib", "zstd"] {
                            for preallocation in ["off", "metadata", "falloc", "full"] {
                                for backing in [false, true] {
                                    all.extend(combination(
                                        cluster_size,
                                        compat,
                                        refcount_bits,
                                        extended,
                                        data,
                                        compression,
                                        preallocation,
                                        backing,
                                    ));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    let mut numbers = Numbers(99);
    all.retain(|_| keep == 0 || numbers.below(keep) == 0);
    all
}

#[allow(clippy::too_many_arguments, reason = "one for each option")]
fn combination(
    cluster_size: u64,
    compat: &str,
    refcount_bits: u32,
    extended: bool,
    data: &str,
    compression: &str,
    preallocation: &str,
    backing: bool,
) -> Option<Combination> {
    let v3 = extended || !data.is_empty() || compression == "zstd" || refcount_bits != 16;
    if compat == "0.10" && v3
        || extended && cluster_size < 16384
        || data == "raw" && backing
        || backing && preallocation != "off" && !extended
    {
        return None;
    }
    let mut options = vec![
        format!("cluster_size={cluster_size}"),
        format!("compat={compat}"),
        format!("preallocation={preallocation}"),
    ];
    if compat == "1.1" {
        options.push(format!("refcount_bits={refcount_bits}"));
        options.push(format!("compression_type={compression}"));
        options.push(format!("extended_l2={}", if extended { "on" } else { "off" }));
    }
    if data == "raw" {
        options.push("data_file_raw=on".to_owned());
    }
    Some(Combination { options, cluster_size, backing, data_file: !data.is_empty() })
}

fn thinned() -> Vec<Combination> {
    combinations(if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 0 } else { 40 })
}

struct Place {
    folder: Folder,
    path: PathBuf,
    data: PathBuf,
    base: PathBuf,
    /// What the image shows when new.
    model: Vec<u8>,
}

impl Place {
    fn new(what: &Combination, numbers: &mut Numbers) -> Self {
        let folder = Folder::new();
        let path = |name: &str| folder.path(name);
        let (image, data, base) = (path("image"), path("data"), path("base"));
        let size = (what.cluster_size * 40).min(5 << 20) + 1536;
        let mut model = Vec::new();
        if what.backing {
            model = numbers.bytes((size / 3 * 2 / 512 * 512) as usize);
            std::fs::write(&base, &model).unwrap();
        }
        model.resize(size as usize, 0);
        Self { folder, path: image, data, base, model }
    }

    fn options(&self, what: &Combination) -> Vec<String> {
        let mut options = what.options.clone();
        if what.data_file {
            options.push(format!("data_file={}", self.data.display()));
        }
        options
    }

    fn make_with_qemu(&self, what: &Combination) {
        let options = self.options(what).join(",");
        let size = self.model.len();
        match what.backing {
            true => {
                let command = format!("create -q -f qcow2 -o {options} -F raw -b {{}} {{}} {size}");
                qemu_img(&command, &[&self.base, &self.path])
            }
            false => qemu_img(&format!("create -q -f qcow2 -o {options} {{}} {size}"), &[&self.path]),
        };
    }

    fn make(&self, what: &Combination) {
        let mut layout = Layout::new(Format::Qcow2);
        for option in self.options(what) {
            let (key, value) = option.split_once('=').unwrap();
            layout.set(key, value).unwrap();
        }
        let mut create_options = CreateOptions::laid_out(layout, self.model.len() as u64);
        create_options.backing = what.backing.then(|| BackingFile {
            name: self.base.to_str().unwrap().to_owned(),
            format: Some("raw".into()),
        });
        create(&self.path, &create_options, false).unwrap();
    }

    fn judge(&self, what: &Combination) {
        check(&self.path);
        assert!(content(&open(&self.path, true)) == self.model, "{what:?}: read back");
        assert!(qemu_content(&self.path) == self.model, "{what:?}: as QEMU reads it");
        if what.options.iter().any(|option| option == "data_file_raw=on") {
            let data = std::fs::read(&self.data).unwrap();
            let (there, rest) = data.split_at(self.model.len());
            assert!(there == self.model, "{what:?}: the data file alone");
            assert!(rest.iter().all(|byte| *byte == 0), "{what:?}: past the end of the disk");
        }
        let _ = &self.folder;
    }

    fn change(&mut self, what: &Combination, numbers: &mut Numbers) {
        for small in [false, true] {
            let image = if small { open_with_small_cache(&self.path) } else { open(&self.path, false) };
            for _ in 0..12 {
                let scale =
                    if numbers.below(2) == 0 { what.cluster_size } else { (what.cluster_size / 32).max(512) };
                change(&image, &mut self.model, numbers, scale);
            }
            image.flush().unwrap();
        }
    }
}

#[test]
fn what_qemu_makes_in_every_combination_is_written_right() {
    need!("qemu-img");
    let mut numbers = Numbers(11);
    let combinations = thinned();
    assert!(combinations.len() > 10, "only {}", combinations.len());
    for what in combinations {
        let mut place = Place::new(&what, &mut numbers);
        place.make_with_qemu(&what);
        assert!(content(&open(&place.path, true)) == place.model, "{what:?}: when new");
        place.change(&what, &mut numbers);
        place.judge(&what);
    }
}

/// Lets QEMU write here and there.
fn qemu_changes(path: &Path, model: &mut [u8], numbers: &mut Numbers) {
    let mut commands = Vec::new();
    for _ in 0..12 {
        let offset = numbers.below(model.len() as u64 / 512) * 512;
        let len = ((1 + numbers.below(200)) * 512).min(model.len() as u64 - offset);
        let byte = numbers.below(255) as u8 + 1;
        let range = offset as usize..(offset + len) as usize;
        if numbers.below(4) == 0 {
            commands.push(format!("write -z {offset} {len}"));
            model[range].fill(0);
        } else {
            commands.push(format!("write -P {byte} {offset} {len}"));
            model[range].fill(byte);
        }
    }
    qemu_io(path, "qcow2", &commands.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn what_is_made_in_every_combination_is_written_by_qemu_and_read() {
    need!("qemu-img", "qemu-io");
    let mut numbers = Numbers(12);
    for what in thinned() {
        let mut place = Place::new(&what, &mut numbers);
        place.make(&what);
        place.judge(&what);
        qemu_changes(&place.path, &mut place.model, &mut numbers);
        place.judge(&what);
        place.change(&what, &mut numbers);
        place.judge(&what);
    }
}

#[test]
fn preallocated_images_have_their_space_and_read_as_zeros() {
    need!("qemu-img");
    let folder = Folder::new();
    for (preallocation, space) in [("metadata", 0), ("falloc", 4 << 20), ("full", 4 << 20)] {
        let path = folder.path(preallocation);
        let mut layout = Layout::new(Format::Qcow2);
        layout.set("preallocation", preallocation).unwrap();
        create(&path, &CreateOptions::laid_out(layout, 4 << 20), false).unwrap();
        check(&path);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) * 512;
        assert!(blocks >= space && (space > 0 || blocks < 1 << 20), "{preallocation}: {blocks}");
        let image = open(&path, false);
        assert!(content(&image).iter().all(|byte| *byte == 0));
        let len = std::fs::metadata(&path).unwrap().len();
        image.write_at(&[7; 1 << 20], 1 << 20).unwrap();
        image.flush().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), len, "{preallocation}: nothing new is allocated");
    }
}

/// Changes the size up and down, writing in between.
fn resize_and_change(what: &Combination, place: &mut Place, numbers: &mut Numbers) {
    let first = place.model.len() as u64;
    for factor in [3, 1, 5, 0, 2] {
        let len = (first * factor / 2 + numbers.below(first) + 512) / 512 * 512;
        let image = if factor == 1 { open_with_small_cache(&place.path) } else { open(&place.path, false) };
        image.set_len(len).unwrap();
        place.model.resize(len as usize, 0);
        assert!(content(&image) == place.model, "{what:?}: at once, with {len} bytes");
        for _ in 0..5 {
            change(&image, &mut place.model, numbers, what.cluster_size);
        }
        image.flush().unwrap();
        drop(image);
        place.judge(what);
    }
}

#[test]
fn disks_of_every_combination_are_resized_both_ways() {
    need!("qemu-img");
    let mut numbers = Numbers(13);
    for what in combinations(if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 0 } else { 90 }) {
        let mut place = Place::new(&what, &mut numbers);
        place.make_with_qemu(&what);
        // A base that is longer than the disk would show where the disk grows.
        if what.backing {
            let mut base = std::fs::read(&place.base).unwrap();
            base.extend(numbers.bytes(place.model.len()));
            std::fs::write(&place.base, &base).unwrap();
            let len = place.model.len();
            place.model.copy_from_slice(&base[..len]);
        }
        place.change(&what, &mut numbers);
        resize_and_change(&what, &mut place, &mut numbers);
    }
}

#[test]
fn a_disk_grows_far_beyond_its_first_tables_and_gives_its_space_back() {
    need!("qemu-img");
    let folder = Folder::new();
    for options in ["cluster_size=512,refcount_bits=64", "cluster_size=4k,compat=0.10", "extended_l2=on"] {
        let path = folder.path("image");
        qemu_img(&format!("create -q -f qcow2 -o {options} {{}} 1M"), &[&path]);
        let image = open(&path, false);
        image.write_at(&[7; 1 << 20], 0).unwrap();
        image.flush().unwrap();
        let space =
            |path: &Path| std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512;
        let small = space(&path);
        image.set_len(1 << 30).unwrap();
        image.write_at(&[8; 3 << 20], (1 << 30) - (3 << 20)).unwrap();
        image.flush().unwrap();
        check(&path_of(&image, &path));
        image.set_len(1 << 20).unwrap();
        image.flush().unwrap();
        drop(image);
        check(&path);
        assert!(content(&open(&path, true)).iter().all(|byte| *byte == 7));
        let left = space(&path);
        assert!(left < small + (1 << 20), "{options}: {left} bytes are left, {small} were there");
    }
}

/// A copy of an image that is open, which QEMU does not touch.
fn path_of(_image: &dyn Disk, path: &Path) -> PathBuf {
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).unwrap();
    copy
}

#[test]
fn resizing_is_refused_where_qemu_refuses_it() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    qemu_img("create -q -f qcow2 -o compat=0.10 {} 1M", &[&path]);
    qemu_img("snapshot -c first {}", &[&path]);
    let image = open(&path, false);
    let error = image.set_len(2 << 20).unwrap_err();
    assert_eq!(error.kind(), vmwright_disk::ErrorKind::Unsupported);
    assert!(error.to_string().contains("snapshots"), "{error}");
    assert_eq!(image.set_len((1 << 20) + 100).unwrap_err().kind(), vmwright_disk::ErrorKind::InvalidInput);
    drop(image);

    qemu_img("create -q -f qcow2 {} 1M", &[&path]);
    qemu_img("snapshot -c first {}", &[&path]);
    let image = open(&path, false);
    image.write_at(&[5; 1 << 20], 0).unwrap();
    for len in [3 << 20, 1 << 19, 1 << 20] {
        image.set_len(len).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    check(&path);
    qemu_img("snapshot -a first {}", &[&path]);
    assert!(qemu_content(&path) == vec![0; 1 << 20]);

    // A bitmap that is out of date: what it followed was not flushed.
    qemu_img("bitmap --add {} changes", &[&path]);
    open(&path, false).write_at(&[1; 512], 0).unwrap();
    let error = open(&path, false).set_len(2 << 20).unwrap_err();
    assert!(error.to_string().contains("bitmaps that are out of date"), "{error}");
}

#[test]
fn qemu_sees_a_backing_file_that_was_renamed_or_removed() {
    need!("qemu-img");
    let folder = Folder::new();
    let (path, base) = (folder.path("image"), folder.path("base"));
    let bytes = Numbers(3).bytes(1 << 20);
    std::fs::write(&base, &bytes).unwrap();
    let copy = folder.path("a copy with another name");
    std::fs::write(&copy, &bytes).unwrap();
    let rebase = |path: &Path, base: Option<chain::NewBase>| {
        let how = chain::RebaseOptions { base, ..chain::RebaseOptions::default() };
        let gate = chain::AllowAll::default();
        chain::rebase(path, FormatChoice::Exact(Format::Qcow2), &gate, &how, &|_, _| {}).unwrap();
    };
    for options in ["compat=0.10", "compat=1.1", "extended_l2=on", "cluster_size=512"] {
        qemu_img(&format!("create -q -f qcow2 -o {options} -F raw -b {{}} {{}}"), &[&base, &path]);
        qemu_io(&path, "qcow2", &["write -P 5 64k 100k"]);
        let shown = qemu_content(&path);
        qemu_img("rebase -u -f qcow2 -F raw -b {} {}", &[&copy, &path]);
        let image = open(&path, false);
        assert_eq!(image.backing_file().unwrap().name, copy.to_str().unwrap());
        drop(image);
        let to = chain::NewBase { name: base.to_str().unwrap().to_owned(), format: Format::Raw };
        rebase(&path, Some(to));
        check(&path);
        assert!(qemu_content(&path) == shown, "{options}");
        rebase(&path, None);
        check(&path);
        let info = qemu_img("info {}", &[&path]);
        assert!(!info.contains("backing file"), "{info}");
        assert!(qemu_content(&path) == shown, "{options}");
    }
}
