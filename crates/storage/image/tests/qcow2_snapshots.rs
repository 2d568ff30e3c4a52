//! Internal snapshots, made and used by this crate and by qemu-img in turn.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::Path;

use support::{Folder, Numbers, change, check, content, open, qemu_content, qemu_img, qemu_io};
use vmwright_disk::{Disk, ErrorKind};
use vmwright_image::{CreateOptions, Format, FormatChoice, Image, Layout, Qcow2Options, chain, create};
use vmwright_judges::{need, output};

const SIZE: u64 = 3 << 20;

fn open_snapshot(path: &Path, id_or_name: &str) -> vmwright_image::Result<Image> {
    let options =
        chain::ChainOptions { read_only: true, snapshot: Some(id_or_name.to_owned()), ..Default::default() };
    chain::open(path, FormatChoice::Probe, &chain::AllowAll { probe: true }, options)
}

fn qemu_snapshot(path: &Path, name: &str) -> Vec<u8> {
    let raw = path.with_extension("content");
    qemu_img(&format!("convert -l snapshot.name={name} -O raw {{}} {{}}"), &[path, &raw]);
    std::fs::read(&raw).unwrap()
}

/// What qemu-img lists, without the column of times.
fn names(image: &Image) -> Vec<(String, String)> {
    image.snapshots().unwrap().list().unwrap().into_iter().map(|one| (one.id, one.name)).collect()
}

#[test]
fn snapshots_are_made_shown_applied_and_deleted_as_by_qemu_img() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = folder.path("image");
    for (options, seed) in [
        ("cluster_size=64k", 1),
        ("cluster_size=512", 2),
        ("cluster_size=4k,compat=0.10", 3),
        ("cluster_size=4k,refcount_bits=64", 4),
        ("cluster_size=64k,extended_l2=on", 5),
    ] {
        let raw = folder.path("raw");
        let mut model = Numbers(seed).bytes(SIZE as usize);
        model[SIZE as usize / 2..].fill(3);
        model[100_000..300_000].fill(0);
        std::fs::write(&raw, &model).unwrap();
        qemu_img(&format!("convert -c -f raw -O qcow2 -o {options} {{}} {{}}"), &[&raw, &path]);
        let mut numbers = Numbers(seed + 100);
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        for round in 0..6u64 {
            let name = format!("round{round}");
            let image = open(&path, false);
            for _ in 0..12 {
                change(&image, &mut model, &mut numbers, 40_000);
            }
            image.flush().unwrap();
            drop(image);
            if round % 2 == 0 {
                let image = open(&path, false);
                let made = image.snapshots().unwrap().create(&name).unwrap();
                assert_eq!(made.id, (round + 1).to_string());
                assert_eq!(content(&image), model);
            } else {
                qemu_img(&format!("snapshot -c {name} {{}}"), &[&path]);
            }
            check(&path);
            kept.push((name, model.clone()));
            assert!(qemu_content(&path) == model);
            for (name, model) in &kept {
                assert!(content(&open_snapshot(&path, name).unwrap()) == *model, "{options} {name}");
            }
            if round % 3 == 1 {
                let (name, model) = &kept[round as usize / 2];
                assert!(qemu_snapshot(&path, name) == *model, "{options} {name}");
            }
            if round == 3 {
                let (name, old) = kept[1].clone();
                let image = open(&path, false);
                image.snapshots().unwrap().apply(&name).unwrap();
                assert!(content(&image) == old);
                // The image goes on in the same opening.
                model = old;
                change(&image, &mut model, &mut numbers, 40_000);
                image.flush().unwrap();
                assert!(content(&image) == model);
                drop(image);
                check(&path);
                assert!(qemu_content(&path) == model);
            }
            if round == 4 {
                let (name, old) = kept[2].clone();
                qemu_img(&format!("snapshot -a {name} {{}}"), &[&path]);
                model = old;
                assert!(content(&open(&path, true)) == model);
            }
        }
        let image = open(&path, false);
        for (name, _) in kept.drain(..3) {
            image.snapshots().unwrap().delete(&name).unwrap();
            assert!(content(&image) == model);
        }
        assert_eq!(names(&image).len(), 3);
        drop(image);
        check(&path);
        for (name, model) in &kept {
            assert!(qemu_snapshot(&path, name) == *model, "{options} {name}");
        }
        qemu_img("snapshot -d round4 {}", &[&path]);
        let image = open(&path, false);
        assert_eq!(names(&image).len(), 2);
        let made = image.snapshots().unwrap().create("after").unwrap();
        assert_eq!(made.id, "7");
        for (_, name) in names(&image) {
            image.snapshots().unwrap().delete(&name).unwrap();
        }
        // Nobody shares anything any more: all flags are set again, and writing works in place.
        change(&image, &mut model, &mut numbers, 40_000);
        image.flush().unwrap();
        drop(image);
        check(&path);
        assert!(qemu_content(&path) == model);
    }
}

