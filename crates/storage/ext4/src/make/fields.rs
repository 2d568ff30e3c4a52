//! The superblock of a new volume.

use zerocopy::{FromZeros, IntoBytes};

use super::geometry::{FIRST_INODE, Geometry};
use super::options::{MakeOptions, NameHash, OnErrors};
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::features::{Features, compat, incompat, ro_compat};
use crate::layout::{CLASSIC_INODE_SIZE, RawInode, RawSuperblock, SUPERBLOCK_MAGIC};

/// `s_state`: unmounted cleanly.
pub(super) const STATE_VALID: u16 = 1;
/// `s_checksum_type`: CRC-32C.
const CHECKSUM_CRC32C: u8 = 1;
/// `s_flags`: names hash with signed characters, as where volumes are made most.
const FLAG_SIGNED_HASH: u32 = 1;
/// `s_flags`: the volume is one to try things with.
const FLAG_TEST: u32 = 4;
/// `s_encoding`: UTF-8 of Unicode 12.1.
const ENCODING_UTF8_12_1: u16 = 1;
/// `s_encrypt_algos`: AES-256-XTS for content, AES-256-CTS for names.
const ENCRYPTION: [u8; 4] = [1, 4, 0, 0];
/// How often a host tells that it uses a volume with the feature `mmp`, in seconds.
pub(super) const MMP_INTERVAL: u16 = 5;
/// The longest such time.
const MMP_MOST: u16 = 300;

/// Features that only kernels have which count what they write.
const COUNTED: Features = Features {
    compat: 0,
    incompat: incompat::FLEX_BG,
    ro_compat: ro_compat::HUGE_FILE
        | ro_compat::GDT_CSUM
        | ro_compat::DIR_NLINK
        | ro_compat::METADATA_CSUM
        | ro_compat::EXTRA_ISIZE,
};

/// Fills in everything that does not depend on where things are put.
pub(super) fn superblock(options: &MakeOptions, geometry: &Geometry) -> Result<RawSuperblock> {
    let mut raw = RawSuperblock::new_zeroed();
    sizes(&mut raw, geometry);
    identity(&mut raw, options, &geometry.features)?;
    behaviour(&mut raw, options, &geometry.features)?;
    if geometry.features.without(&COUNTED) != geometry.features {
        raw.s_kbytes_written.set(1);
    }
    Ok(raw)
}

fn sizes(raw: &mut RawSuperblock, geometry: &Geometry) {
    let log_block = (geometry.block_size / 1024).ilog2();
    raw.s_blocks_count_lo.set(geometry.blocks as u32);
    raw.s_blocks_count_hi.set((geometry.blocks >> 32) as u32);
    raw.s_r_blocks_count_lo.set(geometry.reserved as u32);
    raw.s_r_blocks_count_hi.set((geometry.reserved >> 32) as u32);
    raw.s_first_data_block.set(geometry.first_data_block as u32);
    raw.s_log_block_size.set(log_block);
    raw.s_log_cluster_size.set(log_block + geometry.cluster_blocks.ilog2());
    raw.s_blocks_per_group.set(geometry.blocks_per_group);
    raw.s_clusters_per_group.set(geometry.blocks_per_group / geometry.cluster_blocks);
    raw.s_inodes_per_group.set(geometry.inodes_per_group);
    raw.s_inodes_count.set(geometry.inodes_per_group * geometry.groups);
    raw.s_first_ino.set(FIRST_INODE);
    raw.s_desc_size.set(geometry.desc_size);
    raw.s_reserved_gdt_blocks.set(geometry.reserved_descriptors as u16);
    raw.s_log_groups_per_flex = geometry.log_flex;
    for (field, group) in raw.s_backup_bgs.iter_mut().zip(geometry.settled_backups()) {
        field.set(group);
    }
    inode_size(raw, geometry.inode_size);
    raw.s_feature_compat.set(geometry.features.compat);
    raw.s_feature_incompat.set(geometry.features.incompat);
    raw.s_feature_ro_compat.set(geometry.features.ro_compat);
}

/// Fills in how large inodes are, and how much of that is fields.
pub(super) fn inode_size(raw: &mut RawSuperblock, size: u16) {
    raw.s_inode_size.set(size);
    if usize::from(size) > CLASSIC_INODE_SIZE {
        let extra = (size_of::<RawInode>() - CLASSIC_INODE_SIZE) as u16;
        raw.s_min_extra_isize.set(extra);
        raw.s_want_extra_isize.set(extra);
    }
}

