//! Committing overlays, and putting them onto other bases, judged by qemu-img.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::{Path, PathBuf};

use support::{Folder, check, content, open, qemu_content, qemu_img, qemu_io};
use vmwright_disk::{Disk, ErrorKind};
use vmwright_image::chain::{
    AllowAll, CommitOptions, DenyAll, FlattenOptions, NewBase, RebaseOptions, commit, flatten, list, rebase,
};
use vmwright_image::{Format, FormatChoice};
use vmwright_judges::need;

const GATE: AllowAll = AllowAll { probe: false };
const QCOW2: FormatChoice = FormatChoice::Exact(Format::Qcow2);

fn quiet(_done: u64, _total: u64) {}

/// A base, an image over it and one over that, with data of their own, zeros and a hole each.
fn chain(folder: &Folder, base_format: &str) -> [PathBuf; 3] {
    let [base, middle, top] = ["base", "middle.qcow2", "top.qcow2"].map(|name| folder.path(name));
    qemu_img(&format!("create -q -f {base_format} {{}} 2M"), &[&base]);
    qemu_io(&base, base_format, &["write -P 1 0 1M"]);
    qemu_img(
        &format!("create -q -f qcow2 -o cluster_size=4k -F {base_format} -b {{}} {{}}"),
        &[&base, &middle],
    );
    qemu_io(&middle, "qcow2", &["write -P 2 100k 200k", "write -z 400k 64k"]);
    qemu_img("create -q -f qcow2 -F qcow2 -b {} {} 3M", &[&middle, &top]);
    qemu_io(&top, "qcow2", &["write -P 3 200k 300k", "write -z 64k 64k", "write -P 4 2600k 100k"]);
    [base, middle, top]
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}

#[test]
fn a_commit_leaves_what_qemu_leaves() {
    need!("qemu-img", "qemu-io");
    for base_format in ["raw", "qcow2"] {
        let folder = Folder::new();
        let [_, middle, top] = chain(&folder, base_format);
        let before = qemu_content(&top);
        let theirs = Folder::new();
        let [_, their_middle, their_top] = chain(&theirs, base_format);
        qemu_img("commit -q {}", &[&their_top]);

        let done = commit(&top, QCOW2, &GATE, &CommitOptions::default(), &quiet).unwrap();
        assert!(done.emptied);
        assert_eq!(done.base, middle);
        assert_eq!(qemu_content(&middle), qemu_content(&their_middle));
        assert_eq!(qemu_content(&top), before);
        check(&top);
        check(&middle);
        // Nothing is left in the overlay.
        let image = open(&top, true);
        assert!((0..3 << 20).step_by(65536).all(|at| {
            let extent = image.extent_at(at).unwrap();
            extent.depth > 0 || extent.is_zero()
        }));
    }
}

#[test]
fn a_commit_further_down_leaves_the_overlay_as_it_is() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let [base, _, top] = chain(&folder, "raw");
    let (before, overlay) = (qemu_content(&top), std::fs::read(&top).unwrap());
    let options = CommitOptions { base: Some(base.clone()), ..CommitOptions::default() };
    let done = commit(&top, QCOW2, &GATE, &options, &quiet).unwrap();
    assert_eq!((done.emptied, &done.base), (false, &base));
    assert!(content(&open(&base, true)) == before);
    assert!(std::fs::read(&top).unwrap() == overlay);
}

#[test]
fn a_rebase_shows_the_same_over_another_base() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let [base, _, top] = chain(&folder, "qcow2");
    let before = qemu_content(&top);
    let other = folder.path("other.raw");
    qemu_img("create -q -f raw {} 1M", &[&other]);
    qemu_io(&other, "raw", &["write -P 1 0 300k", "write -P 9 500k 200k"]);
    let bases = [
        Some(NewBase { name: "other.raw".into(), format: Format::Raw }),
        Some(NewBase { name: base.to_str().unwrap().into(), format: Format::Qcow2 }),
        None,
    ];
    for base in bases {
        let (named, options) = (base.clone(), RebaseOptions { base, ..RebaseOptions::default() });
        let done = rebase(&top, QCOW2, &GATE, &options, &quiet).unwrap();
        assert!(qemu_content(&top) == before, "{named:?}");
        check(&top);
        let image = open(&top, true);
        assert_eq!(image.backing_file().map(|file| file.name), named.clone().map(|base| base.name));
        if named.as_ref().is_some_and(|base| base.name == "other.raw") {
            // What both bases show is not copied.
            assert!((1..900 << 10).contains(&done.bytes), "{done:?}");
        }
    }
}