#[test]
fn a_snapshot_of_another_size_brings_its_size_back() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = folder.path("image");
    for (from, to) in [(1, 40), (40, 1)] {
        qemu_img(&format!("create -q -f qcow2 -o cluster_size=4k {{}} {from}M"), &[&path]);
        qemu_io(&path, "qcow2", &["write -P 1 500k 500k"]);
        open(&path, false).snapshots().unwrap().create("before").unwrap();
        let before = content(&open(&path, true));
        if to < from {
            // qemu-img refuses to make an image with snapshots smaller, but not to apply one that is.
            qemu_img("snapshot -d before {}", &[&path]);
            qemu_img(&format!("resize -q --shrink {{}} {to}M"), &[&path]);
            qemu_img("snapshot -c before {}", &[&path]);
            qemu_img(&format!("resize -q {{}} {from}M"), &[&path]);
        } else {
            qemu_img(&format!("resize -q {{}} {to}M"), &[&path]);
        }
        qemu_io(&path, "qcow2", &["write -P 2 900k 100k"]);
        let image = open(&path, false);
        image.snapshots().unwrap().apply("before").unwrap();
        assert_eq!(image.len(), 1 << 20);
        assert!(content(&image) == before[..1 << 20]);
        assert!(image.read_at(&mut [0], 1 << 20).is_err());
        drop(image);
        check(&path);
        assert!(qemu_content(&path) == before[..1 << 20]);
        assert!(content(&open_snapshot(&path, "before").unwrap()) == before[..1 << 20]);
    }
}

#[test]
fn a_saved_machine_state_is_listed_kept_and_deleted() {
    need!("qemu-img", "qemu-system-x86_64");
    let folder = Folder::new();
    let path = folder.path("image");
    qemu_img("create -q -f qcow2 {} 8M", &[&path]);
    let drive = format!("if=none,id=d,format=qcow2,file={}", path.display());
    let monitor = "savevm alive\nquit\n";
    let mut child = std::process::Command::new("qemu-system-x86_64")
        .args(["-M", "microvm", "-accel", "tcg", "-m", "16", "-S", "-display", "none", "-nodefaults"])
        .args(["-drive", &drive, "-monitor", "stdio"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), monitor.as_bytes()).unwrap();
    child.wait().unwrap();
    let image = open(&path, false);
    let listed = image.snapshots().unwrap().list().unwrap();
    if listed.is_empty() {
        vmwright_judges::skip!("this QEMU did not save a machine");
    }
    assert!(listed[0].vm_state_size > 0);
    image.snapshots().unwrap().create("disk only").unwrap();
    image.write_at(&[1; 4096], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    check(&path);
    let image = open(&path, false);
    assert_eq!(image.snapshots().unwrap().list().unwrap()[0], listed[0]);
    image.snapshots().unwrap().apply("alive").unwrap();
    drop(image);
    check(&path);
    let image = open(&path, false);
    image.snapshots().unwrap().delete("1").unwrap();
    assert_eq!(names(&image), [("2".to_owned(), "disk only".to_owned())]);
    drop(image);
    check(&path);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20), false).unwrap();
    let image = open(&path, false);
    image.write_at(&[5; 100_000], 0).unwrap();
    let snapshots = image.snapshots().unwrap();
    assert_eq!(snapshots.apply("nothing").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(snapshots.delete("nothing").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(snapshots.create("").unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(snapshots.create(&"x".repeat(256)).unwrap_err().kind(), ErrorKind::InvalidInput);
    // The image is not worse for it.
    image.write_at(&[6; 100], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    check(&path);
    assert_eq!(open_snapshot(&path, "nothing").unwrap_err().kind(), ErrorKind::NotFound);
    let read_only = open(&path, true);
    assert_eq!(read_only.snapshots().unwrap().create("x").unwrap_err().kind(), ErrorKind::ReadOnly);
    drop(read_only);

    // One bit counts to one: nothing can be shared.
    let layout = Layout::Qcow2(Qcow2Options { refcount_bits: 1, ..Qcow2Options::default() });
    create(&path, &CreateOptions::laid_out(layout, 1 << 20), true).unwrap();
    let image = open(&path, false);
    image.write_at(&[5; 100_000], 0).unwrap();
    assert_eq!(image.snapshots().unwrap().create("x").unwrap_err().kind(), ErrorKind::Unsupported);
    image.write_at(&[6; 100_000], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    check(&path);

    let raw = folder.path("raw");
    std::fs::write(&raw, [0; 4096]).unwrap();
    let options = chain::ChainOptions::default();
    let raw = chain::open(&raw, FormatChoice::Exact(Format::Raw), &chain::DenyAll, options).unwrap();
    assert_eq!(raw.snapshots().unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(raw.bitmaps().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn qemu_img_lists_what_is_made() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20), false).unwrap();
    let made = open(&path, false).snapshots().unwrap().create("Vor der Flut ✓").unwrap();
    let text = output("qemu-img", ["snapshot".as_ref(), "-l".as_ref(), path.as_os_str()]).stdout;
    assert!(String::from_utf8_lossy(&text).contains("Vor der Flut ✓"));
    let info = qemu_img("info --output=json {}", &[&path]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["snapshots"][0], serde_json::to_value(&made).unwrap());
}
