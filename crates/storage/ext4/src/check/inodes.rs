//! Inodes: every record of every table.

use super::facts::{Directory, Fact, mark};
use super::report::Place;
use super::{Checker, Problem, content, inline, quota, reserved, special, xattrs};
use crate::error::Result;
use crate::features::{incompat, ro_compat};
use crate::group::INODE_UNINIT;
use crate::inode::{ROOT_INODE, checksums, flags, raw_inode};
use crate::layout::{CLASSIC_INODE_SIZE, RawInode};

/// How many bytes of inode tables are read at once.
const PIECE: usize = 1 << 20;

/// Upper bits of `i_mode`.
pub(super) mod mode {
    pub(crate) const MASK: u16 = 0xf000;
    pub(crate) const FIFO: u16 = 0x1000;
    pub(crate) const CHARACTER: u16 = 0x2000;
    pub(crate) const DIRECTORY: u16 = 0x4000;
    pub(crate) const BLOCK: u16 = 0x6000;
    pub(crate) const REGULAR: u16 = 0x8000;
    pub(crate) const SYMLINK: u16 = 0xa000;
    pub(crate) const SOCKET: u16 = 0xc000;
}

/// A record of an inode table, as it is.
pub(crate) struct Found<'a> {
    pub(crate) number: u32,
    pub(crate) raw: RawInode,
    /// The whole record.
    pub(crate) record: &'a [u8],
    /// How many bytes of fields follow the classic 128; what is impossible counts as none.
    pub(crate) extra_isize: u16,
}

impl Found<'_> {
    pub(crate) fn kind(&self) -> u16 {
        self.raw.i_mode.get() & mode::MASK
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind() == mode::DIRECTORY
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.kind() == mode::REGULAR
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.raw.i_flags.get() & flag != 0
    }

    pub(crate) fn links(&self) -> u16 {
        self.raw.i_links_count.get()
    }

    pub(crate) fn size(&self) -> u64 {
        u64::from(self.raw.i_size_lo.get()) | u64::from(self.raw.i_size_high.get()) << 32
    }

    pub(crate) fn generation(&self) -> u32 {
        self.raw.i_generation.get()
    }

    /// The n-th number of `i_block`.
    pub(crate) fn word(&self, at: usize) -> u32 {
        let bytes = &self.raw.i_block[at * 4..at * 4 + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Whether `i_block` holds nothing but zeros.
    pub(crate) fn is_unmapped(&self) -> bool {
        self.raw.i_block == [0; 60]
    }

    /// The block of extended attributes, or zero.
    pub(crate) fn xattr_block(&self, wide: bool) -> u64 {
        let high = if wide { self.raw.l_i_file_acl_high.get() } else { 0 };
        u64::from(self.raw.i_file_acl_lo.get()) | u64::from(high) << 32
    }

    pub(crate) fn place(&self) -> Place {
        Place::Inode(self.number)
    }
}

/// Checks every inode and claims its blocks.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    let mut buffer = Vec::new();
    for group in 0..checker.superblock.groups {
        check_table(checker, group, &mut buffer)?;
    }
    checker.stats.inodes = checker.superblock.inodes.into();
    large_files(checker);
    Ok(())
}

/// How many inodes of a group may be in use.
pub(super) fn scanned(checker: &Checker, group: u32) -> u32 {
    let descriptor = &checker.groups[group as usize];
    match descriptor.flags & INODE_UNINIT != 0 {
        true => 0,
        false => checker.superblock.inodes_per_group.saturating_sub(descriptor.itable_unused),
    }
}

fn check_table(checker: &mut Checker, group: u32, buffer: &mut Vec<u8>) -> Result<()> {
    let size = usize::from(checker.superblock.inode_size);
    let block_size = checker.reader.block_size();
    let (first, table) =
        (group * checker.superblock.inodes_per_group + 1, checker.groups[group as usize].inode_table);
    let count = scanned(checker, group);
    if table == 0 || count == 0 {
        return Ok(());
    }
    let per_piece = (PIECE / block_size).max(1);
    let blocks = (count as usize * size).div_ceil(block_size);
    let mut number = first;
    for at in (0..blocks).step_by(per_piece) {
        buffer.resize(per_piece.min(blocks - at) * block_size, 0);
        if checker.reader.read(table.saturating_add(at as u64), buffer).is_err() {
            let place = Place::Block(table.saturating_add(at as u64));
            checker.findings.add(Problem::Unreadable, place);
            return Ok(());
        }
        for record in buffer.chunks_exact(size) {
            if number - first == count {
                break;
            }
            check_record(checker, number, record)?;
            number += 1;
        }
    }
    Ok(())
}

