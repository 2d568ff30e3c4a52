//! Every image is a disk, by the suite of all disks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::sync::Arc;

use vmwright_disk::conformance::{Features, check, check_read_only};
use vmwright_disk::{Disk, MemDisk};
use vmwright_image::{
    Compat, CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, Qcow2Options, create_on,
};

fn make(format: Format, qcow2: &Qcow2Options, len: u64) -> Arc<dyn Disk> {
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    let layout = if format == Format::Qcow2 { Layout::Qcow2(qcow2.clone()) } else { Layout::new(format) };
    let options = CreateOptions::laid_out(layout, len);
    create_on(&file, &options).unwrap();
    Arc::new(Image::open(file, FormatChoice::Exact(format), OpenOptions::default()).unwrap())
}

#[test]
fn raw_images_conform() {
    check(&|len| make(Format::Raw, &Qcow2Options::default(), len), Features::default());
}

#[test]
fn qcow2_images_conform() {
    let features = Features { granularity: 512, resizable: true, operations: 300 };
    for (cluster_size, compat) in [(65536, Compat::V1_1), (512, Compat::V1_1), (4096, Compat::V0_10)] {
        let qcow2 = Qcow2Options { cluster_size, compat, ..Qcow2Options::default() };
        check(&|len| make(Format::Qcow2, &qcow2, len), features);
    }
}

#[test]
fn images_opened_for_reading_conform() {
    for format in [Format::Raw, Format::Qcow2] {
        let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
        create_on(&file, &CreateOptions::new(format, 1 << 20)).unwrap();
        let image = Image::open(file.clone(), FormatChoice::Exact(format), OpenOptions::default()).unwrap();
        image.write_at(&[7; 100_000], 1000).unwrap();
        image.flush().unwrap();
        let mut content = vec![0; 1 << 20];
        image.read_at(&mut content, 0).unwrap();
        let reader = Image::open(file, FormatChoice::Exact(format), OpenOptions::read_only()).unwrap();
        check_read_only(&reader, &content);
    }
}
