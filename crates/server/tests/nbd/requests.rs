//! Changes through QEMU's client, and what the image is afterwards.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::sync::Arc;

use vmwright_disk::Disk;
use vmwright_disk::fault::{Fault, FaultDisk};
use vmwright_image::{CreateOptions, Format, FormatChoice, Image, OpenOptions, create_on};
use vmwright_judges::{Mount, need, output, run, skip};
use vmwright_server::nbd::Export;

use crate::support::{Folder, Numbers, Running, new_image, qemu_img, qemu_io, reads, sample};

const SIZE: u64 = 8 << 20;

/// Random changes as qemu-io commands, made to a model too; zeros and discards are of whole sectors.
fn changes(model: &mut [u8], numbers: &mut Numbers, count: usize) -> Vec<String> {
    let mut commands = Vec::new();
    for _ in 0..count {
        let offset = numbers.below(SIZE / 512) * 512;
        let len = ((1 + numbers.below(400)) * 512).min(SIZE - offset);
        let range = offset as usize..(offset + len) as usize;
        let pattern = 1 + numbers.below(255) as u8;
        let (command, byte) = match numbers.below(8) {
            0 => (format!("write -z {offset} {len}"), Some(0)),
            1 => (format!("write -z -u {offset} {len}"), Some(0)),
            2 => (format!("write -f -P {pattern} {offset} {len}"), Some(pattern)),
            3 => ("flush".to_owned(), None),
            _ => (format!("write -P {pattern} {offset} {len}"), Some(pattern)),
        };
        if let Some(byte) = byte {
            model[range].fill(byte);
        }
        commands.push(command);
    }
    commands
}

#[test]
fn images_hold_what_qemu_io_wrote_through_the_server() {
    need!("qemu-io", "qemu-img");
    let others = [Format::Vmdk, Format::Vhd, Format::Vhdx, Format::Vdi].map(|format| (format, 4));
    for (format, seed) in [(Format::Raw, 1), (Format::Qcow2, 2), (Format::Qcow2, 3)].into_iter().chain(others)
    {
        let folder = Folder::new();
        let disk = new_image(&folder.path("image"), format, SIZE);
        // Some formats have sizes of their own.
        let mut model = vec![0; disk.len() as usize];
        let server = Running::one(&folder, Export::new("disk", disk).writable());
        let mut numbers = Numbers(seed);
        for _ in 0..3 {
            let commands = changes(&mut model, &mut numbers, 60);
            let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
            let text = qemu_io(&server.uri("disk"), &[], &commands);
            assert!(!text.contains("failed"), "{text}");
        }
        std::fs::write(folder.path("model"), &model).unwrap();
        let name = format.qemu_name();
        qemu_img(&format!("compare -f raw -F raw {} {}", folder.text("model"), server.uri("disk")));
        assert_eq!(server.stop().unwrap().failed_requests, 0);
        qemu_img(&format!("compare -f raw -F {name} {} {}", folder.text("model"), folder.text("image")));
        if !matches!(format, Format::Raw | Format::Vhd) {
            qemu_img(&format!("check -q -f {name} {}", folder.text("image")));
        }
    }
}

#[test]
fn what_was_flushed_is_in_the_file_while_the_server_goes_on() {
    need!("qemu-io", "qemu-img");
    let folder = Folder::new();
    let disk = new_image(&folder.path("image"), Format::Qcow2, SIZE);
    let server = Running::one(&folder, Export::new("disk", disk).writable());
    let text = qemu_io(
        &server.uri("disk"),
        &[],
        &["write -P 7 1M 64k", "flush", "discard 1M 64k", "write -P 8 3M 4k"],
    );
    assert!(!text.contains("failed"), "{text}");
    server.wait_for("Served");
    // The client has gone, so that even what it did not flush is there. The server holds the lock, so look at a copy.
    std::fs::copy(folder.path("image"), folder.path("now")).unwrap();
    qemu_img(&format!("check -q -f qcow2 {}", folder.text("now")));
    let copy = folder.text("copy");
    qemu_img(&format!("convert -f qcow2 -O raw {} {copy}", folder.text("now")));
    let bytes = std::fs::read(&copy).unwrap();
    assert!(bytes[3 << 20..][..4096].iter().all(|byte| *byte == 8));
    assert!(server.is_running());
    server.stop().unwrap();
}

#[test]
fn an_export_for_reading_refuses_every_change() {
    need!("qemu-io");
    let folder = Folder::new();
    let expected = sample(&folder.path("source"), 1 << 20);
    let disk = crate::support::open_image(&folder.path("source"), Format::Raw, false);
    let server = Running::one(&folder, Export::new("disk", disk));
    let text = qemu_io(&server.uri("disk"), &[], &["write 0 512"]);
    assert!(text.contains("Permission denied"), "{text}");
    let text = qemu_io(&server.uri("disk"), &["-r"], &["read 0 512", "write 0 512"]);
    assert!(text.contains("read 512/512") && !text.contains("wrote"), "{text}");
    server.stop().unwrap();
    assert!(std::fs::read(folder.path("source")).unwrap() == expected);
}

