//! LUKS inside of qcow2, QEMU on the other side.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::Path;
use std::sync::Arc;

use support::{Folder, Numbers, change, content};
use vmwright_crypt::Passphrase;
use vmwright_disk::{Disk, ErrorKind, ExtentKind, HostFile};
use vmwright_image::{
    BackingFile, CreateOptions, Format, FormatChoice, Image, Layout, chain, create, describe,
};
use vmwright_judges::{need, output, run};

const SECRET: &str = "secret,id=key,data=open sesame";

fn passphrase() -> Option<Passphrase> {
    Some(Passphrase::new("open sesame"))
}

fn open_with(path: &Path, secret: Option<Passphrase>, cache_bytes: usize) -> vmwright_image::Result<Image> {
    let options = chain::ChainOptions { secret, cache_bytes, ..Default::default() };
    chain::open(path, FormatChoice::Exact(Format::Qcow2), &chain::AllowAll::default(), options)
}

fn create_with_qemu(path: &Path, options: &str, size: u64) {
    let size = size.to_string();
    // On a busy machine QEMU cannot measure short times.
    let made = [10, 50, 100, 400, 2000].into_iter().cycle().take(35).any(|time| {
        let options =
            format!("encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time={time},{options}");
        let (object, path) = (["--object", SECRET], path.to_str().unwrap());
        let args = ["create", "-q", "-f", "qcow2", object[0], object[1], "-o", &options, path, &size];
        output("qemu-img", args).status.success()
    });
    assert!(made, "qemu-img cannot create it with {options}");
}

/// Fails unless qemu-img finds neither errors nor leaks.
fn check(path: &Path) {
    let opts = format!("driver=qcow2,file.filename={},encrypt.key-secret=key", path.display());
    run("qemu-img", ["check", "-q", "--object", SECRET, "--image-opts", &opts]);
}

