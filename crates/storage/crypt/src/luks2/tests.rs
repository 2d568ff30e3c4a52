use vmwright_disk::{Disk, ErrorKind, HostFile, MemDisk};
use vmwright_judges::{need, output, run};

use super::*;
use crate::luks1::Cost;
use crate::{Argon2, Hash, Kdf, Limits, Mode, Passphrase};

const CHEAP: Argon2 = Argon2 { passes: 4, memory_kib: 64, lanes: 4 };
const STRETCH: Stretch = Stretch::Exactly(Kdf::Argon2id(CHEAP));

fn quick() -> FormatOptions {
    FormatOptions { stretch: STRETCH, digest_cost: Cost::Iterations(1000), ..FormatOptions::default() }
}

fn secret() -> Passphrase {
    Passphrase::new("correct horse")
}

fn unlock(disk: &dyn Disk, passphrase: &Passphrase) -> crate::Result<crate::Cipher> {
    Header::read(disk)?.unlock(disk, passphrase, &Limits::default())
}

fn formatted(options: &FormatOptions) -> MemDisk {
    MemDisk::from_bytes(format(options, &secret()).unwrap().0.to_vec())
}

#[test]
fn what_is_formatted_opens_with_its_passphrase_alone() {
    let pbkdf2 = Stretch::Pbkdf2 { hash: Hash::Sha512, cost: Cost::Iterations(1000) };
    for options in [
        quick(),
        FormatOptions { sector_size: 4096, key_bytes: 32, label: "a disk".into(), ..quick() },
        FormatOptions { stretch: pbkdf2, mode: Mode::CbcEssivSha256, key_bytes: 32, ..quick() },
        FormatOptions {
            stretch: Stretch::Exactly(Kdf::Argon2i(CHEAP)),
            payload_offset: Some(1 << 20),
            ..quick()
        },
    ] {
        let (bytes, cipher) = format(&options, &secret()).unwrap();
        let disk = MemDisk::from_bytes(bytes.to_vec());
        let header = Header::read(&disk).unwrap();
        assert_eq!(header.payload().unwrap().offset, bytes.len() as u64);
        assert_eq!((header.label.as_str(), header.sequence), (options.label.as_str(), 1));
        assert!(header.check(&disk).is_empty());
        let again = unlock(&disk, &secret()).unwrap();
        let (mut one, mut other) = (vec![3; 8192], vec![3; 8192]);
        cipher.encrypt(80, &mut one).unwrap();
        again.encrypt(80, &mut other).unwrap();
        assert!(one == other && one != vec![3; 8192]);
        assert!(unlock(&disk, &Passphrase::new("x")).unwrap_err().is_wrong_passphrase());
    }
}