fn check_record(checker: &mut Checker, number: u32, record: &[u8]) -> Result<()> {
    let reserved = number < checker.superblock.first_inode();
    if !reserved && record[..CLASSIC_INODE_SIZE] == [0; CLASSIC_INODE_SIZE] {
        return Ok(());
    }
    let raw = raw_inode(record);
    let room = checker.superblock.inode_size - CLASSIC_INODE_SIZE as u16;
    let extra = if room == 0 { 0 } else { raw.i_extra_isize.get() };
    if record[..CLASSIC_INODE_SIZE] != [0; CLASSIC_INODE_SIZE] {
        let (expected, found) = checksums(&checker.superblock, number, record, &raw, extra);
        if expected != found {
            let place = Place::Inode(number);
            checker.findings.mismatch(Problem::InodeChecksum, place, "", expected.into(), found.into());
        }
    }
    let possible = extra <= room && extra.is_multiple_of(4);
    let found = Found { number, raw, record, extra_isize: if possible { extra } else { 0 } };
    times(checker, &found);
    if found.links() == 0 && !reserved && !reserved::is_quota(checker, number) {
        if found.raw.i_dtime == 0 && found.raw.i_mode != 0 {
            checker.findings.add(Problem::DeletedTime, found.place());
        }
        return Ok(());
    }
    flags_and_features(checker, &found);
    if reserved::check(checker, &found)? || found.links() == 0 {
        return Ok(());
    }
    in_use(checker, &found)
}

/// A time of deletion that is the number of an inode is a link of the list of orphans.
fn times(checker: &mut Checker, found: &Found<'_>) {
    let raw = checker.superblock.raw();
    let inodes = raw.s_inodes_count.get();
    let early = |time: u32| time != 0 && time < inodes;
    let ambiguous = early(raw.s_wtime.get()) || early(raw.s_mtime.get()) || early(raw.s_mkfs_time.get());
    let dtime = found.raw.i_dtime.get();
    if early(dtime) && !ambiguous {
        checker.findings.field(Problem::OrphanLink, found.place(), "", dtime.into());
    }
}

/// Flags that need a feature, or that exclude one another.
fn flags_and_features(checker: &mut Checker, found: &Found<'_>) {
    let features = checker.superblock.features;
    let extents = features.has_incompat(incompat::EXTENTS);
    let reserved = found.number < checker.superblock.first_inode();
    let mut wrong = |what| {
        let flags = found.raw.i_flags.get().into();
        checker.findings.field(Problem::InodeFlags, found.place(), what, flags);
    };
    if found.has(flags::CASEFOLD) && (!found.is_directory() || !features.has_incompat(incompat::CASEFOLD)) {
        wrong("casefold");
    }
    let inline = found.has(flags::INLINE_DATA);
    if inline && found.has(flags::EXTENTS) && (extents || features.has_incompat(incompat::INLINE_DATA)) {
        wrong("inline data and extents");
    }
    if inline && !reserved {
        if !features.has_incompat(incompat::INLINE_DATA) {
            wrong("inline data");
        } else if inline::size(found).is_none() {
            checker.findings.add(Problem::InlineData, found.place());
        }
    }
    mapping_flags(checker, found, extents);
}

fn mapping_flags(checker: &mut Checker, found: &Found<'_>, extents: bool) {
    if found.links() == 0 && ![1, ROOT_INODE, 8].contains(&found.number) {
        return;
    }
    let looks_like_extents = content::is_root(&found.raw.i_block);
    let mapped = found.is_regular() || found.is_directory();
    let missing = extents && !found.has(flags::EXTENTS) && mapped && looks_like_extents;
    if missing || (found.has(flags::EXTENTS) && !extents) {
        let flags = found.raw.i_flags.get().into();
        checker.findings.field(Problem::InodeFlags, found.place(), "extents", flags);
    }
}

