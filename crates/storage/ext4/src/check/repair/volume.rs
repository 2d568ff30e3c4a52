//! Repairs that take space and names: they are made as any other change of a volume.

use std::sync::Arc;

use vmwright_disk::Disk;
use vmwright_vfs::{NewNode, NodeKind};

use crate::check::{Checker, Finding, Problem};
use crate::error::{Error, ErrorKind, Result};
use crate::features::incompat;
use crate::inode::{ROOT_INODE, flags};
use crate::layout::SUPERBLOCK_OFFSET;
use crate::mapping::RunPlace;
use crate::mmp::Guard;
use crate::superblock::Superblock;
use crate::volume::{Ext4, Options};

/// Where what has no name gets one.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// How many bytes of metadata are changed in memory before any reaches the disk, so that what fails leaves
/// nothing behind.
const CACHE: usize = 256 << 20;

fn options() -> Options {
    Options { metadata_cache: CACHE, ..Options::writable() }
}

fn open(disk: &Arc<dyn Disk>) -> Result<Ext4> {
    let superblock = Superblock::read(&**disk)?;
    superblock.features.check_writable()?;
    superblock.check_clusters()?;
    Ext4::assemble(disk.clone(), superblock, options())
}

/// What tells other hosts that the volume is being changed, where it has such a thing; and what time it is.
pub(super) fn guard(disk: &Arc<dyn Disk>) -> Result<Option<(Guard, i64)>> {
    let superblock = Superblock::read(&**disk)?;
    match superblock.features.has_incompat(incompat::MMP) {
        true => Ok(Some((Guard::read(disk, &superblock, false)?, superblock.last_used()))),
        false => Ok(None),
    }
}

/// Whether the journal is still to be replayed.
pub(super) fn is_pending(disk: &Arc<dyn Disk>) -> bool {
    // One whose superblock cannot be believed was not replayed either; what it says of that is believed.
    let mut bytes = [0; 4];
    let read = disk.read_at(&mut bytes, SUPERBLOCK_OFFSET + 0x60);
    read.is_err() || u32::from_le_bytes(bytes) & incompat::RECOVER != 0
}

/// Does what every mount does first: replays the journal and finishes what was under way. Where the volume
/// is too damaged for that, the repairs that follow do without.
pub(super) fn recover(disk: &Arc<dyn Disk>) {
    let replay = || {
        let mut volume = open(disk)?;
        volume.recover(None, options())?;
        volume.sync_volume()
    };
    let finish = || {
        let mut volume = open(disk)?;
        // Kernels do not believe the list of a volume in which they met errors either.
        if volume.superblock.features.has_incompat(incompat::RECOVER) || !volume.superblock.is_clean() {
            return Ok(());
        }
        volume.load_quota()?;
        volume.process_orphans()?;
        volume.sync_volume()
    };
    let _: Result<()> = replay().and_then(|()| finish());
}

/// Names what has no name, fills holes, corrects quotas. Only where nothing else is left to put right,
/// because it relies on bitmaps. Answers whether anything was changed.
pub(super) fn apply(disk: &Arc<dyn Disk>, checker: &Checker) -> bool {
    let wanted = &checker.repairs;
    if wanted.nameless.is_empty() && wanted.holes.is_empty() && wanted.quotas.is_empty() {
        return false;
    }
    let suspects = checker.findings.suspects();
    if !checker.findings.kept.iter().all(is_for_later) {
        return false;
    }
    let work = || {
        let mut volume = open(disk)?;
        volume.load_quota()?;
        let mut changed = 0;
        for &(directory, logical) in wanted.holes.iter().filter(|(inode, _)| !suspects.contains(inode)) {
            fill(&mut volume, directory, logical)?;
            changed += 1;
        }
        for &inode in wanted.nameless.iter().filter(|inode| !suspects.contains(inode)) {
            name(&mut volume, inode)?;
            changed += 1;
        }
        if changed == 0 {
            for (&(file, id), &(bytes, inodes)) in &wanted.quotas {
                volume.correct_usage(file, id, bytes, inodes)?;
                changed += 1;
            }
        }
        volume.changed = changed > 0;
        volume.sync_volume()?;
        Ok::<bool, Error>(changed > 0)
    };
    work().unwrap_or(false)
}

/// Whether what was found does not keep bitmaps from being relied on.
fn is_for_later(finding: &Finding) -> bool {
    use Problem::{DirectoryHole, ExtentRange, IndexOrder, LinkCount, Loop, ParentWrong};
    use Problem::{QuotaUsage, StateNotClean, Unattached, Unconnected};
    match finding.kind {
        DirectoryHole | IndexOrder | LinkCount | Loop | ParentWrong | QuotaUsage | StateNotClean
        | Unattached | Unconnected => true,
        ExtentRange => finding.field == crate::check::extent_tree::HOLE,
        _ => false,
    }
}

/// The directory for what has no name, made where there is none that can be used.
fn lost_and_found(volume: &mut Ext4) -> Result<u32> {
    let mut name = LOST_AND_FOUND.to_vec();
    loop {
        let root = volume.directory(ROOT_INODE)?;
        let Some(found) = volume.find_name(&root, &name)? else {
            let node = NewNode { kind: NodeKind::Directory, mode: 0o700, uid: 0, gid: 0 };
            return volume.create_node(ROOT_INODE, &name, &node);
        };
        // What others cannot read is no place for what may be theirs.
        if volume.directory(found.inode).is_ok_and(|found| !found.has_flag(flags::ENCRYPT)) {
            return Ok(found.inode);
        }
        name.push(b'_');
        if name.len() > crate::dir_block::NAME_MAX {
            return Err(Error::plain(ErrorKind::Exists, "there is no directory for what has no name"));
        }
    }
}

/// Gives an inode a name by its number. Link counts follow in the next round.
fn name(volume: &mut Ext4, inode: u32) -> Result<()> {
    let directory = lost_and_found(volume)?;
    let file_type = volume.inode(inode)?.file_type;
    let parent = volume.directory(directory)?;
    let mut name = format!("#{inode}").into_bytes();
    while volume.find_name(&parent, &name)?.is_some() {
        name.push(b'_');
    }
    volume.add_name(directory, &name, inode, file_type)
}

/// Puts a block without names into a hole of a directory.
fn fill(volume: &mut Ext4, directory: u32, logical: u64) -> Result<()> {
    let mut inode = volume.directory(directory)?;
    if !matches!(volume.run_at(&inode, logical)?.place, RunPlace::Hole) {
        return Ok(());
    }
    let format = volume.directory_format(&inode);
    let empty = format.empty_block(volume.superblock.block_size as usize);
    let block = volume.add_block(&mut inode, logical)?;
    volume.cache.put(block, empty)?;
    volume.put_inode(&inode)
}
