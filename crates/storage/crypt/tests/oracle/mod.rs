//! Judges damaged LUKS disks: whatever opens keeps what is written, and no change of a header reaches the content.
//!
//! Shared by the property test and the fuzz target.
#![allow(dead_code, reason = "no user needs all of it")]

use std::sync::Arc;

use sha2::{Digest, Sha256};
use vmwright_crypt::luks1::{self, Cost};
use vmwright_crypt::luks2::{self, Stretch};
use vmwright_crypt::{Argon2, Hash, Header, Kdf, Limits, Mode, Passphrase};
use vmwright_disk::{Disk, ErrorKind, MemDisk};

const PAYLOAD: usize = 8192;

/// Little enough for thousands of tries.
const LIMITS: Limits = Limits { hashes: 20_000, memory_kib: 128, memory_passes_kib: 1024 };

fn secret() -> Passphrase {
    Passphrase::new("correct horse")
}

/// Sound disks to be damaged: version 1, and version 2 with both kinds of stretching.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let mode = Mode::CbcPlain64;
    let cost = Cost::Iterations(1000);
    let one = luks1::FormatOptions { mode, key_bytes: 16, hash: Hash::Sha256, cost, payload_offset: None };
    let argon2 = Kdf::Argon2id(Argon2 { passes: 1, memory_kib: 32, lanes: 1 });
    let two = luks2::FormatOptions {
        mode,
        key_bytes: 16,
        stretch: Stretch::Exactly(argon2),
        digest_cost: cost,
        payload_offset: Some(32768 + 4 * 65536),
        ..luks2::FormatOptions::default()
    };
    let pbkdf2 = Stretch::Pbkdf2 { hash: Hash::Sha256, cost };
    let second = luks2::FormatOptions { stretch: pbkdf2, sector_size: 4096, ..two.clone() };
    let headers = [
        luks1::format(&one, &secret()).unwrap().0,
        luks2::format(&two, &secret()).unwrap().0,
        luks2::format(&second, &secret()).unwrap().0,
    ];
    let mut samples: Vec<Vec<u8>> = headers.iter().map(|header| header.to_vec()).collect();
    samples.iter_mut().for_each(|sample| sample.resize(sample.len() + PAYLOAD, 0x5a));
    samples
}

/// Sets the checksums of both copies of a header of version 2 right, as somebody with bad intentions does.
pub(crate) fn reseal(bytes: &mut [u8]) {
    for at in [0, 0x4000] {
        let Some(copy) = bytes.get_mut(at..at + 0x4000) else { return };
        copy[448..512].fill(0);
        let sum = Sha256::digest(&*copy);
        copy[448..480].copy_from_slice(&sum);
    }
}

/// Puts another number in the place of the `nth` number in the JSON text of both copies.
pub(crate) fn renumber(bytes: &mut [u8], nth: usize, value: &str) {
    for at in [0x1000, 0x5000] {
        let Some(area) = bytes.get_mut(at..at + 0x3000) else { return };
        let end = area.iter().position(|byte| *byte == 0).unwrap_or(area.len());
        let text = area[..end].to_vec();
        let starts: Vec<usize> = (1..end)
            .filter(|at| text[*at].is_ascii_digit() && !text[at - 1].is_ascii_alphanumeric())
            .collect();
        let Some(start) = starts.get(nth % starts.len().max(1)).copied() else { return };
        let len = text[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let new = [&text[..start], value.as_bytes(), &text[start + len..]].concat();
        if new.len() < area.len() {
            area.fill(0);
            area[..new.len()].copy_from_slice(&new);
        }
    }
}

/// Damages must be called corrupt or unsupported, not a mistake of the caller and not the host's.
fn assert_kind(error: &vmwright_crypt::Error, about: &str) {
    let sound = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported);
    assert!(sound || error.is_wrong_passphrase(), "{about}: {error}: {:?}", error.kind());
}

/// Opens, writes, changes passphrases and destroys; whatever works must be right. Answers whether it opened.
pub(crate) fn judge(bytes: Vec<u8>) -> bool {
    let file = Arc::new(MemDisk::from_bytes(bytes));
    let header = match Header::read(&*file) {
        Ok(header) => header,
        Err(error) => {
            assert_kind(&error, "reading");
            return false;
        }
    };
    header.check(&*file);
    let disk = match header.open(file.clone(), &secret(), &LIMITS, false) {
        Ok(disk) => disk,
        Err(error) => {
            assert_kind(&error, "opening");
            return false;
        }
    };
    let mut content = vec![0; disk.len().min(3 * PAYLOAD as u64) as usize];
    disk.read_at(&mut content, 0).unwrap();
    let before = file.to_bytes();
    let offset = header.payload().unwrap().offset as usize;
    assert!(content.len() <= before.len() - offset);
    content.iter_mut().enumerate().for_each(|(index, byte)| *byte = index as u8);
    disk.write_at(&content, 0).unwrap();
    assert!(file.to_bytes()[..offset] == before[..offset], "writing content changed the header");
    let now = if passphrases(&file, header, offset) { Passphrase::new("new") } else { secret() };
    let again = Header::read(&*file).unwrap().open(file.clone(), &now, &LIMITS, true).unwrap();
    let mut now = vec![0; content.len()];
    again.read_at(&mut now, 0).unwrap();
    assert!(now == content, "the content is another after the passphrase was changed");
    let before = file.to_bytes();
    Header::read(&*file).unwrap().destroy(&*file).unwrap();
    assert!(file.to_bytes()[offset..] == before[offset..], "destroying the keys changed the content");
    assert!(Header::read(&*file).is_err());
    true
}

/// Changes the passphrase to `new`, if there is room; the content may not change with it.
fn passphrases(file: &Arc<MemDisk>, mut header: Header, offset: usize) -> bool {
    let before = file.to_bytes();
    let stretch = Stretch::Pbkdf2 { hash: Hash::Sha256, cost: Cost::Iterations(1000) };
    match header.change_passphrase(&**file, &secret(), &Passphrase::new("new"), stretch) {
        Ok(_) => {}
        // A damaged header may have no room, and then nothing changes.
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            assert!(file.to_bytes() == before);
            return false;
        }
        // Objects may be written as lists, which can be read; no header is changed then.
        Err(error) if error.to_string().contains("written as a list") => {
            assert!(file.to_bytes()[..0x8000] == before[..0x8000]);
            return false;
        }
        Err(error) => panic!("changing the passphrase: {error}"),
    }
    assert!(file.to_bytes()[offset..] == before[offset..], "changing a passphrase changed the content");
    let again = Header::read(&**file).unwrap();
    assert!(again.check(&**file).is_empty());
    assert!(again.unlock(&**file, &secret(), &LIMITS).unwrap_err().is_wrong_passphrase());
    true
}