#[test]
fn a_full_disk_is_told_to_the_client_and_the_server_goes_on() {
    need!("qemu-io", "qemu-img");
    let folder = Folder::new();
    let file = Arc::new(vmwright_disk::HostFile::create(&folder.path("image"), 0).unwrap());
    let fault = Arc::new(FaultDisk::new(file.clone()));
    let beneath: Arc<dyn Disk> = fault.clone();
    create_on(&beneath, &CreateOptions::new(Format::Qcow2, SIZE)).unwrap();
    beneath.flush().unwrap();
    let image = Image::open(beneath, FormatChoice::Exact(Format::Qcow2), OpenOptions::default()).unwrap();
    let server = Running::one(&folder, Export::new("disk", Arc::new(image)).writable());
    let (mut full, mut written) = (0, Vec::new());
    for number in 0..12_u64 {
        fault.set_fault(fault.changes() + 1, Fault::NoSpace);
        let command = format!("write -P {} {} 64k", number + 1, number * 65536);
        let text = qemu_io(&server.uri("disk"), &[], &[&command]);
        match text.contains("No space left on device") {
            true => full += 1,
            false => written.push(number),
        }
    }
    // Not all: what the server flushes after each client may meet it instead.
    assert!(full >= 3, "{full} of 12 writes met the full disk");
    fault.set_fault(u64::MAX, Fault::NoSpace);
    let text = qemu_io(&server.uri("disk"), &[], &["write -P 99 4M 64k", "read -P 99 4M 64k"]);
    assert!(!text.contains("failed"), "{text}");
    for number in written {
        let command = format!("read -P {} {} 64k", number + 1, number * 65536);
        let text = qemu_io(&server.uri("disk"), &[], &[&command]);
        assert!(!text.contains("failed"), "{text}");
    }
    // A client's last flush may have met the fault, which the server then ends with.
    let _ = server.stop();
    drop((fault, file));
    let check = output("qemu-img", ["check", "-f", "qcow2", &folder.text("image")]);
    assert!(matches!(check.status.code(), Some(0 | 3)), "no errors, though space may have leaked: {check:?}");
    reads(&folder.path("image"), "qcow2", &["read -P 99 4M 64k".to_owned()]);
}

#[test]
fn a_host_that_is_full_indeed_is_told_and_room_made_there_is_used() {
    need!("qemu-io", "qemu-img", "mke2fs");
    if !vmwright_judges::can_mount() {
        skip!("nothing can be mounted here");
    }
    let folder = Folder::new();
    std::fs::File::create(folder.path("small")).unwrap().set_len(8 << 20).unwrap();
    run("mke2fs", ["-q", "-t", "ext4", &folder.text("small")]);
    let host = Mount::new(&folder.path("small"), "rw");
    let image = host.path().join("image");
    std::fs::write(host.path().join("ballast"), vec![1; 2 << 20]).unwrap();
    let disk = new_image(&image, Format::Qcow2, 64 << 20);
    let server = Running::one(&folder, Export::new("disk", disk).writable());
    let text = qemu_io(&server.uri("disk"), &[], &["write -P 1 0 1M", "flush"]);
    assert!(!text.contains("failed"), "{text}");
    let text = qemu_io(&server.uri("disk"), &[], &["write -P 2 1M 8M", "read -P 1 0 1M"]);
    assert!(text.contains("No space left on device"), "{text}");
    std::fs::remove_file(host.path().join("ballast")).unwrap();
    let text = qemu_io(&server.uri("disk"), &[], &["write -P 3 20M 1M", "flush", "read -P 3 20M 1M"]);
    assert!(!text.contains("failed"), "{text}");
    // The flush of the client that met the full host may have failed; what came later is durable all the same.
    let _ = server.stop();
    let check = output("qemu-img", ["check", "-f", "qcow2", image.to_str().unwrap()]);
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
    reads(&image, "qcow2", &["read -P 1 0 1M", "read -P 3 20M 1M"].map(str::to_owned));
}

#[test]
fn several_clients_write_to_one_image_at_once() {
    need!("qemu-io", "qemu-img");
    let folder = Folder::new();
    let disk = new_image(&folder.path("image"), Format::Qcow2, SIZE);
    let server = Running::one(&folder, Export::new("disk", disk).writable());
    std::thread::scope(|scope| {
        for client in 0..4_u64 {
            let uri = server.uri("disk");
            scope.spawn(move || {
                let write =
                    |n: u64| format!("aio_write -P {} {} 20k", client * 60 + n + 1, (n * 4 + client) * 20480);
                let mut commands: Vec<String> = (0..50).map(write).collect();
                commands.push("aio_flush".into());
                let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
                let text = qemu_io(&uri, &[], &commands);
                assert!(!text.contains("failed"), "{text}");
            });
        }
    });
    server.stop().unwrap();
    qemu_img(&format!("check -q -f qcow2 {}", folder.text("image")));
    let read = |at: u64| format!("read -P {} {} 20k", at % 4 * 60 + at / 4 + 1, at * 20480);
    let commands: Vec<String> = (0..200).map(read).collect();
    reads(&folder.path("image"), "qcow2", &commands);
}
