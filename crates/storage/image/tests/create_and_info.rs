//! What this crate makes, as qemu-img sees it, and the other way round.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::Path;

use serde_json::Value;
use vmwright_disk::{Disk, HostFile};
use vmwright_image::{
    Compat, CreateOptions, Error, Format, FormatChoice, Layout, Qcow2Options, chain, create, create_filled,
    describe,
};
use vmwright_judges::{need, run};

fn qemu_info(path: &Path) -> Value {
    let text = run("qemu-img", ["info".as_ref(), "--output=json".as_ref(), path.as_os_str()]);
    let mut value: Value = serde_json::from_str(&text).unwrap();
    let object = value.as_object_mut().unwrap();
    // Names of files as the caller gave them, and space as counted in blocks by the host.
    for key in ["filename", "full-backing-filename", "actual-size"] {
        object.remove(key);
    }
    value
}

fn our_info(path: &Path) -> Value {
    let file = HostFile::open(path, true).unwrap();
    let mut value = serde_json::to_value(describe(&file, FormatChoice::Probe).unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("actual-size");
    value
}

fn check(path: &Path) {
    run("qemu-img", ["check".as_ref(), path.as_os_str()]);
}

#[test]
fn empty_images_of_every_geometry_satisfy_qemu_img() {
    need!("qemu-img");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let sizes = [0, 512, 1 << 20, (1 << 30) + 512, 64 << 30];
    for (index, cluster_bits) in (9..=21).enumerate() {
        let refcount_bits = 1 << (index % 7);
        let qcow2 = Qcow2Options {
            cluster_size: 1 << cluster_bits,
            refcount_bits,
            lazy_refcounts: index % 2 == 0,
            ..Qcow2Options::default()
        };
        let size = sizes[index % sizes.len()];
        let options = CreateOptions::laid_out(Layout::Qcow2(qcow2), size);
        create(&path, &options, true).unwrap();
        check(&path);
        assert_eq!(our_info(&path), qemu_info(&path), "cluster bits {cluster_bits}");
    }
}

#[test]
fn version_2_images_satisfy_qemu_img() {
    need!("qemu-img");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let qcow2 = Qcow2Options { compat: Compat::V0_10, ..Qcow2Options::default() };
    create(&path, &CreateOptions::laid_out(Layout::Qcow2(qcow2), 3 << 30), false).unwrap();
    check(&path);
    assert_eq!(our_info(&path), qemu_info(&path));
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let good = Qcow2Options::default;
    let bad = [
        Qcow2Options { cluster_size: 256, ..good() },
        Qcow2Options { cluster_size: 4 << 20, ..good() },
        Qcow2Options { cluster_size: 65535, ..good() },
        Qcow2Options { refcount_bits: 0, ..good() },
        Qcow2Options { refcount_bits: 128, ..good() },
        Qcow2Options { refcount_bits: 8, compat: Compat::V0_10, ..good() },
    ];
    for qcow2 in bad {
        let options = CreateOptions::laid_out(Layout::Qcow2(qcow2), 1 << 30);
        let error = create(&path, &options, false).unwrap_err();
        assert_eq!(error.kind(), vmwright_disk::ErrorKind::InvalidInput, "{options:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn an_overlay_satisfies_qemu_img() {
    need!("qemu-img");
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    create(&base, &CreateOptions::new(Format::Qcow2, 5 << 20), false).unwrap();
    chain::create_overlay(&top, Path::new("base"), Format::Qcow2, None, false).unwrap();
    check(&top);
    let info = qemu_info(&top);
    assert_eq!(info["backing-filename"], "base");
    assert_eq!(info["backing-filename-format"], "qcow2");
    assert_eq!(info, our_info(&top));
    run("qemu-img", ["compare".as_ref(), base.as_os_str(), top.as_os_str()]);
}

#[test]
fn what_qemu_img_makes_is_described_alike() {
    need!("qemu-img");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let image = path.to_str().unwrap();
    for options in [
        "compat=0.10",
        "cluster_size=512,refcount_bits=1",
        "cluster_size=2M,refcount_bits=64,lazy_refcounts=on",
        "extended_l2=on",
        "compression_type=zstd",
        "preallocation=metadata",
        "cluster_size=16k,extended_l2=on,lazy_refcounts=on",
    ] {
        run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, image, "64M"]);
        run("qemu-img", ["snapshot", "-c", "before the flood", image]);
        if !options.contains("0.10") {
            run("qemu-img", ["bitmap", "--add", "-g", "128k", image, "changes"]);
        }
        assert_eq!(our_info(&path), qemu_info(&path), "{options}");
    }
    for raw in ["off", "on"] {
        let options = format!("data_file={image}.data,data_file_raw={raw}");
        run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", &options, image, "4M"]);
        assert_eq!(our_info(&path), qemu_info(&path), "{options}");
    }
    run("qemu-img", ["create", "-q", "-f", "raw", image, "64M"]);
    let value = qemu_info(&path);
    let ours = our_info(&path);
    for key in ["format", "virtual-size", "dirty-flag"] {
        assert_eq!(value[key], ours[key]);
    }
}

#[test]
fn encrypted_images_are_described_but_not_opened() {
    need!("qemu-img");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let secret = "secret,id=key,data=open sesame";
    let options = "encrypt.format=aes,encrypt.key-secret=key";
    let image = path.to_str().unwrap();
    run("qemu-img", ["create", "-q", "-f", "qcow2", "--object", secret, "-o", options, image, "1M"]);
    assert_eq!(our_info(&path)["encrypted"], true);
    let gate = chain::DenyAll;
    let error = chain::open(&path, FormatChoice::Probe, &gate, chain::ChainOptions::read_only()).unwrap_err();
    assert_eq!(error.kind(), vmwright_disk::ErrorKind::Unsupported);
}

#[test]
fn a_filled_image_appears_complete_or_not_at_all() {
    need!("qemu-img");
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Raw, Format::Qcow2, Format::Vhdx, Format::Vmdk] {
        let (path, raw) = (folder.path().join("image"), folder.path().join("raw"));
        let options = CreateOptions::new(format, 8 << 20);
        let full = |image: std::sync::Arc<vmwright_image::Image>| {
            assert!(!path.exists());
            Err(image.read_at(&mut [0; 1], 8 << 20).unwrap_err().into())
        };
        create_filled::<Error>(&path, &options, false, full).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        create_filled::<Error>(&path, &options, false, |image| Ok(image.write_at(&[7; 70_000], 3 << 20)?))
            .unwrap();
        let name = if format == Format::Vhd { "vpc".to_owned() } else { format.to_string() };
        run("qemu-img", ["convert", "-f", &name, "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
        let content = std::fs::read(&raw).unwrap();
        assert!(content[3 << 20..][..70_000].iter().all(|byte| *byte == 7), "{format}");
        assert_eq!(content.iter().filter(|byte| **byte != 0).count(), 70_000, "{format}");
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&raw).unwrap();
    }
}
