//! Quota: how much each user, group and project uses, kept as exact as kernels keep it.
//!
//! Every change of an inode goes through one place, where its record before and after are compared; what differs is
//! gathered per owner and enters the quota files at the sync. Limits are not enforced, as for root. Entries for new
//! owners are made before anything else of an operation, so that no space changes nothing.

mod tree;

use std::collections::HashMap;

use vmwright_vfs::FileType;

use crate::error::{Error, Place, Result};
use crate::inode::{self, Inode, ROOT_INODE, flags};
use crate::volume::Ext4;
use tree::{BLOCK, Change, Kind, QuotaBlocks, Slot, Tree};

/// How many owners are kept in memory before what is known of them is written and forgotten.
const MAX_OWNERS: usize = 1 << 15;

/// The quota files of a volume that is open for writing.
pub(crate) struct Quota {
    files: Vec<File>,
    /// Inodes that count for nobody.
    uncounted: [u32; 4],
}

struct File {
    kind: Kind,
    number: u32,
    tree: Tree,
    owners: HashMap<u32, (Slot, Change)>,
}

/// What one inode adds to what its owners use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    uid: u32,
    gid: u32,
    project: u32,
    bytes: i64,
}

impl Share {
    fn of(inode: &Inode) -> Self {
        let bytes = i64::try_from(inode.sectors.saturating_mul(512)).unwrap_or(i64::MAX);
        Self { uid: inode.uid, gid: inode.gid, project: inode.project, bytes }
    }

    fn owner(&self, kind: Kind) -> u32 {
        match kind {
            Kind::User => self.uid,
            Kind::Group => self.gid,
            Kind::Project => self.project,
        }
    }
}

/// A quota file while it is read or changed.
struct FileBlocks<'a> {
    volume: &'a mut Ext4,
    inode: Inode,
}

impl QuotaBlocks for FileBlocks<'_> {
    fn count(&self) -> u64 {
        self.inode.size.div_ceil(BLOCK as u64)
    }

    fn read(&self, block: u32) -> Result<Vec<u8>> {
        let mut content = vec![0; BLOCK];
        self.volume.read_content(&self.inode, &mut content, u64::from(block) * BLOCK as u64)?;
        Ok(content)
    }

    fn write(&mut self, block: u32, content: &[u8]) -> Result<()> {
        let before = (self.inode.size, self.inode.sectors);
        let offset = u64::from(block) * BLOCK as u64;
        let (written, result) = self.volume.write_blocks(&mut self.inode, content, offset);
        if written > 0 {
            self.inode.size = self.inode.size.max(offset + written);
        }
        if before != (self.inode.size, self.inode.sectors) {
            self.volume.put_inode(&self.inode)?;
        }
        self.volume.changed = true;
        result
    }
}

impl Ext4 {
    /// Reads the heads of the quota files, where the volume has any.
    pub(crate) fn load_quota(&mut self) -> Result<()> {
        let numbers = self.superblock.quota_inodes();
        let mut files = Vec::new();
        for (kind, number) in Kind::ALL.into_iter().zip(numbers).filter(|(_, number)| *number != 0) {
            let inode = self.inode(number)?;
            if inode.file_type != FileType::Regular || inode.has_flag(flags::INLINE_DATA | flags::ENCRYPT) {
                return Err(Error::corrupt(Place::Inode(number.into()), "it cannot be a quota file"));
            }
            let blocks = FileBlocks { inode, volume: self };
            let tree = Tree::read(&blocks, kind, number)?;
            files.push(File { kind, number, tree, owners: HashMap::new() });
        }
        let [user, group, project] = numbers;
        let uncounted = [user, group, project, self.superblock.orphan_file_inode()];
        self.quota = (!files.is_empty()).then_some(Quota { files, uncounted });
        Ok(())
    }

    fn with_quota(&mut self, work: impl FnOnce(&mut Quota, &mut Self) -> Result<()>) -> Result<()> {
        let Some(mut quota) = self.quota.take() else { return Ok(()) };
        let result = work(&mut quota, self);
        self.quota = Some(quota);
        result
    }

    /// Counts what the change of an inode's record means for its owners.
    pub(crate) fn count_change(&mut self, number: u32, before: &[u8], after: &Inode) -> Result<()> {
        if self.quota.is_none() {
            return Ok(());
        }
        let before = inode::in_use(&self.superblock, number, before);
        let counts = |inode: &Inode| inode.links > 0 && !inode.has_flag(flags::EA_INODE);
        let before = before.filter(&counts).map(|inode| Share::of(&inode));
        let after = counts(after).then(|| Share::of(after));
        self.count(number, before, after)
    }

