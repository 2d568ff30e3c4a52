//! What the kernel wrote is read as the kernel reads it.

use vmwright_judges::{Mount, can_mount, need, skip};

use crate::images::{Image, KINDS, Kind};
use crate::{populate, tree};

fn reads_as_the_kernel_does(kind: &Kind, names: usize) {
    let image = Image::make(kind, 64);
    populate::everything(Mount::new(image.path(), "noatime").path(), names);
    let ours = tree::of_ours(&image.open());
    let kernel = tree::of_kernel(Mount::new(image.path(), "ro,noatime").path());
    assert!(kernel.len() > names + 350, "the kernel wrote {} files", kernel.len());
    tree::assert_equal(&ours, &kernel, kind.name);
    tree::assert_extents_agree(&image.open(), &*image.disk(true));
}

#[test]
fn every_kind_of_volume_reads_as_the_kernel_reads_it() {
    need!("mke2fs", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    for kind in KINDS.iter().filter(|kind| kind.mountable()) {
        reads_as_the_kernel_does(kind, 1500);
    }
}

#[test]
fn directories_of_20000_names_read_as_the_kernel_reads_them() {
    need!("mke2fs", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    for name in ["default", "1k", "no_index"] {
        reads_as_the_kernel_does(crate::images::named(name), 20_000);
    }
}