/// What a guest sees, as QEMU decrypts it.
fn decrypted_by_qemu(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("plain");
    let opts = format!("driver=qcow2,file.filename={},encrypt.key-secret=key", path.display());
    let raw_name = raw.to_str().unwrap();
    run("qemu-img", ["convert", "--object", SECRET, "--image-opts", &opts, "-O", "raw", raw_name]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

fn change_and_judge(path: &Path, mut model: Vec<u8>, numbers: &mut Numbers, scale: u64) -> Vec<u8> {
    for cache in [8 << 20, 1] {
        let image = open_with(path, passphrase(), cache).unwrap();
        for _ in 0..6 {
            change(&image, &mut model, numbers, scale);
            // Parts of sectors, too.
            change(&image, &mut model, numbers, 100);
        }
        image.flush().unwrap();
        assert!(content(&image) == model, "read back");
    }
    check(path);
    assert!(decrypted_by_qemu(path) == model, "as QEMU decrypts it");
    model
}

#[test]
fn what_qemu_encrypts_is_read_and_written() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    let mut numbers = Numbers(21);
    for options in [
        "cluster_size=64k",
        "cluster_size=512,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
        "extended_l2=on,cluster_size=16k,encrypt.hash-alg=sha512",
    ] {
        let size = 400_384;
        create_with_qemu(&path, options, size);
        let opts = format!("driver=qcow2,file.filename={},encrypt.key-secret=key", path.display());
        let write =
            |command: &str| run("qemu-io", ["--object", SECRET, "--image-opts", "-c", command, &opts]);
        write("write -P 7 10k 100k");
        write("write -P 8 300k 50k");
        let mut model = vec![0; size as usize];
        model[10_240..112_640].fill(7);
        model[307_200..358_400].fill(8);
        assert!(content(&open_with(&path, passphrase(), 1 << 20).unwrap()) == model, "{options}");
        change_and_judge(&path, model, &mut numbers, 8192);
    }
}

#[test]
fn what_is_encrypted_here_is_decrypted_by_qemu() {
    need!("qemu-img");
    let folder = Folder::new();
    let (path, base) = (folder.path("image"), folder.path("base"));
    let mut numbers = Numbers(22);
    let under = numbers.bytes(300_032);
    std::fs::write(&base, &under).unwrap();
    for (options, backing) in
        [("preallocation=metadata,cluster_size=4k", false), ("extended_l2=on", true), ("compat=0.10", true)]
    {
        let mut layout = Layout::new(Format::Qcow2);
        for option in options.split(',').chain(["encrypt.iter-time=10"]) {
            let (key, value) = option.split_once('=').unwrap();
            layout.set(key, value).unwrap();
        }
        let named = BackingFile { name: base.to_str().unwrap().to_owned(), format: Some("raw".into()) };
        let create_options = CreateOptions {
            secret: passphrase(),
            backing: backing.then_some(named),
            ..CreateOptions::laid_out(layout, 500_224)
        };
        create(&path, &create_options, true).unwrap();
        check(&path);
        let mut model = if backing { under.clone() } else { Vec::new() };
        model.resize(500_224, 0);
        assert!(content(&open_with(&path, passphrase(), 1 << 20).unwrap()) == model, "{options}: new");
        assert!(decrypted_by_qemu(&path) == model, "{options}: new, as QEMU sees it");
        let mut model = change_and_judge(&path, model, &mut numbers, 20_000);
        // Nothing of it stands in the file plainly, and it grows with zeros.
        let image = open_with(&path, passphrase(), 1).unwrap();
        image.write_at(&[0x5a; 100_000], 50_001).unwrap();
        model[50_001..150_001].fill(0x5a);
        for len in [200_192, 700_416] {
            image.set_len(len).unwrap();
            model.resize(len as usize, 0);
        }
        image.flush().unwrap();
        drop(image);
        let file = std::fs::read(&path).unwrap();
        assert!(!file.windows(512).any(|bytes| bytes.iter().all(|byte| *byte == 0x5a)));
        change_and_judge(&path, model, &mut numbers, 20_000);
    }
}

#[test]
fn the_content_is_refused_without_its_passphrase_and_the_rest_works() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    create_with_qemu(&path, "cluster_size=64k", 1 << 20);
    let wrong = open_with(&path, Some(Passphrase::new("open barley")), 1).unwrap_err();
    assert_eq!(wrong.to_string(), "the passphrase does not open the image");
    let image = open_with(&path, passphrase(), 1).unwrap();
    image.write_at(&[7; 4096], 65536).unwrap();
    image.flush().unwrap();
    assert_eq!(image.extent_at(65536).unwrap().kind, ExtentKind::Opaque);
    drop(image);

    let image = open_with(&path, None, 1).unwrap();
    assert!(image.check().unwrap().is_clean());
    assert_eq!(image.extent_at(65536).unwrap().kind, ExtentKind::Opaque);
    assert!(image.extent_at(0).unwrap().is_zero());
    for result in
        [image.read_at(&mut [0; 512], 65536), image.write_at(&[1; 512], 65536), image.write_at(&[1], 0)]
    {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("needs its passphrase"), "{error}");
    }
    drop(image);
    check(&path);
}

#[test]
fn encryption_is_described_as_qemu_describes_it() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    for options in
        ["cluster_size=64k", "encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256"]
    {
        create_with_qemu(&path, options, 1 << 20);
        let theirs = run("qemu-img", ["info", "--output=json", path.to_str().unwrap()]);
        let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
        let file = HostFile::open(&path, true).unwrap();
        let ours = serde_json::to_value(describe(&file, FormatChoice::Probe).unwrap()).unwrap();
        assert_eq!(ours["format-specific"], theirs["format-specific"], "{options}");
        assert_eq!(ours["encrypted"], true);
    }
}

#[test]
fn a_luks_header_in_a_wrong_place_is_corrupt() {
    let folder = Folder::new();
    let path = folder.path("image");
    let mut layout = Layout::new(Format::Qcow2);
    layout.set("encrypt.iter-time", "1").unwrap();
    let options = CreateOptions { secret: passphrase(), ..CreateOptions::laid_out(layout, 1 << 20) };
    create(&path, &options, false).unwrap();
    let sound = std::fs::read(&path).unwrap();
    let extension = sound.windows(4).position(|bytes| bytes == [0x05, 0x37, 0xbe, 0x77]).unwrap();
    for (at, value) in [(8, 0u64), (8, 100), (8, 1 << 40), (8, 65536), (16, u64::MAX), (16, 100)] {
        let mut bytes = sound.clone();
        bytes[extension + at..][..8].copy_from_slice(&value.to_be_bytes());
        let file = Arc::new(vmwright_disk::MemDisk::from_bytes(bytes));
        let how = vmwright_image::OpenOptions { secret: passphrase(), ..Default::default() };
        let error = Image::open(file, FormatChoice::Exact(Format::Qcow2), how).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{at}: {value:#x}: {error}");
    }
}