    /// Counts the end of an inode that has no names but was counted until now.
    pub(crate) fn count_orphan(&mut self, inode: &Inode) -> Result<()> {
        let counts = inode.links == 0 && !inode.has_flag(flags::EA_INODE);
        self.count(inode.number, counts.then(|| Share::of(inode)), None)
    }

    /// Counts inodes that hold attributes of another and are its owner's for each that uses them. Their space is
    /// among the sectors of the inode that uses them.
    pub(crate) fn count_values(&mut self, owner: &Inode, inodes: i64) -> Result<()> {
        let share = Share { bytes: 0, ..Share::of(owner) };
        self.with_quota(|quota, volume| quota.add(volume, share, Change { inodes, bytes: 0 }))
    }

    fn count(&mut self, number: u32, before: Option<Share>, after: Option<Share>) -> Result<()> {
        let first = self.superblock.first_inode();
        self.with_quota(|quota, volume| {
            let counted = number == ROOT_INODE || number >= first;
            if before == after || !counted || quota.uncounted.contains(&number) {
                return Ok(());
            }
            if let Some(share) = before {
                quota.add(volume, share, Change { inodes: -1, bytes: share.bytes.saturating_neg() })?;
            }
            match after {
                Some(share) => quota.add(volume, share, Change { inodes: 1, bytes: share.bytes }),
                None => Ok(()),
            }
        })
    }

    /// Sees to it that owners have entries, before anything of theirs is made.
    pub(crate) fn reserve_quota(&mut self, uid: u32, gid: u32, project: u32) -> Result<()> {
        let share = Share { uid, gid, project, bytes: 0 };
        self.with_quota(|quota, volume| quota.add(volume, share, Change::default()))
    }

    /// Corrects what one quota file says that an owner uses.
    pub(crate) fn correct_usage(&mut self, number: u32, owner: u32, bytes: i64, inodes: i64) -> Result<()> {
        self.with_quota(|quota, volume| {
            let Some(file) = quota.files.iter_mut().find(|file| file.number == number) else { return Ok(()) };
            file.prepare(volume, owner)?;
            if let Some((_, total)) = file.owners.get_mut(&owner) {
                total.bytes = total.bytes.saturating_add(bytes);
                total.inodes = total.inodes.saturating_add(inodes);
            }
            Ok(())
        })
    }

    /// Writes what has changed into the quota files.
    pub(crate) fn write_quota(&mut self) -> Result<()> {
        self.with_quota(|quota, volume| quota.files.iter_mut().try_for_each(|file| file.write(volume)))
    }
}

impl Quota {
    fn add(&mut self, volume: &mut Ext4, share: Share, change: Change) -> Result<()> {
        // All entries first, so that none has changed where one cannot be made.
        for file in &mut self.files {
            file.prepare(volume, share.owner(file.kind))?;
        }
        for file in &mut self.files {
            if let Some((_, total)) = file.owners.get_mut(&share.owner(file.kind)) {
                total.inodes = total.inodes.saturating_add(change.inodes);
                total.bytes = total.bytes.saturating_add(change.bytes);
            }
        }
        Ok(())
    }
}

impl File {
    /// Finds or makes the entry of an owner.
    fn prepare(&mut self, volume: &mut Ext4, owner: u32) -> Result<()> {
        if self.owners.contains_key(&owner) {
            return Ok(());
        }
        if self.owners.len() >= MAX_OWNERS {
            self.write(volume)?;
            self.owners.clear();
        }
        let mut blocks = FileBlocks { inode: volume.inode(self.number)?, volume };
        let slot = match self.tree.find(&blocks, owner)? {
            Some(slot) => slot,
            None => self.tree.insert(&mut blocks, owner)?,
        };
        self.owners.insert(owner, (slot, Change::default()));
        Ok(())
    }

    fn write(&mut self, volume: &mut Ext4) -> Result<()> {
        let changed = self.owners.iter().filter(|(_, (_, change))| *change != Change::default());
        let changed: Vec<_> = changed.map(|(owner, (slot, change))| (*owner, *slot, *change)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let mut blocks = FileBlocks { inode: volume.inode(self.number)?, volume };
        self.tree.update(&mut blocks, changed)?;
        self.owners.values_mut().for_each(|(_, change)| *change = Change::default());
        Ok(())
    }
}
