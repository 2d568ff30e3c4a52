use std::sync::Arc;

use vmwright_disk::{Disk, ErrorKind, HostFile, MemDisk, Window};
use vmwright_judges::{need, output, run};

use super::*;
use crate::{Hash, Limits, Mode, Passphrase};

fn quick() -> FormatOptions {
    FormatOptions { cost: Cost::Iterations(1000), ..FormatOptions::default() }
}

fn secret() -> Passphrase {
    Passphrase::new("correct horse")
}

#[test]
fn what_is_formatted_opens_with_its_passphrase_alone_in_every_mode() {
    for mode in Mode::ALL {
        for &key_bytes in mode.key_sizes() {
            let hash = if key_bytes == 24 { Hash::Sha1 } else { Hash::Sha512 };
            let options = FormatOptions { mode, key_bytes, hash, ..quick() };
            let (bytes, cipher) = format(&options, &secret()).unwrap();
            let disk = MemDisk::from_bytes(bytes.to_vec());
            let header = Header::read(&disk).unwrap();
            assert_eq!(header.payload_offset(), bytes.len() as u64);
            assert_eq!(header.encode(), bytes[..592]);
            let again = header.unlock(&disk, &secret()).unwrap();
            let (mut one, mut other) = (vec![3; 8192], vec![3; 8192]);
            cipher.encrypt(77, &mut one).unwrap();
            again.encrypt(77, &mut other).unwrap();
            assert!(one == other && one != vec![3; 8192]);
            let error = header.unlock(&disk, &Passphrase::new("wrong")).unwrap_err();
            assert!(error.is_wrong_passphrase());
        }
    }
}

#[test]
fn the_header_may_be_in_a_window_of_another_file() {
    let (bytes, _) =
        format(&FormatOptions { payload_offset: Some(4096 + 8 * 258_048), ..quick() }, &secret()).unwrap();
    let mut file = vec![9; 65536];
    file.extend_from_slice(&bytes);
    let file: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(file));
    let window = Window::new(file, 65536, bytes.len() as u64).unwrap();
    Header::read(&window).unwrap().unlock(&window, &secret()).unwrap();
}

#[test]
fn every_field_out_of_its_range_is_refused_with_its_place() {
    let (bytes, _) = format(&quick(), &secret()).unwrap();
    let put = |at: usize, value: u32| (at, value.to_be_bytes().to_vec());
    let cases = [
        (0, vec![b'X']),
        (8, vec![b'a'; 32]),
        (40, vec![0x80]),
        (72, b"\x1b[31m".to_vec()),
        (168, vec![b'u'; 40]),
        put(104, 8),
        put(108, 0),
        put(108, u32::MAX),
        put(108, 129),
        put(164, 0),
        put(208, 1),
        put(212, 0),
        put(208 + 40, 0),
        put(208 + 40, u32::MAX),
        put(208 + 48 + 40, 8),
        put(208 + 48 + 40, 9),
        put(208 + 44, 3999),
        put(208 + 44, u32::MAX),
    ];
    for (at, value) in cases {
        let mut bytes = bytes.to_vec();
        bytes[at..at + value.len()].copy_from_slice(&value);
        let error = Header::read(&MemDisk::from_bytes(bytes)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{at}: {error}");
        assert!(error.to_string().contains("0x"), "{error}");
    }
    assert_eq!(Header::read(&MemDisk::new(591)).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_is_not_known_is_named_and_what_costs_too_much_is_refused_at_once() {
    let (bytes, _) = format(&quick(), &secret()).unwrap();
    let huge = u32::MAX.to_be_bytes();
    let cases: [(usize, &[u8], &str); 7] = [
        (6, &[0, 3], "LUKS version \"3\""),
        (8, b"twofish\0", "\"twofish\""),
        (40, b"ctr-plain\0", "\"ctr-plain\""),
        (72, b"whirlpool\0", "\"whirlpool\""),
        (108, &48u32.to_be_bytes(), "of this length"),
        (164, &huge, "costs"),
        (212, &huge, "costs"),
    ];
    for (at, value, named) in cases {
        let mut bytes = bytes.to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        let disk = MemDisk::from_bytes(bytes);
        let error = match Header::read(&disk) {
            Ok(header) => header.unlock(&disk, &secret()).unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    let disk = MemDisk::from_bytes(bytes.to_vec());
    let limits = Limits { hashes: 100, ..Limits::default() };
    let error = Header::read(&disk).unwrap().unlock_within(&disk, &secret(), &limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn key_material_behind_the_end_of_the_file_is_corrupt() {
    let (bytes, _) = format(&quick(), &secret()).unwrap();
    let disk = MemDisk::from_bytes(bytes[..5000].to_vec());
    let error = Header::read(&disk).unwrap().unlock(&disk, &secret()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// A folder with a file that holds the passphrase, as cryptsetup takes it.
fn key_file() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "correct horse").unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn cryptsetup_opens_what_we_format() {
    need!("cryptsetup");
    let (folder, key) = key_file();
    for (mode, key_bytes, hash) in [
        (Mode::XtsPlain64, 64, Hash::Sha256),
        (Mode::XtsPlain, 32, Hash::Sha512),
        (Mode::CbcEssivSha256, 32, Hash::Sha1),
        (Mode::CbcPlain64, 24, Hash::Sha256),
    ] {
        let options = FormatOptions { mode, key_bytes, hash, ..quick() };
        let (bytes, _) = format(&options, &secret()).unwrap();
        let path = folder.path().join("ours");
        let _ = std::fs::remove_file(&path);
        HostFile::create(&path, 4 << 20).unwrap().write_at(&bytes, 0).unwrap();
        let path = path.to_str().unwrap();
        let dump = run("cryptsetup", ["luksDump", path]);
        assert!(dump.contains(mode.name()) && dump.contains("Key Slot 0: ENABLED"), "{dump}");
        run("cryptsetup", ["open", "--test-passphrase", "--type", "luks1", "--key-file", &key, path]);
        std::fs::write(folder.path().join("wrong"), "other").unwrap();
        let wrong = folder.path().join("wrong");
        let args = ["open", "--test-passphrase", "--key-file", wrong.to_str().unwrap(), path];
        assert_eq!(output("cryptsetup", args).status.code(), Some(2));
    }
}

#[test]
fn we_open_what_cryptsetup_formats() {
    need!("cryptsetup");
    let (folder, key) = key_file();
    for (cipher, bits, hash) in [
        ("aes-xts-plain64", "512", "sha256"),
        ("aes-xts-plain", "256", "sha1"),
        ("aes-cbc-essiv:sha256", "256", "sha512"),
        ("aes-cbc-plain", "128", "sha384"),
    ] {
        let path = folder.path().join("theirs");
        std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
        let mut args = vec!["luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000"];
        args.extend(["-c", cipher, "-s", bits, "-h", hash, "--key-file", &key, path.to_str().unwrap()]);
        run("cryptsetup", args);
        let disk = HostFile::open(&path, true).unwrap();
        let header = Header::read(&disk).unwrap();
        header.unlock(&disk, &secret()).unwrap();
        assert!(header.unlock(&disk, &Passphrase::new("x")).unwrap_err().is_wrong_passphrase());
    }
}
