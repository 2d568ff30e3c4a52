//! Fields of the superblock that nothing else depends on.

use super::changes::{Changes, HashAlgorithm, OnErrors, Reserved};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::RawSuperblock;

/// The default mount options, and the bits that each needs and takes.
const MOUNT_OPTIONS: [(&str, u32, u32); 12] = [
    ("debug", 0x1, 0x1),
    ("bsdgroups", 0x2, 0x2),
    ("user_xattr", 0x4, 0x4),
    ("acl", 0x8, 0x8),
    ("uid16", 0x10, 0x10),
    ("journal_data", 0x20, 0x60),
    ("journal_data_ordered", 0x40, 0x60),
    ("journal_data_writeback", 0x60, 0x60),
    ("nobarrier", 0x100, 0x100),
    ("block_validity", 0x200, 0x200),
    ("discard", 0x400, 0x400),
    ("nodelalloc", 0x800, 0x800),
];

fn invalid(detail: &'static str) -> Error {
    Error::plain(ErrorKind::InvalidInput, detail)
}

/// Splits `^name` into whether it is to be set, and the name.
pub(super) fn edit(text: &str) -> (bool, &str) {
    match text.strip_prefix('^') {
        Some(name) => (false, name),
        None => (true, text),
    }
}

/// The bits of the default mount options after the edits.
pub(super) fn mount_options(mut bits: u32, edits: &[String]) -> Result<u32> {
    for text in edits {
        let (set, name) = edit(text);
        let found = MOUNT_OPTIONS.iter().find(|(known, _, _)| *known == name);
        let (_, value, mask) = found.ok_or_else(|| invalid("a default mount option is unknown"))?;
        bits &= !mask;
        if set {
            bits |= value;
        }
    }
    Ok(bits)
}

fn reserved_blocks(reserved: Reserved, blocks: u64) -> Result<u64> {
    let count = match reserved {
        Reserved::Blocks(count) => count,
        Reserved::Percent(part) if (0.0..=50.0).contains(&part) => (part * blocks as f64 / 100.0) as u64,
        Reserved::Percent(_) => return Err(invalid("the reserve is not between 0 and 50 percent")),
    };
    match count > blocks / 2 {
        true => Err(invalid("the reserve is more than half of the filesystem")),
        false => Ok(count),
    }
}

/// Fills a field of bytes, its end with zeros.
fn fill(field: &mut [u8], bytes: &[u8]) {
    field.fill(0);
    field[..bytes.len()].copy_from_slice(bytes);
}

/// Refuses what does not fit, before anything is changed.
pub(super) fn check(changes: &Changes, blocks: u64) -> Result<()> {
    let fits = |bytes: &Option<Vec<u8>>, most: usize| {
        bytes.as_ref().is_none_or(|bytes| bytes.len() <= most && !bytes.contains(&0))
    };
    if !fits(&changes.label, 16) {
        return Err(invalid("the label is longer than 16 bytes or has a zero byte in it"));
    }
    if !fits(&changes.last_mounted, 63) || !fits(&changes.extended_mount_options, 63) {
        return Err(invalid("a text is longer than 63 bytes or has a zero byte in it"));
    }
    if let Some(reserved) = changes.reserved {
        reserved_blocks(reserved, blocks)?;
    }
    mount_options(0, &changes.mount_options).map(|_| ())
}

/// Makes the changes that [`check`] has let through.
pub(super) fn apply(raw: &mut RawSuperblock, changes: &Changes, blocks: u64) {
    if let Some(label) = &changes.label {
        fill(&mut raw.s_volume_name, label);
    }
    if let Some(path) = &changes.last_mounted {
        fill(&mut raw.s_last_mounted, path);
    }
    if let Some(options) = &changes.extended_mount_options {
        fill(&mut raw.s_mount_opts, options);
    }
    if let Some(count) = changes.reserved.and_then(|reserved| reserved_blocks(reserved, blocks).ok()) {
        raw.s_r_blocks_count_lo.set(count as u32);
        // Less than the number of blocks, whose upper half is zero without `64bit`.
        raw.s_r_blocks_count_hi.set((count >> 32) as u32);
    }
    if let Ok(bits) = mount_options(raw.s_default_mount_opts.get(), &changes.mount_options) {
        raw.s_default_mount_opts.set(bits);
    }
    if let Some(uid) = changes.reserved_uid {
        raw.s_def_resuid.set(uid);
    }
    if let Some(gid) = changes.reserved_gid {
        raw.s_def_resgid.set(gid);
    }
    if let Some(width) = changes.stripe_width {
        raw.s_raid_stripe_width.set(width);
    }
    if let Some(stride) = changes.stride {
        raw.s_raid_stride.set(stride);
    }
    apply_checks(raw, changes);
    apply_choices(raw, changes);
}

fn apply_checks(raw: &mut RawSuperblock, changes: &Changes) {
    match changes.max_mount_count {
        Some(0) => raw.s_max_mnt_count.set(u16::MAX),
        Some(count) => raw.s_max_mnt_count.set(count),
        None => {}
    }
    if let Some(count) = changes.mount_count {
        raw.s_mnt_count.set(count);
    }
    if let Some(seconds) = changes.check_interval {
        raw.s_checkinterval.set(seconds);
    }
    if let Some(seconds) = changes.last_checked.and_then(|seconds| u64::try_from(seconds).ok()) {
        raw.s_lastcheck.set(seconds as u32);
        raw.s_lastcheck_hi = (seconds >> 32) as u8;
    }
}

fn apply_choices(raw: &mut RawSuperblock, changes: &Changes) {
    if let Some(choice) = changes.on_errors {
        raw.s_errors.set(match choice {
            OnErrors::Continue => 1,
            OnErrors::ReadOnly => 2,
            OnErrors::Panic => 3,
        });
    }
    if let Some(algorithm) = changes.hash_algorithm {
        raw.s_def_hash_version = match algorithm {
            HashAlgorithm::Legacy => 0,
            HashAlgorithm::HalfMd4 => 1,
            HashAlgorithm::Tea => 2,
        };
    }
    if let Some(seed) = changes.hash_seed {
        for (word, bytes) in raw.s_hash_seed.iter_mut().zip(seed.as_bytes().chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into();
        }
    }
}