#[test]
fn a_rebase_by_name_changes_nothing_but_the_name() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let [_, middle, top] = chain(&folder, "raw");
    let before = qemu_content(&top);
    let moved = folder.path("moved.qcow2");
    copy(&middle, &moved);
    std::fs::remove_file(&middle).unwrap();
    let base = NewBase { name: "moved.qcow2".into(), format: Format::Qcow2 };
    let options = RebaseOptions { base: Some(base), name_only: true, ..RebaseOptions::default() };
    // The old base is gone, and no gate is asked for it.
    assert_eq!(rebase(&top, QCOW2, &DenyAll, &options, &quiet).unwrap().bytes, 0);
    assert!(qemu_content(&top) == before);
    check(&top);
}

#[test]
fn a_base_that_lies_over_the_overlay_is_refused() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let [_, middle, top] = chain(&folder, "raw");
    let bytes = std::fs::read(&middle).unwrap();
    for name in ["top.qcow2", "middle.qcow2"] {
        let base = NewBase { name: name.into(), format: Format::Qcow2 };
        let options = RebaseOptions { base: Some(base), ..RebaseOptions::default() };
        assert!(rebase(&middle, QCOW2, &GATE, &options, &quiet).is_err(), "{name}");
    }
    assert!(std::fs::read(&middle).unwrap() == bytes);
    let _ = top;
}

#[test]
fn a_flat_image_shows_what_its_chain_showed() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let [base, middle, top] = chain(&folder, "raw");
    let before = qemu_content(&top);
    flatten(&top, QCOW2, &GATE, &FlattenOptions::default(), &quiet).unwrap();
    std::fs::remove_file(&middle).unwrap();
    std::fs::remove_file(&base).unwrap();
    assert!(qemu_content(&top) == before);
    check(&top);
    assert_eq!(std::fs::read_dir(top.parent().unwrap()).unwrap().count(), 1);
    let again = flatten(&top, QCOW2, &GATE, &FlattenOptions::default(), &quiet);
    assert_eq!(again.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn an_image_with_snapshots_is_not_flattened() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let [_, _, top] = chain(&folder, "raw");
    qemu_img("snapshot -c before {}", &[&top]);
    let bytes = std::fs::read(&top).unwrap();
    let refused = flatten(&top, QCOW2, &GATE, &FlattenOptions::default(), &quiet);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(std::fs::read(&top).unwrap() == bytes);
}

#[test]
fn a_chain_is_listed_from_the_top_down() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let [base, middle, top] = chain(&folder, "raw");
    let transaction = vmwright_disk::Transaction::begin(vmwright_disk::TransactionOptions::default());
    let chain = list(&transaction, &top, QCOW2, &GATE).unwrap();
    let found: Vec<_> = chain.iter().map(|link| (link.path.clone(), link.format)).collect();
    assert_eq!(found, [(top, Format::Qcow2), (middle, Format::Qcow2), (base, Format::Raw)]);
}

#[test]
fn only_what_lies_beneath_takes_a_commit() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let [base, _, top] = chain(&folder, "raw");
    let stranger = folder.path("stranger");
    copy(&base, &stranger);
    let options = CommitOptions { base: Some(stranger), ..CommitOptions::default() };
    let error = commit(&top, QCOW2, &GATE, &options, &quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let alone = commit(&base, FormatChoice::Exact(Format::Raw), &GATE, &CommitOptions::default(), &quiet);
    assert_eq!(alone.unwrap_err().kind(), ErrorKind::InvalidInput);
}
