use vmwright_crypt::{Header, Kdf};
use vmwright_disk::Disk;

use crate::info::{FormatInfo, ImageInfo, Luks2Info, LuksInfo, LuksSlotInfo};
use crate::{Format, Result, allocated};

/// Describes an image without its secret.
pub(crate) fn describe(file: &dyn Disk) -> Result<ImageInfo> {
    let header = Header::read(file)?;
    // What cannot be opened is described all the same.
    let size = header.payload().map_or(0, |payload| payload.len_in(file.len()));
    let mut info = ImageInfo::new(Format::Luks, size, allocated(file)?);
    info.encrypted = true;
    info.format_specific = match &header {
        Header::Luks1(header) => Some(FormatInfo::Luks(luks1(header))),
        Header::Luks2(header) => Some(FormatInfo::Luks(luks2(header))),
        _ => None,
    };
    Ok(info)
}

/// Describes a header of version 1, as QEMU does.
pub(crate) fn luks1(header: &vmwright_crypt::luks1::Header) -> LuksInfo {
    let slots = header.slots.iter().map(|slot| LuksSlotInfo {
        active: slot.active,
        number: None,
        kdf: None,
        memory: None,
        cpus: None,
        iters: slot.active.then_some(slot.iterations),
        stripes: slot.active.then_some(slot.stripes),
        key_offset: slot.offset,
    });
    let cipher = Cipher::of(&header.cipher_name, &header.cipher_mode, header.key_bytes);
    LuksInfo {
        ivgen_alg: cipher.ivgen_alg,
        ivgen_hash_alg: cipher.ivgen_hash_alg,
        hash_alg: header.hash_spec.clone(),
        cipher_alg: cipher.alg,
        cipher_mode: cipher.mode,
        uuid: header.uuid.clone(),
        slots: slots.collect(),
        payload_offset: header.payload_offset(),
        master_key_iters: header.digest_iterations,
        luks2: None,
    }
}

/// Describes a header of version 2, with the words of version 1 where there are any.
fn luks2(header: &vmwright_crypt::luks2::Header) -> LuksInfo {
    let (cipher_name, mode) = header.encryption().split_once('-').unwrap_or((header.encryption(), ""));
    let key_bytes = header.slots().map(|slot| slot.key_bytes).next().unwrap_or(0);
    let cipher = Cipher::of(cipher_name, mode, key_bytes);
    let (hash, iterations) = header.digest_cost().unwrap_or_default();
    LuksInfo {
        ivgen_alg: cipher.ivgen_alg,
        ivgen_hash_alg: cipher.ivgen_hash_alg,
        hash_alg: hash.to_owned(),
        cipher_alg: cipher.alg,
        cipher_mode: cipher.mode,
        uuid: header.uuid.clone(),
        slots: header.slots().map(|slot| luks2_slot(&slot)).collect(),
        payload_offset: header.payload_offset().unwrap_or(0),
        master_key_iters: iterations,
        luks2: Some(Luks2Info {
            version: 2,
            label: header.label.clone(),
            sector_size: header.sector_size().unwrap_or(0),
            requirements: header.requirements().to_vec(),
        }),
    }
}

fn luks2_slot(slot: &vmwright_crypt::luks2::Slot) -> LuksSlotInfo {
    let (iters, memory, cpus) = match slot.cost {
        Some(Kdf::Pbkdf2 { iterations, .. }) => (Some(iterations), None, None),
        Some(Kdf::Argon2i(cost) | Kdf::Argon2id(cost)) => {
            (Some(cost.passes), Some(cost.memory_kib), Some(cost.lanes))
        }
        _ => (None, None, None),
    };
    LuksSlotInfo {
        active: true,
        number: Some(slot.number),
        kdf: Some(slot.kdf),
        memory,
        cpus,
        iters,
        stripes: Some(4000),
        key_offset: slot.offset,
    }
}

/// A cipher in QEMU's words.
struct Cipher {
    alg: String,
    mode: String,
    ivgen_alg: String,
    ivgen_hash_alg: Option<String>,
}

impl Cipher {
    /// Takes the words of a header apart: `aes` with `cbc-essiv:sha256`.
    fn of(name: &str, mode: &str, key_bytes: usize) -> Self {
        let (mode, ivgen) = mode.split_once('-').unwrap_or((mode, ""));
        let (ivgen, hash) = match ivgen.split_once(':') {
            Some((ivgen, hash)) => (ivgen, Some(hash.to_owned())),
            None => (ivgen, None),
        };
        let bits = key_bytes * 8 / if mode == "xts" { 2 } else { 1 };
        Self {
            alg: format!("{name}-{bits}"),
            mode: mode.to_owned(),
            ivgen_alg: ivgen.to_owned(),
            ivgen_hash_alg: hash,
        }
    }
}
