//! What the tests against qemu-img share.
#![allow(dead_code, reason = "no test uses all of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_disk::{Disk, HostFile};
use vmwright_image::{FormatChoice, Image, OpenOptions, chain};
use vmwright_judges::{output, run};

/// A folder for one test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Runs qemu-img with arguments split at spaces, and paths put in for `{}`.
pub(crate) fn qemu_img(command: &str, paths: &[&Path]) -> String {
    let mut paths = paths.iter();
    let args = command.split(' ').map(|word| match word {
        "{}" => paths.next().unwrap().to_str().unwrap(),
        word => word,
    });
    run("qemu-img", args.collect::<Vec<_>>())
}

/// Runs qemu-io commands on an image.
pub(crate) fn qemu_io(path: &Path, format: &str, commands: &[&str]) {
    let mut args = vec!["-f".to_owned(), format.to_owned()];
    for command in commands {
        args.extend(["-c".to_owned(), (*command).to_owned()]);
    }
    args.push(path.to_str().unwrap().to_owned());
    let text = run("qemu-io", args);
    assert!(!text.contains("Pattern verification failed"), "{text}");
}

/// Fails unless qemu-img finds neither errors nor leaks.
pub(crate) fn check(path: &Path) {
    qemu_img("check -q -f qcow2 {}", &[path]);
}

/// Fails if qemu-img finds errors; leaked clusters are allowed.
pub(crate) fn check_for_errors(path: &Path) {
    let output = output("qemu-img", ["check", "-f", "qcow2", path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    let status = output.status.code();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(status, Some(0 | 3)), "qemu-img check: {status:?}\n{text}{errors}");
}

/// What a guest sees, as qemu-img converts it.
pub(crate) fn qemu_content(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("content");
    qemu_img("convert -O raw {} {}", &[path, &raw]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

/// Opens an image with its backing files, without limits.
pub(crate) fn open(path: &Path, read_only: bool) -> Image {
    let options = chain::ChainOptions { read_only, ..Default::default() };
    chain::open(path, FormatChoice::Probe, &chain::AllowAll { probe: true }, options).unwrap()
}

/// Opens an image with a small cache of metadata, so that it is always too small.
pub(crate) fn open_with_small_cache(path: &Path) -> Image {
    let options = chain::ChainOptions { cache_bytes: 1, ..Default::default() };
    chain::open(path, FormatChoice::Probe, &chain::AllowAll { probe: true }, options).unwrap()
}

/// Opens one file as an image, without what it names.
pub(crate) fn open_alone(path: &Path) -> Image {
    let file = Arc::new(HostFile::open(path, false).unwrap());
    Image::open(file, FormatChoice::Probe, OpenOptions::default()).unwrap()
}

/// What a guest sees, as this crate reads it.
pub(crate) fn content(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Numbers(pub u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

/// One random change to a disk and to its model.
pub(crate) fn change(disk: &dyn Disk, model: &mut [u8], numbers: &mut Numbers, scale: u64) {
    let size = model.len() as u64;
    let aligned = numbers.below(2) == 0;
    let mut offset = numbers.below(size);
    let mut len = 1 + numbers.below(scale * 3);
    if aligned {
        offset -= offset % scale;
        len = len.next_multiple_of(scale);
    }
    let len = len.min(size - offset);
    let range = offset as usize..(offset + len) as usize;
    match numbers.below(8) {
        0 => {
            disk.zero_at(offset, len).unwrap();
            model[range].fill(0);
        }
        1 => {
            disk.discard(offset, len).unwrap();
            // Either zeros or what was there: the disk says which, and it must be one of them.
            let mut now = vec![0; len as usize];
            disk.read_at(&mut now, offset).unwrap();
            for (index, (now, before)) in now.iter().zip(&model[range.clone()]).enumerate() {
                assert!(*now == 0 || now == before, "discard made up byte {index} at {offset}");
            }
            model[range].copy_from_slice(&now);
        }
        2 => disk.flush().unwrap(),
        _ => {
            let data = numbers.bytes(len as usize);
            disk.write_at(&data, offset).unwrap();
            model[range].copy_from_slice(&data);
        }
    }
}