#[test]
fn either_copy_of_the_header_is_enough_and_the_newer_one_counts() {
    let disk = formatted(&quick());
    let sound = disk.to_bytes();
    for (at, broken) in [(0, "first"), (0x4000, "second")] {
        for place in [0, 6, 8, 16, 72, 256, 448, 5000] {
            let mut bytes = sound.clone();
            bytes[at + place] ^= 0x40;
            let disk = MemDisk::from_bytes(bytes);
            let mut header = Header::read(&disk).unwrap();
            assert_eq!(header.check(&disk).len(), 1, "{broken} at {place}");
            header.unlock(&disk, &secret(), &Limits::default()).unwrap();
            assert!(header.repair(&disk).unwrap());
            let repaired = Header::read(&disk).unwrap();
            assert!(repaired.check(&disk).is_empty() && repaired.sequence == 2);
        }
    }
    let mut header = Header::read(&disk).unwrap();
    header.add_passphrase(&disk, &secret(), &Passphrase::new("new"), STRETCH).unwrap();
    // An older second copy: what a crash between both leaves.
    disk.write_at(&sound[0x4000..0x8000], 0x4000).unwrap();
    let header = Header::read(&disk).unwrap();
    assert_eq!((header.sequence, header.check(&disk).len()), (2, 1));
    unlock(&disk, &Passphrase::new("new")).unwrap();
    let mut neither = sound;
    neither[448] ^= 1;
    neither[0x4000 + 448] ^= 1;
    let error = Header::read(&MemDisk::from_bytes(neither)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn passphrases_are_added_changed_and_removed_and_the_last_one_stays() {
    let disk = formatted(&FormatOptions { payload_offset: Some(32768 + 258_048 * 5), ..quick() });
    let mut header = Header::read(&disk).unwrap();
    let pass = |index: u32| Passphrase::new(std::format!("number {index}"));
    for index in 1..5 {
        assert_eq!(header.add_passphrase(&disk, &secret(), &pass(index), STRETCH).unwrap(), index);
    }
    let full = header.add_passphrase(&disk, &secret(), &pass(9), STRETCH).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    assert_eq!(header.remove_passphrase(&disk, &pass(2), false).unwrap(), 2);
    assert_eq!(header.change_passphrase(&disk, &pass(3), &pass(10), STRETCH).unwrap(), 2);
    let header_now = Header::read(&disk).unwrap();
    assert_eq!(header_now.slots().map(|slot| slot.number).collect::<Vec<_>>(), [0, 1, 2, 4]);
    assert_eq!(header_now.json, header.json);
    assert!(unlock(&disk, &pass(3)).unwrap_err().is_wrong_passphrase());
    unlock(&disk, &pass(10)).unwrap();
    for slot in [0, 1, 4] {
        header.remove_slot(&disk, slot, false).unwrap();
    }
    assert_eq!(header.remove_slot(&disk, 0, false).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(header.remove_slot(&disk, 2, false).unwrap_err().kind(), ErrorKind::InvalidInput);
    header.remove_slot(&disk, 2, true).unwrap();
    assert!(unlock(&disk, &pass(10)).unwrap_err().is_wrong_passphrase());
}

#[test]
fn a_crash_while_a_passphrase_changes_leaves_the_old_or_the_new_one() {
    use std::sync::Arc;
    use vmwright_disk::fault::{Fault, FaultDisk, Loss, VolatileDisk};

    let small =
        FormatOptions { mode: Mode::CbcPlain64, key_bytes: 16, payload_offset: Some(1 << 20), ..quick() };
    let bytes = format(&small, &secret()).unwrap().0;
    let new = Passphrase::new("new");
    let mut outcomes = std::collections::BTreeSet::new();
    for nth in 0.. {
        let file = Arc::new(VolatileDisk::new(bytes.to_vec()));
        let faulty = FaultDisk::with_fault(file.clone(), nth, Fault::Tear(700));
        let mut header = Header::read(&faulty).unwrap();
        let changed = header.change_passphrase(&faulty, &secret(), &new, STRETCH);
        let step = if file.pending() > 20 { 17 } else { 1 };
        for loss in Loss::choices(file.pending(), 4).step_by(step) {
            let disk = MemDisk::from_bytes(file.after_crash(loss));
            let (old, new) = (unlock(&disk, &secret()).is_ok(), unlock(&disk, &new).is_ok());
            assert!(old || new, "after change {nth}, {loss:?}");
            outcomes.insert((old, new));
        }
        if changed.is_ok() {
            break;
        }
    }
    assert_eq!(outcomes.len(), 3);
}

/// Changes the metadata of both copies, checksums and all.
fn with_json(change: &dyn Fn(&mut serde_json::Value)) -> MemDisk {
    let disk = formatted(&FormatOptions { payload_offset: Some(1 << 20), ..quick() });
    let mut header = Header::read(&disk).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&header.json).unwrap();
    change(&mut json);
    header.json = json.to_string().into_bytes();
    for copy in [header::Copy::First, header::Copy::Second] {
        disk.write_at(&header.encode(copy, [7; 64]).unwrap(), copy.place(0x4000)).unwrap();
    }
    disk
}

#[test]
fn metadata_that_contradicts_itself_is_corrupt_and_the_error_says_where() {
    let cases: [(&str, serde_json::Value, &str); 28] = [
        ("/keyslots/0/area/offset", "32767".into(), "keyslots.0"),
        ("/keyslots/0/area/offset", "0".into(), "keyslots.0"),
        ("/keyslots/0/area/offset", "1048576".into(), "keyslots.0"),
        ("/keyslots/0/area/offset", "18446744073709551615".into(), "keyslots.0"),
        ("/keyslots/0/area/offset", "18446744073709551616".into(), "JSON"),
        ("/keyslots/0/area/offset", "-1".into(), "JSON"),
        ("/keyslots/0/area/offset", 32768.into(), "JSON"),
        ("/keyslots/0/area/size", "4096".into(), "keyslots.0"),
        ("/keyslots/0/area/size", "0".into(), "keyslots.0"),
        ("/keyslots/0/area/key_size", 0.into(), "keyslots.0"),
        ("/keyslots/0/key_size", 0.into(), "keyslots.0"),
        ("/keyslots/0/key_size", u64::MAX.into(), "keyslots.0"),
        ("/keyslots/0/af/stripes", 1.into(), "keyslots.0"),
        ("/keyslots/0/af/stripes", u32::MAX.into(), "keyslots.0"),
        ("/keyslots/0/kdf/memory", (1u64 << 40).into(), "JSON"),
        ("/keyslots/0/kdf/salt", "not base64!".into(), "JSON"),
        ("/segments/0/offset", "4096".into(), "segments.0"),
        ("/segments/0/offset", "1048577".into(), "segments.0"),
        ("/segments/0/size", "0".into(), "segments.0"),
        ("/segments/0/size", "18446744073709551104".into(), "segments.0"),
        ("/segments/0/size", "lots".into(), "segments.0"),
        ("/segments/0/sector_size", 8192.into(), "segments.0"),
        ("/segments/0/sector_size", 0.into(), "segments.0"),
        ("/digests/0/keyslots/0", "1".into(), "digests.0"),
        ("/digests/0/iterations", 0.into(), "digests.0"),
        ("/config/json_size", "4096".into(), "config.json_size"),
        ("/config/keyslots_size", "1015809".into(), "config.keyslots_size"),
        ("/config/keyslots_size", "18446744073709547520".into(), "config.keyslots_size"),
    ];
    for (path, value, named) in cases {
        let disk = with_json(&|json| *json.pointer_mut(path).unwrap() = value.clone());
        let error = Header::read(&disk).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{path} {value}: {error}");
        assert!(error.to_string().contains(named) && error.to_string().contains("0x"), "{path}: {error}");
    }
    let padded = with_json(&|json| json["keyslots"]["01"] = json["keyslots"]["0"].clone());
    assert!(Header::read(&padded).unwrap_err().to_string().contains("JSON"));
    let none = with_json(&|json| drop(json.as_object_mut().unwrap().remove("tokens")));
    assert!(Header::read(&none).unwrap_err().to_string().contains("JSON"));
    let twice = with_json(&|json| json["keyslots"]["1"] = json["keyslots"]["0"].clone());
    assert!(Header::read(&twice).unwrap_err().to_string().contains("overlaps"));
    let many = with_json(&|json| json["tokens"]["32"] = serde_json::json!({}));
    assert!(Header::read(&many).unwrap_err().to_string().contains("above 31"));
    let deep = "[".repeat(5000);
    let mut header = Header::read(&formatted(&quick())).unwrap();
    header.json = deep.into_bytes();
    let disk = formatted(&quick());
    for copy in [header::Copy::First, header::Copy::Second] {
        disk.write_at(&header.encode(copy, [7; 64]).unwrap(), copy.place(0x4000)).unwrap();
    }
    assert_eq!(Header::read(&disk).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_cannot_be_opened_is_refused_by_name() {
    use serde_json::json;
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 12] = [
        (
            |json| json["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]}),
            "re-encryption",
        ),
        (|json| json["config"]["requirements"] = json!({"mandatory": ["new-thing"]}), "\"new-thing\""),
        (|json| json["segments"]["0"]["integrity"] = json!({"type": "hmac(sha256)"}), "integrity"),
        (|json| json["segments"]["0"]["type"] = "hw-opal".into(), "\"hw-opal\""),
        (|json| json["segments"]["0"]["encryption"] = "serpent-xts-plain64".into(), "\"serpent\""),
        (|json| json["segments"]["0"]["offset"] = "0".into(), "another file"),
        (|json| json["segments"]["1"] = json["segments"]["0"].clone(), "several segments"),
        (|json| json["digests"]["1"] = json["digests"]["0"].clone(), "several digests"),
        (|json| json["keyslots"]["0"]["kdf"]["memory"] = u32::MAX.into(), "the memory in KiB"),
        (|json| json["keyslots"]["0"]["kdf"]["time"] = u32::MAX.into(), "times passes"),
        (|json| json["digests"]["0"]["iterations"] = u32::MAX.into(), "the number of hashes"),
        (|json| json["keyslots"]["0"]["af"]["hash"] = "blake2b-512".into(), "\"blake2b-512\""),
    ];
    for (change, named) in cases {
        let disk = with_json(&change);
        let header = Header::read(&disk).unwrap();
        let refused = header.payload().and_then(|_| header.unlock(&disk, &secret(), &Limits::default()));
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}

#[test]
fn objects_written_as_lists_are_never_changed() {
    // The order of the fields, as the reader of digests has them.
    let fields = ["type", "keyslots", "segments", "hash", "iterations", "salt", "digest"];
    let disk = with_json(&|json| {
        let digest = json["digests"]["0"].clone();
        json["digests"]["0"] = fields.iter().map(|field| digest[*field].clone()).collect();
    });
    let before = disk.to_bytes()[..0x8000].to_vec();
    let mut header = Header::read(&disk).unwrap();
    header.unlock(&disk, &secret(), &Limits::default()).unwrap();
    let error = header.add_passphrase(&disk, &secret(), &Passphrase::new("new"), STRETCH).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(disk.to_bytes()[..0x8000] == before);
}

#[test]
fn a_slot_that_is_to_be_ignored_is_and_unknown_metadata_survives_a_change() {
    let disk = with_json(&|json| json["keyslots"]["0"]["priority"] = 0.into());
    assert!(unlock(&disk, &secret()).unwrap_err().is_wrong_passphrase());
    let disk = with_json(&|json| {
        json["tokens"]["3"] =
            serde_json::json!({"type": "mine", "keyslots": ["0"], "deep": {"er": [1.5, null]}});
        json["extra"] = "kept".into();
    });
    let mut header = Header::read(&disk).unwrap();
    header.change_passphrase(&disk, &secret(), &Passphrase::new("new"), STRETCH).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&Header::read(&disk).unwrap().json).unwrap();
    assert_eq!(json["extra"], "kept");
    assert_eq!(
        json["tokens"]["3"],
        serde_json::json!({"type": "mine", "keyslots": [], "deep": {"er": [1.5, null]}})
    );
}

#[test]
fn what_is_destroyed_opens_no_more_even_with_the_headers_put_back() {
    let disk = formatted(&quick());
    let old = disk.to_bytes()[..0x8000].to_vec();
    Header::read(&disk).unwrap().destroy(&disk).unwrap();
    assert!(Header::read(&disk).is_err());
    disk.write_at(&old, 0).unwrap();
    assert!(unlock(&disk, &secret()).unwrap_err().is_wrong_passphrase());
}

/// A folder with files that hold passphrases, as cryptsetup takes them.
fn keys() -> (tempfile::TempDir, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("key"), "correct horse").unwrap();
    std::fs::write(path("second"), "second").unwrap();
    let (key, second) = (path("key"), path("second"));
    (folder, key, second)
}

#[test]
fn cryptsetup_opens_what_we_format_and_change() {
    need!("cryptsetup");
    let (folder, key, second) = keys();
    let pbkdf2 = Stretch::Pbkdf2 { hash: Hash::Sha256, cost: Cost::Iterations(1000) };
    for options in [
        quick(),
        FormatOptions { sector_size: 4096, key_bytes: 32, label: "mine".into(), ..quick() },
        FormatOptions { stretch: pbkdf2, hash: Hash::Sha512, payload_offset: Some(1 << 20), ..quick() },
    ] {
        let path = folder.path().join("ours");
        let _ = std::fs::remove_file(&path);
        let disk = HostFile::create(&path, 20 << 20).unwrap();
        disk.write_at(&format(&options, &secret()).unwrap().0, 0).unwrap();
        let path = path.to_str().unwrap().to_owned();
        let open = |key: &str| {
            let args = ["open", "--test-passphrase", "--type", "luks2", "--key-file", key, &path];
            output("cryptsetup", args).status.code()
        };
        assert_eq!((open(&key), open(&second)), (Some(0), Some(2)));
        let dump = run("cryptsetup", ["luksDump", &path]);
        assert!(dump.contains("aes-xts-plain64") && dump.contains(&options.label), "{dump}");
        let mut header = Header::read(&disk).unwrap();
        header.change_passphrase(&disk, &secret(), &Passphrase::new("second"), STRETCH).unwrap();
        assert_eq!((open(&key), open(&second)), (Some(2), Some(0)));
        let args =
            ["luksAddKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file"];
        run("cryptsetup", args.into_iter().chain([second.as_str(), &path, &key]));
        unlock(&disk, &secret()).unwrap();
    }
}

#[test]
fn we_open_what_cryptsetup_formats() {
    need!("cryptsetup");
    let (folder, key, _) = keys();
    let argon2 = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", "64", "--pbkdf-parallel", "2"];
    let cases: [(&[&str], &str); 5] = [
        (&argon2, "--pbkdf=argon2id"),
        (&argon2, "--pbkdf=argon2i"),
        (&["--pbkdf-force-iterations", "1000"], "--pbkdf=pbkdf2"),
        (
            &[
                "--pbkdf-force-iterations",
                "1000",
                "--pbkdf=pbkdf2",
                "-c",
                "aes-cbc-essiv:sha256",
                "-s",
                "256",
            ],
            "--hash=sha512",
        ),
        (
            &["--pbkdf-force-iterations", "1000", "--pbkdf=pbkdf2", "--sector-size", "4096"],
            "--luks2-metadata-size=64k",
        ),
    ];
    for (more, last) in cases {
        let path = folder.path().join("theirs");
        std::fs::File::create(&path).unwrap().set_len(20 << 20).unwrap();
        let mut args = vec!["luksFormat", "-q", "--type", "luks2", "--key-file", &key, last];
        args.extend(more);
        args.push(path.to_str().unwrap());
        run("cryptsetup", args);
        let disk = HostFile::open(&path, true).unwrap();
        assert!(Header::read(&disk).unwrap().check(&disk).is_empty());
        unlock(&disk, &secret()).unwrap();
        assert!(unlock(&disk, &Passphrase::new("x")).unwrap_err().is_wrong_passphrase());
    }
}
