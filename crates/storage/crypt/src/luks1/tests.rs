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

fn formatted() -> (MemDisk, Header) {
    let (bytes, _) = format(&quick(), &secret()).unwrap();
    let disk = MemDisk::from_bytes(bytes.to_vec());
    let header = Header::read(&disk).unwrap();
    (disk, header)
}

#[test]
fn passphrases_are_added_changed_and_removed_and_the_last_one_stays() {
    let (disk, mut header) = formatted();
    let cost = Cost::Iterations(1000);
    let pass = |index: usize| Passphrase::new(std::format!("number {index}"));
    for index in 1..8 {
        assert_eq!(header.add_passphrase(&disk, &secret(), &pass(index), cost).unwrap(), index);
    }
    let full = header.add_passphrase(&disk, &secret(), &pass(9), cost).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    assert_eq!(Header::read(&disk).unwrap(), header);
    assert_eq!(header.remove_passphrase(&disk, &pass(6), false).unwrap(), 6);
    assert_eq!(header.change_passphrase(&disk, &pass(3), &pass(10), cost).unwrap(), 6);
    assert!(header.unlock(&disk, &pass(3)).unwrap_err().is_wrong_passphrase());
    header.unlock(&disk, &pass(10)).unwrap();
    for index in [0, 1, 2, 4, 5, 7] {
        header.remove_slot(&disk, index, false).unwrap();
    }
    assert_eq!(header.remove_slot(&disk, 0, false).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(header.remove_slot(&disk, 8, false).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(header.remove_slot(&disk, 6, false).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(Header::read(&disk).unwrap(), header);
    header.unlock(&disk, &pass(10)).unwrap();
    header.remove_slot(&disk, 6, true).unwrap();
    assert!(header.unlock(&disk, &pass(10)).unwrap_err().is_wrong_passphrase());
}

#[test]
fn a_crash_while_a_passphrase_changes_leaves_the_old_or_the_new_one() {
    use vmwright_disk::fault::{Fault, FaultDisk, Loss, VolatileDisk};

    let small = FormatOptions { mode: Mode::CbcPlain64, key_bytes: 16, ..quick() };
    let (bytes, _) = format(&small, &secret()).unwrap();
    let new = Passphrase::new("new");
    let mut outcomes = std::collections::BTreeSet::new();
    for nth in 0.. {
        let file = Arc::new(VolatileDisk::new(bytes.to_vec()));
        let faulty = FaultDisk::with_fault(file.clone(), nth, Fault::Tear(700));
        let mut header = Header::read(&faulty).unwrap();
        let changed = header.change_passphrase(&faulty, &secret(), &new, Cost::Iterations(1000));
        // A key is as lost with any of its sectors as with another.
        let step = if file.pending() > 20 { 41 } else { 1 };
        for loss in Loss::choices(file.pending(), 4).step_by(step) {
            let disk = MemDisk::from_bytes(file.after_crash(loss));
            let header = Header::read(&disk).unwrap();
            let opens = |pass| header.unlock(&disk, pass).is_ok();
            let (old, new) = (opens(&secret()), opens(&new));
            assert!(old || new, "after change {nth}, {loss:?}");
            outcomes.insert((old, new));
        }
        if changed.is_ok() {
            break;
        }
    }
    assert_eq!(outcomes.len(), 3);
}

#[test]
fn what_is_destroyed_opens_no_more_even_with_the_header_put_back() {
    let (disk, header) = formatted();
    let mut old = vec![0; 592];
    disk.read_at(&mut old, 0).unwrap();
    header.destroy(&disk).unwrap();
    assert!(Header::read(&disk).is_err());
    disk.write_at(&old, 0).unwrap();
    assert!(Header::read(&disk).unwrap().unlock(&disk, &secret()).unwrap_err().is_wrong_passphrase());
}

#[test]
fn cryptsetup_sees_the_passphrases_that_we_change_and_we_those_it_changes() {
    need!("cryptsetup");
    let (folder, key) = key_file();
    let (bytes, _) = format(&quick(), &secret()).unwrap();
    let path = folder.path().join("disk");
    let disk = HostFile::create(&path, 4 << 20).unwrap();
    disk.write_at(&bytes, 0).unwrap();
    let mut header = Header::read(&disk).unwrap();
    header.add_passphrase(&disk, &secret(), &Passphrase::new("second"), Cost::Iterations(1000)).unwrap();
    header.remove_slot(&disk, 0, false).unwrap();
    drop(disk);
    let second = folder.path().join("second");
    std::fs::write(&second, "second").unwrap();
    let (second, image) = (second.to_str().unwrap(), path.to_str().unwrap());
    run("cryptsetup", ["open", "--test-passphrase", "--key-file", second, image]);
    assert_eq!(
        output("cryptsetup", ["open", "--test-passphrase", "--key-file", &key, image]).status.code(),
        Some(2)
    );
    let args = ["luksAddKey", "-q", "--pbkdf-force-iterations", "1000", "--key-file", second, image, &key];
    run("cryptsetup", args);
    let disk = HostFile::open(&path, true).unwrap();
    Header::read(&disk).unwrap().unlock(&disk, &secret()).unwrap();
}