/// Fills in what tells the volume from others.
pub(super) fn identity(raw: &mut RawSuperblock, options: &MakeOptions, features: &Features) -> Result<()> {
    raw.s_magic.set(SUPERBLOCK_MAGIC);
    raw.s_rev_level.set(1);
    raw.s_state.set(STATE_VALID);
    raw.s_creator_os.set(options.creator_os);
    let Ok(now) = u64::try_from(options.now.seconds) else {
        return Err(Error::bad_option("now", "it must not be before 1970"));
    };
    let (low, high) = (now as u32, (now >> 32) as u8);
    for field in [&mut raw.s_mkfs_time, &mut raw.s_lastcheck, &mut raw.s_wtime] {
        field.set(low);
    }
    (raw.s_mkfs_time_hi, raw.s_lastcheck_hi, raw.s_wtime_hi) = (high, high, high);
    raw.s_uuid = *options.uuid.as_bytes();
    if features.has_incompat(incompat::CSUM_SEED) {
        raw.s_checksum_seed.set(crc32c(!0, options.uuid.as_bytes()));
    }
    if features.metadata_csum() {
        raw.s_checksum_type = CHECKSUM_CRC32C;
    }
    for (word, bytes) in raw.s_hash_seed.iter_mut().zip(options.hash_seed.as_bytes().chunks_exact(4)) {
        word.as_mut_bytes().copy_from_slice(bytes);
    }
    fill(&mut raw.s_volume_name, &options.label, ("label", "it has at most 16 bytes, none of them zero"))?;
    let allowed = ("last_mounted", "it has at most 64 bytes, none of them zero");
    fill(&mut raw.s_last_mounted, &options.last_mounted, allowed)
}

fn fill(field: &mut [u8], text: &[u8], (key, allowed): (&'static str, &'static str)) -> Result<()> {
    match field.get_mut(..text.len()) {
        Some(part) if !text.contains(&0) => part.copy_from_slice(text),
        _ => return Err(Error::bad_option(key, allowed)),
    }
    Ok(())
}

/// Fills in what tells kernels how to go about with the volume.
pub(super) fn behaviour(raw: &mut RawSuperblock, options: &MakeOptions, features: &Features) -> Result<()> {
    raw.s_max_mnt_count.set(u16::MAX);
    raw.s_errors.set(match options.on_errors {
        OnErrors::Continue => 1,
        OnErrors::RemountReadOnly => 2,
        OnErrors::Panic => 3,
    });
    raw.s_def_hash_version = match options.name_hash {
        NameHash::Legacy => 0,
        NameHash::HalfMd4 => 1,
        NameHash::Tea => 2,
    };
    raw.s_flags.set(FLAG_SIGNED_HASH | if options.test_filesystem { FLAG_TEST } else { 0 });
    raw.s_default_mount_opts.set(options.mount_options);
    let Ok(stride) = u16::try_from(options.stride) else {
        return Err(Error::bad_option("stride", "it has at most 65535 blocks"));
    };
    raw.s_raid_stride.set(stride);
    raw.s_raid_stripe_width.set(options.stripe_width);
    if features.has_incompat(incompat::CASEFOLD) {
        raw.s_encoding.set(ENCODING_UTF8_12_1);
        raw.s_encoding_flags.set(options.strict_encoding.into());
    } else if options.strict_encoding {
        return Err(Error::bad_option("encoding_flags", "they need the feature casefold"));
    }
    if features.has_incompat(incompat::ENCRYPT) {
        raw.s_encrypt_algos = ENCRYPTION;
    }
    let interval = options.mmp_interval.unwrap_or(0);
    if interval > MMP_MOST {
        return Err(Error::bad_option("mmp_update_interval", "it has at most 300 seconds"));
    }
    let mmp = features.has_incompat(incompat::MMP);
    raw.s_mmp_interval.set(if mmp && interval == 0 { MMP_INTERVAL } else { interval });
    if options.orphan_file_size.is_some() && !features.has_compat(compat::ORPHAN_FILE) {
        return Err(Error::bad_option("orphan_file_size", "it needs the feature orphan_file"));
    }
    Ok(())
}
