//! Changing what a volume is called, which features it has, and how kernels treat it.
//!
//! Everything is checked before the first change. What the volume's own files take is changed first, then the
//! tables, then all that carries checksums, each structure read as it was and sealed as it shall be; descriptors
//! and the superblock come last.

mod changes;
mod directories;
mod features;
mod fields;
mod files;
mod tables;

use std::sync::Arc;

use vmwright_disk::Disk;

pub use changes::{Changes, HashAlgorithm, OnErrors, Reserved, Tuned};

use crate::checksum::crc32c;
use crate::error::{Error, ErrorKind, Result};
use crate::features::{compat, incompat, ro_compat};
use crate::inode::flags;
use crate::layout::RawSuperblock;
use crate::reseal;
use crate::resize;
use crate::resize::renumber::Numbers;
use crate::resize::space::{Ranges, Space};
use crate::superblock::Superblock;
use crate::volume::{Ext4, Options};
use directories::Homeless;
use features::Wanted;

/// The checksum that `metadata_csum` stands for, CRC-32C.
const CHECKSUM_CRC32C: u8 = 1;

/// Unicode 12.1, the only encoding there is.
const ENCODING_UTF8: u16 = 1;

/// Changes a volume.
///
/// A journal with changes is replayed first. All changes are checked before the first one is made.
///
/// # Errors
///
/// Kind `InvalidInput` where a change makes no sense, `NoSpace` where the volume has no room for it,
/// `Unsupported` where it is not possible on this volume, or the volume must be checked first; `Corrupt` where
/// it is not sound.
pub fn tune(disk: Arc<dyn Disk>, changes: &Changes) -> Result<Tuned> {
    let options = Options { ignore_mmp: changes.clear_mmp, ..Options::writable() };
    let mut volume = Ext4::open(disk.clone(), options)?;
    if let Some(now) = changes.now {
        volume.now = now;
    }
    // The files of the filesystem itself count for nobody.
    volume.quota = None;
    let space = Space::new(&volume, Ranges::default());
    let numbers = Numbers::default();
    let mut tuning = Tuning { volume, space, numbers, changes, homeless: Vec::new(), rewritten: false };
    let wanted = features::wanted(tuning.volume.superblock.features, &changes.features)?;
    tuning.check(&wanted)?;
    tuning.change(&wanted)?;
    let Tuning { mut volume, mut space, mut numbers, homeless, rewritten, .. } = tuning;
    numbers.settle(&mut volume)?;
    resize::finish(&mut volume, &mut space)?;
    if !homeless.is_empty() {
        let now = volume.now;
        volume = Ext4::open(disk, Options::writable())?;
        volume.now = now;
        directories::settle(&mut volume, homeless)?;
        volume.sync_volume()?;
    }
    Ok(Tuned { features: volume.superblock.features.names(), checksums_rewritten: rewritten })
}

/// Gives an open volume, in which nothing is pending, another UUID, and writes that at once.
pub(crate) fn set_uuid(volume: &mut Ext4, uuid: uuid::Uuid) -> Result<()> {
    check_uuid(volume, uuid)?;
    let len = volume.cache.disk().len();
    let new = volume.superblock.edited(len, |raw| raw.s_uuid = *uuid.as_bytes())?;
    take_over(volume, new)?;
    resize::write_out(volume)
}

/// Refuses another UUID where something depends on it that cannot be made again.
fn check_uuid(volume: &Ext4, uuid: uuid::Uuid) -> Result<()> {
    let features = volume.superblock.features;
    if uuid == volume.superblock.uuid() {
        return Ok(());
    }
    if features.has_compat(compat::STABLE_INODES) {
        return Err(Error::unsupported("another UUID where encrypted files depend on it (stable_inodes)"));
    }
    // Values of attributes in inodes of their own are hashed with the same seed.
    if features.has_incompat(incompat::EA_INODE) && !features.has_incompat(incompat::CSUM_SEED) {
        return Err(Error::unsupported("another UUID where values of attributes depend on it (ea_inode)"));
    }
    Ok(())
}

