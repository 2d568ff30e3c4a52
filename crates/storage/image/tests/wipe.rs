//! Images that are destroyed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;

use vmwright_crypt::{Header, Passphrase};
use vmwright_disk::{Disk, ErrorKind, HostFile, MemDisk};
use vmwright_image::chain::{Beneath, DenyAll};
use vmwright_image::{
    CreateOptions, Format, FormatChoice, Layout, LuksOptions, WipeOptions, WipePattern, create, wipe,
};

fn luks() -> CreateOptions {
    let mut layout = Layout::Luks(LuksOptions::default());
    layout.set("iterations", "1000").unwrap();
    CreateOptions { secret: Some(Passphrase::new("x")), ..CreateOptions::laid_out(layout, 1 << 20) }
}

#[test]
fn a_wiped_image_is_gone_and_its_blocks_hold_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    for pattern in [WipePattern::Random, WipePattern::Zeros] {
        let path = dir.path().join("disk");
        create(&path, &CreateOptions::new(Format::Raw, 1_000_100), false).unwrap();
        HostFile::open(&path, false).unwrap().write_at(&[7; 900_100], 100_000).unwrap();
        let options = WipeOptions { pattern, even_linked: false };
        // Nothing is known of blocks once a file is gone: what the file held before is seen through an open one.
        let seen = std::sync::Mutex::new(Vec::new());
        let progress = |done: u64, total: u64| {
            if done == total {
                *seen.lock().unwrap() = fs::read(&path).unwrap();
            }
        };
        let wiped = wipe(&path, FormatChoice::Probe, &DenyAll, &options, &progress).unwrap();
        assert_eq!(
            wiped.files,
            [path.canonicalize().unwrap_or(dir.path().canonicalize().unwrap().join("disk"))]
        );
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen.len(), 1_000_100);
        let sevens = seen.iter().filter(|byte| **byte == 7).count();
        let zeros = seen[100_000..].iter().filter(|byte| **byte == 0).count();
        match pattern {
            WipePattern::Zeros => assert_eq!((sevens, zeros), (0, 900_100)),
            WipePattern::Random => assert!(sevens < 5000 && zeros < 5000, "{sevens} {zeros}"),
        }
        assert!(!path.exists());
    }
}

#[test]
fn the_keys_of_luks_are_destroyed_before_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    create(&path, &luks(), false).unwrap();
    let old = fs::read(&path).unwrap();
    let first = std::sync::Mutex::new(None);
    let progress = |_: u64, _: u64| {
        first.lock().unwrap().get_or_insert_with(|| fs::read(&path).unwrap());
    };
    wipe(&path, FormatChoice::Probe, &DenyAll, &WipeOptions::default(), &progress).unwrap();
    let mut first = first.into_inner().unwrap().unwrap();
    let disk = MemDisk::from_bytes(old.clone());
    Header::read(&disk).unwrap().unlock(&disk, &Passphrase::new("x"), &Default::default()).unwrap();
    first[..592].copy_from_slice(&old[..592]);
    let disk = MemDisk::from_bytes(first);
    let header = Header::read(&disk).unwrap();
    assert!(
        header.unlock(&disk, &Passphrase::new("x"), &Default::default()).unwrap_err().is_wrong_passphrase()
    );
    assert!(!path.exists());
}

#[test]
fn what_is_in_use_or_not_allowed_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    create(&path, &luks(), false).unwrap();
    let old = fs::read(&path).unwrap();
    let user = HostFile::open(&path, true).unwrap();
    let gate = Beneath::image_folder();
    let error = wipe(&path, FormatChoice::Probe, &gate, &WipeOptions::default(), &|_, _| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    drop(user);
    fs::hard_link(&path, dir.path().join("again")).unwrap();
    let error = wipe(&path, FormatChoice::Probe, &gate, &WipeOptions::default(), &|_, _| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(fs::read(&path).unwrap() == old);
}

#[test]
fn parts_go_with_their_image_where_the_gate_allows_them() {
    let dir = tempfile::tempdir().unwrap();
    let (path, data) = (dir.path().join("disk.qcow2"), dir.path().join("disk.data"));
    let mut layout = Layout::new(Format::Qcow2);
    layout.set("data_file", "disk.data").unwrap();
    create(&path, &CreateOptions::laid_out(layout, 1 << 20), false).unwrap();
    assert!(data.exists());
    let options = WipeOptions::default();
    assert!(wipe(&path, FormatChoice::Probe, &DenyAll, &options, &|_, _| {}).is_err());
    assert!(path.exists() && data.exists());
    let wiped = wipe(&path, FormatChoice::Probe, &Beneath::image_folder(), &options, &|_, _| {}).unwrap();
    assert_eq!(wiped.files.len(), 2);
    assert!(!path.exists() && !data.exists());
}
