//! What a crash may do while the size of a disk changes, or the name of its backing file.

use std::sync::Arc;

use vmwright_disk::fault::{Fault, FaultDisk, Loss, VolatileDisk};
use vmwright_disk::{Disk, MemDisk};

use crate::crash::is_torture;
use crate::{
    BackingFile, Compat, CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, Qcow2Options,
    Result, create_on,
};

const QCOW2: FormatChoice = FormatChoice::Exact(Format::Qcow2);
const BASE: usize = 300_032;

fn open(file: Arc<dyn Disk>, backing: bool) -> Result<Image> {
    let base = Arc::new(MemDisk::from_bytes(vec![9; BASE])) as Arc<dyn Disk>;
    let backing = backing.then_some(base);
    Image::open(file, QCOW2, OpenOptions { backing, cache_bytes: 1, ..OpenOptions::default() })
}

/// An image with data here and there, all of it durable.
fn filled(layout: &Qcow2Options, size: u64, backing: bool) -> Vec<u8> {
    let file = Arc::new(MemDisk::new(0));
    let mut options = CreateOptions::laid_out(Layout::Qcow2(layout.clone()), size);
    options.backing = backing.then(|| BackingFile { name: "base".into(), format: Some("raw".into()) });
    create_on(&(file.clone() as Arc<dyn Disk>), &options).unwrap();
    let image = open(file.clone(), backing).unwrap();
    for offset in (0..size).step_by(30_000) {
        let len = 9000.min(size - offset) as usize;
        image.write_at(&vec![1 + (offset / 30_000) as u8; len], offset).unwrap();
    }
    image.write_at(&[3; 300], size - 300).unwrap();
    image.flush().unwrap();
    file.to_bytes()
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.len() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Crashes everywhere while the size changes: it is the old one or the new one, and what both have is there.
fn resize_and_crash(layout: &Qcow2Options, backing: bool, from: u64, to: u64) -> u64 {
    let bytes = filled(layout, from, backing);
    let before = content(&open(Arc::new(MemDisk::from_bytes(bytes.clone())), backing).unwrap());
    let counter = Arc::new(FaultDisk::new(Arc::new(MemDisk::from_bytes(bytes.clone()))));
    let whole = open(counter.clone(), backing).unwrap();
    whole.set_len(to).unwrap();
    let common = from.min(to) as usize;
    for nth in 0..=counter.changes() {
        for fault in [Fault::Stop, Fault::Tear(700)] {
            let file = Arc::new(VolatileDisk::new(bytes.clone()));
            if let Ok(image) = open(Arc::new(FaultDisk::with_fault(file.clone(), nth, fault)), backing) {
                let _ = image.set_len(to);
            }
            for loss in Loss::choices(file.pending(), if is_torture() { 20 } else { 1 }) {
                let about = format!("{from} to {to}: {fault:?} at change {nth}, {loss:?}");
                let after = Arc::new(MemDisk::from_bytes(file.after_crash(loss)));
                let image = open(after.clone(), backing).unwrap_or_else(|error| panic!("{about}: {error}"));
                assert!(image.len() == from || image.len() == to, "{about}: {}", image.len());
                let report = image.check().unwrap();
                assert!(report.is_safe(), "{about}: {report:?}");
                let now = content(&image);
                assert!(now[..common] == before[..common], "{about}: what stays has changed");
                if image.len() == from {
                    assert!(now == before, "{about}: the old size without its data");
                } else {
                    assert!(now[common..].iter().all(|byte| *byte == 0), "{about}: not zeros");
                }
                // Whatever the crash left past the end does not come back.
                image.set_len(from.max(to) + 200_192).unwrap();
                image.flush().unwrap();
                let report = image.check().unwrap();
                assert!(report.is_safe(), "{about}: grown, {report:?}");
                let grown = content(&open(after, backing).unwrap());
                assert!(grown[now.len()..].iter().all(|byte| *byte == 0), "{about}: grown, not zeros");
                assert!(grown[..now.len()] == now, "{about}: grown, changed");
            }
        }
    }
    counter.changes()
}

#[test]
fn crash_while_growing_leaves_the_old_size_or_the_new_one() {
    // Clusters of 512 bytes: an L2 table maps 32 KiB, and the L1 table has to move.
    let small = Qcow2Options { cluster_size: 512, refcount_bits: 64, ..Qcow2Options::default() };
    assert!(resize_and_crash(&small, false, 100_352, 3_000_320) > 5);
    resize_and_crash(&small, true, 200_192, 400_384);
    let version_2 = Qcow2Options { compat: Compat::V0_10, cluster_size: 4096, ..Qcow2Options::default() };
    resize_and_crash(&version_2, true, 200_192, 400_384);
}

#[test]
fn crash_while_shrinking_leaves_the_old_size_with_its_data_or_the_new_one() {
    let small = Qcow2Options { cluster_size: 512, refcount_bits: 64, ..Qcow2Options::default() };
    assert!(resize_and_crash(&small, false, 300_544, 40_448) > 10);
    resize_and_crash(&small, true, 290_304, 100_352);
    let extended = Qcow2Options { cluster_size: 16384, extended_l2: true, ..Qcow2Options::default() };
    resize_and_crash(&extended, true, 290_304, 20_992);
}

/// Crashes everywhere while the backing file changes its name: it is the old one or the new one.
fn rename_and_crash(layout: &Qcow2Options, from: Option<&str>, to: Option<&str>) {
    let named = |name: &str| BackingFile { name: name.to_owned(), format: Some("raw".to_owned()) };
    let (from, to) = (from.map(named), to.map(named));
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    let options = CreateOptions::laid_out(Layout::Qcow2(layout.clone()), 1 << 20);
    create_on(&file, &CreateOptions { backing: from.clone(), ..options }).unwrap();
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    for nth in 0..8 {
        for fault in [Fault::Stop, Fault::Tear(512)] {
            let file = Arc::new(VolatileDisk::new(bytes.clone()));
            let image = open(Arc::new(FaultDisk::with_fault(file.clone(), nth, fault)), true).unwrap();
            let done = image.driver().set_backing_file(to.as_ref());
            drop(image);
            for loss in Loss::choices(file.pending(), 4) {
                let after = Arc::new(MemDisk::from_bytes(file.after_crash(loss)));
                let image = open(after, true).unwrap_or_else(|error| panic!("{nth}: {error}"));
                let now = image.backing_file();
                assert!(now == from || now == to, "{nth}, {loss:?}: {now:?}");
                assert!(done.is_err() || now == to, "{nth}, {loss:?}: not durable");
                assert!(image.check().unwrap().is_clean());
            }
        }
    }
}

#[test]
fn crash_while_a_backing_file_is_renamed_leaves_one_of_the_names() {
    let long = "x".repeat(1023);
    let names = [None, Some("base"), Some("another/base.raw"), Some(long.as_str())];
    for compat in [Compat::V0_10, Compat::V1_1] {
        for from in names {
            for to in names {
                rename_and_crash(&Qcow2Options { compat, ..Qcow2Options::default() }, from, to);
            }
        }
    }
    // A cluster of one sector changes as one.
    let small = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
    rename_and_crash(&small, Some("base"), Some("another"));
}