/// Checks an inode that is not reserved and has links.
fn in_use(checker: &mut Checker, found: &Found<'_>) -> Result<()> {
    if found.raw.i_dtime != 0 {
        checker.findings.field(Problem::DeletedTime, found.place(), "", found.raw.i_dtime.get().into());
    }
    let mut fact = Fact { kind: kind_number(found.kind()), marks: mark::USED, links: found.links() };
    if let Some(field) = impossible_field(checker, found) {
        fact.marks |= mark::BAD;
        checker.findings.add_field(Problem::InodeField, found.place(), field);
    }
    extra_space(checker, found);
    if special::check(checker, found) {
        fact.marks |= mark::BAD;
    }
    for (flag, bit) in [
        (flags::INLINE_DATA, mark::INLINE),
        (flags::ENCRYPT, mark::ENCRYPTED),
        (flags::CASEFOLD, mark::CASEFOLD),
        (flags::EA_INODE, mark::EA_INODE),
        (flags::INDEX, mark::INDEXED),
    ] {
        if found.has(flag) {
            fact.marks |= bit;
        }
    }
    checker.facts.put(found.number, fact);
    count(checker, found);
    content::check(checker, found)
}

fn count(checker: &mut Checker, found: &Found<'_>) {
    let stats = &mut checker.stats;
    match found.kind() {
        mode::DIRECTORY => {
            stats.directories += 1;
            checker.directories.push(Directory {
                inode: found.number,
                generation: found.generation(),
                size: found.size(),
                flags: found.raw.i_flags.get(),
            });
        }
        mode::REGULAR => stats.files += 1,
        mode::SYMLINK => stats.symlinks += 1,
        _ => stats.special += 1,
    }
}

/// The number that directory entries have for a type.
pub(super) fn kind_number(kind: u16) -> u8 {
    match kind {
        mode::REGULAR => 1,
        mode::DIRECTORY => 2,
        mode::CHARACTER => 3,
        mode::BLOCK => 4,
        mode::FIFO => 5,
        mode::SOCKET => 6,
        mode::SYMLINK => 7,
        _ => 0,
    }
}

/// Upper halves that the volume's features do not have, and what nothing has used for decades.
fn impossible_field(checker: &Checker, found: &Found<'_>) -> Option<&'static str> {
    let features = checker.superblock.features;
    let raw = &found.raw;
    let hurd = checker.superblock.raw().s_creator_os == 1;
    let long_directory = found.is_directory() && raw.i_size_high != 0;
    // Two bytes of the Hurd's that lie where the upper half of the space taken lies elsewhere.
    let fragment = hurd && raw.l_i_blocks_high != 0;
    if raw.i_obso_faddr != 0 || fragment {
        Some("fragment")
    } else if long_directory && !features.has_incompat(incompat::LARGEDIR) {
        Some("upper half of the size")
    } else if !hurd && !features.has_incompat(incompat::BIT64) && raw.l_i_file_acl_high != 0 {
        Some("upper half of the block of attributes")
    } else if !hurd && !features.has_ro_compat(ro_compat::HUGE_FILE) && raw.l_i_blocks_high != 0 {
        Some("upper half of the number of blocks")
    } else if found.has(flags::IMAGIC) && !features.has_compat(crate::features::compat::IMAGIC_INODES) {
        Some("imagic flag")
    } else {
        None
    }
}

fn extra_space(checker: &mut Checker, found: &Found<'_>) {
    let room = checker.superblock.inode_size - CLASSIC_INODE_SIZE as u16;
    if room == 0 {
        return;
    }
    let extra = found.raw.i_extra_isize.get();
    if extra != 0 && (extra < 4 || extra > room || !extra.is_multiple_of(4)) {
        checker.findings.field(Problem::InodeExtra, found.place(), "", extra.into());
    }
}

/// Accounts for what the content takes.
pub(super) fn account(checker: &mut Checker, found: &Found<'_>, clusters: u64) {
    let root_or_free = found.number == ROOT_INODE || found.number >= checker.superblock.first_inode();
    let raw = checker.superblock.raw();
    let own = [raw.s_prj_quota_inum.get(), raw.s_orphan_file_inum.get()].contains(&found.number);
    if root_or_free && !own && !found.has(flags::EA_INODE) {
        let size = u64::from(checker.superblock.block_size) * u64::from(checker.superblock.cluster_blocks);
        quota::account(checker, found, clusters.saturating_mul(size));
    }
    if found.is_regular() && found.size() >= 1 << 31 {
        checker.has_large_files = true;
    }
}

/// Files of 2 GiB and more need a feature.
fn large_files(checker: &mut Checker) {
    if checker.has_large_files && !checker.superblock.features.has_ro_compat(ro_compat::LARGE_FILE) {
        checker.findings.add_field(Problem::SuperblockField, Place::Superblock, "large_file");
    }
}

/// Checks the extended attributes; answers how many clusters their block takes.
pub(super) fn attributes(checker: &mut Checker, found: &Found<'_>) -> u64 {
    xattrs::inode(checker, found)
}