/// Takes over a superblock; answers whether checksums had to be computed again.
fn take_over(volume: &mut Ext4, mut new: Superblock) -> Result<bool> {
    volume.groups.count_free(&mut new);
    let (old, csum) = (&volume.superblock, new.features.metadata_csum());
    let other = csum != old.features.metadata_csum() || (csum && new.checksum_seed != old.checksum_seed);
    if other {
        reseal::reseal(volume, new)?;
        volume.cache.reseed_guard(&volume.superblock);
    } else {
        volume.superblock = new;
        volume.changed = true;
    }
    Ok(other)
}

/// A volume while it is changed.
struct Tuning<'a> {
    volume: Ext4,
    space: Space,
    numbers: Numbers,
    changes: &'a Changes,
    /// Names that found no room beside a checksum.
    homeless: Vec<Homeless>,
    rewritten: bool,
}

impl Tuning<'_> {
    /// Changes fields of the superblock in memory.
    fn edit(&mut self, edit: impl FnOnce(&mut RawSuperblock)) -> Result<()> {
        let len = self.volume.cache.disk().len();
        self.volume.superblock = self.volume.superblock.edited(len, edit)?;
        self.volume.groups.count_free(&mut self.volume.superblock);
        self.volume.changed = true;
        Ok(())
    }

    /// Refuses what is not possible, before anything is changed.
    fn check(&mut self, wanted: &Wanted) -> Result<()> {
        fields::check(self.changes, self.volume.superblock.blocks)?;
        if let Some(uuid) = self.changes.uuid {
            check_uuid(&self.volume, uuid)?;
        }
        if self.changes.journal_blocks.is_some() && !wanted.on.has_compat(compat::HAS_JOURNAL) {
            let problem = "the size of a journal is for one that is added";
            return Err(Error::plain(ErrorKind::InvalidInput, problem));
        }
        if !wanted.all.eq(&self.volume.superblock.features)
            && self.volume.superblock.raw().s_rev_level.get() == 0
        {
            return Err(Error::unsupported("features in a volume of the first revision"));
        }
        if self.changes.hash_seed.is_some() && self.has_index()? {
            return Err(Error::unsupported("another hash seed where directories are indexed"));
        }
        self.check_cleared(wanted)
    }

    fn check_cleared(&self, wanted: &Wanted) -> Result<()> {
        let (volume, off) = (&self.volume, &wanted.off);
        let refuse = |is: bool, detail| if is { Err(Error::unsupported(detail)) } else { Ok(()) };
        if off.has_incompat(incompat::CASEFOLD) {
            let any = directories::any_inode(volume, &|inode| inode.has_flag(flags::CASEFOLD))?;
            refuse(any, "clearing casefold where directories fold case")?;
        }
        if off.has_ro_compat(ro_compat::HUGE_FILE) {
            let any = directories::any_inode(volume, &|inode| {
                inode.has_flag(flags::HUGE_FILE) || inode.sectors > u64::from(u32::MAX)
            })?;
            refuse(any, "clearing huge_file where a file is as large")?;
        }
        if off.has_ro_compat(ro_compat::LARGE_FILE) {
            let any = directories::any_inode(volume, &|inode| inode.size > i32::MAX as u64)?;
            refuse(any, "clearing large_file where a file is as large")?;
        }
        if off.has_ro_compat(ro_compat::DIR_NLINK) {
            let any = directories::any_inode(volume, &|inode| inode.is_directory() && inode.links == 1)?;
            refuse(any, "clearing dir_nlink where a directory has as many others in it")?;
        }
        if off.has_incompat(incompat::FLEX_BG) {
            let superblock = &volume.superblock;
            let table = superblock.inode_table_blocks();
            let apart = volume.groups.iter().zip(0..).any(|(group, number)| {
                let start = superblock.group_start(number);
                let own = start..start + u64::from(superblock.group_blocks(number));
                let places = [group.block_bitmap, group.inode_bitmap, group.inode_table];
                !places.iter().all(|place| own.contains(place)) || group.inode_table + table > own.end
            });
            refuse(apart, "clearing flex_bg where groups keep their metadata in others")?;
        }
        Ok(())
    }

    fn change(&mut self, wanted: &Wanted) -> Result<()> {
        let Wanted { on, off, all } = *wanted;
        // What is taken away makes room for what is added.
        if off.has_compat(compat::ORPHAN_FILE) {
            self.remove_orphan_file()?;
        }
        if off.has_compat(compat::HAS_JOURNAL) {
            self.remove_journal()?;
        }
        if off.has_compat(compat::RESIZE_INODE) {
            self.remove_resize_inode()?;
        }
        if on.has_ro_compat(ro_compat::SPARSE_SUPER) {
            self.thin_out_copies()?;
        }
        if off.has_incompat(incompat::MMP) {
            self.remove_mmp()?;
        }
        if on.has_compat(compat::HAS_JOURNAL) {
            self.add_journal()?;
        }
        if on.has_compat(compat::ORPHAN_FILE) {
            self.add_orphan_file()?;
        }
        if off.has_compat(compat::DIR_INDEX) {
            self.unindex_all()?;
        }
        if let Some(size) = self.changes.inode_size {
            self.widen_inodes(size)?;
        }
        if self.volume.superblock.features.group_csum() && !all.group_csum() {
            self.write_unwritten()?;
        }
        if on.has_ro_compat(ro_compat::METADATA_CSUM) {
            self.make_room_for_checksums()?;
        }
        self.change_superblock(wanted)?;
        // Sealed as everything is by now.
        if on.has_incompat(incompat::MMP) { self.add_mmp() } else { Ok(()) }
    }

    /// Enters the remaining features and all fields, and computes checksums again where they changed.
    fn change_superblock(&mut self, wanted: &Wanted) -> Result<()> {
        let Wanted { on, off, all } = *wanted;
        let (changes, blocks) = (self.changes, self.volume.superblock.blocks);
        let seed = self.volume.superblock.checksum_seed;
        let len = self.volume.cache.disk().len();
        let new = self.volume.superblock.edited(len, |raw| {
            raw.s_feature_compat.set(all.compat);
            raw.s_feature_incompat.set(all.incompat);
            raw.s_feature_ro_compat.set(all.ro_compat);
            if let Some(uuid) = changes.uuid {
                raw.s_uuid = *uuid.as_bytes();
            }
            raw.s_checksum_type = if all.metadata_csum() { CHECKSUM_CRC32C } else { 0 };
            if on.has_incompat(incompat::CSUM_SEED) {
                // The seed stays what it was, whatever becomes of the UUID.
                raw.s_checksum_seed.set(seed);
            }
            if off.has_incompat(incompat::CSUM_SEED) {
                raw.s_checksum_seed.set(0);
            }
            if on.has_incompat(incompat::CASEFOLD) {
                raw.s_encoding.set(ENCODING_UTF8);
                raw.s_encoding_flags.set(0);
            }
            if off.has_incompat(incompat::CASEFOLD) {
                raw.s_encoding.set(0);
                raw.s_encoding_flags.set(0);
            }
            fields::apply(raw, changes, blocks);
            if on.has_compat(compat::DIR_INDEX) {
                prepare_index(raw);
            }
        })?;
        if on.has_incompat(incompat::CSUM_SEED) && on.has_ro_compat(ro_compat::METADATA_CSUM) {
            debug_assert_eq!(new.checksum_seed, crc32c(!0, self.volume.superblock.uuid().as_bytes()));
        }
        self.rewritten = take_over(&mut self.volume, new)?;
        Ok(())
    }
}

/// Sees to it that names can be hashed: with half of MD4, and a seed that follows from the UUID.
fn prepare_index(raw: &mut RawSuperblock) {
    if raw.s_def_hash_version == 0 {
        raw.s_def_hash_version = 1;
    }
    if raw.s_hash_seed.iter().all(|word| word.get() == 0) {
        let uuid = raw.s_uuid;
        for (word, bytes) in raw.s_hash_seed.iter_mut().zip(uuid.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into();
        }
    }
}
