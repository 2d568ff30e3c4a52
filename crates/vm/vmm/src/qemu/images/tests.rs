use vmwright_judges::{need, run};

use super::*;
use crate::ErrorKind;
use crate::spec::Backing;

fn header(version: u32, backing: u64, features: u64) -> Vec<u8> {
    let mut header = vec![0; 104];
    header[..4].copy_from_slice(b"QFI\xfb");
    header[4..8].copy_from_slice(&version.to_be_bytes());
    header[8..16].copy_from_slice(&backing.to_be_bytes());
    header[72..80].copy_from_slice(&features.to_be_bytes());
    header
}

fn problem(header: &[u8], backing: &[(&Path, DiskFormat)]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, header).unwrap();
    let backing = backing.iter().map(|(path, format)| Backing { path: (*path).to_owned(), format: *format });
    let disk = Disk { backing: backing.collect(), ..Disk::new(&path, DiskFormat::Qcow2) };
    let error = check(&disk).err()?;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    Some(error.to_string())
}

#[test]
fn an_image_on_its_own_is_let_through() {
    for version in [2, 3] {
        assert_eq!(problem(&header(version, 0, 0), &[]), None);
    }
    assert_eq!(
        problem(&header(2, 0, EXTERNAL_DATA), &[]),
        None,
        "version 2 has no features: these bytes are others"
    );
}

#[test]
fn an_image_that_needs_an_unlisted_file_is_refused() {
    assert!(problem(&header(3, 112, 0), &[]).unwrap().contains("none is listed"));
    assert!(problem(&header(3, 0, EXTERNAL_DATA), &[]).unwrap().contains("another file"));
    assert!(problem(&header(3, u64::MAX, EXTERNAL_DATA | 1), &[]).unwrap().contains("none is listed"));
}

#[test]
fn the_lowest_listed_image_must_be_complete_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let middle = dir.path().join("middle");
    std::fs::write(&middle, header(3, 112, 0)).unwrap();
    let chain = [(middle.as_path(), DiskFormat::Qcow2)];
    assert!(problem(&header(3, 112, 0), &chain).unwrap().contains("middle has a backing file"));
    std::fs::write(&middle, header(3, 0, 0)).unwrap();
    assert_eq!(problem(&header(3, 112, 0), &chain), None);
}

#[test]
fn what_is_no_image_is_called_so() {
    for bytes in [&b""[..], b"QFI", b"QFI\xfc", &[0; 200]] {
        assert!(problem(bytes, &[]).unwrap().contains("is no qcow2 image"));
    }
    assert!(problem(b"QFI\xfb\0\0\0\x03", &[]).unwrap().contains("cut off"));
}

#[test]
fn images_that_qemu_made_are_judged_as_qemu_would_use_them() {
    need!("qemu-img");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    run("qemu-img", ["create", "-q", "-f", "qcow2", &at("alone"), "1M"]);
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &at("alone"), &at("above")]);
    let external = format!("data_file={}", at("data"));
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", &external, &at("external"), "1M"]);
    let check = |name: &str| check(&Disk::new(at(name), DiskFormat::Qcow2)).is_ok();
    assert!(check("alone") && !check("above") && !check("external"));
}
