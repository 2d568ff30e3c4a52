//! What is in a new volume: directories, and the inodes that are files of the filesystem itself.

use std::ops::Range;

use vmwright_vfs::FileType;

use super::geometry::FIRST_INODE;
use super::maps::{self, Laid};
use super::no_room;
use super::options::MakeOptions;
use super::plan::JournalSizes;
use super::quota_file::{Sort, Usage, quota_file};
use super::space::Space;
use crate::dir_block::{DirFormat, TYPE_DIRECTORY};
use crate::error::{Error, Result};
use crate::features::{compat, incompat, ro_compat};
use crate::inode::{Inode, ROOT_INODE, flags, seal};
use crate::journal::{NewJournal, new_superblock};
use crate::superblock::Superblock;

/// Inodes that the format gives to something.
const BAD_BLOCKS: u32 = 1;
const USER_QUOTA: u32 = 3;
const GROUP_QUOTA: u32 = 4;
const RESIZE: u32 = 7;
pub(super) const JOURNAL: u32 = 8;

/// The size of a lost+found, where blocks are not so large that two are more.
const LOST_FOUND: u64 = 16 << 10;

/// What an MMP block begins with, and what says that no host uses the volume.
const MMP_MAGIC: u32 = 0x004d_4d50;
const MMP_CLEAN: u32 = 0xff4d_4d50;

/// What goes to blocks that follow each other.
pub(super) enum Bytes {
    /// As they are.
    Plain(Vec<u8>),
    /// So many blocks of an orphan file without entries, checksums seeded with this.
    Orphans { blocks: u64, seed: Option<u32> },
}

/// An inode that is in use.
pub(super) struct UsedInode {
    pub(super) number: u32,
    pub(super) record: Vec<u8>,
    pub(super) directory: bool,
}

/// The numbers of inodes, and blocks, that the superblock names.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) user_quota: u32,
    pub(super) group_quota: u32,
    pub(super) project_quota: u32,
    pub(super) orphan_file: u32,
    pub(super) mmp_block: u64,
    /// The journal's map and its size.
    pub(super) journal: Option<([u8; 60], u64)>,
}

/// What is put into a volume.
pub(super) struct Contents<'a> {
    options: &'a MakeOptions,
    superblock: &'a Superblock,
    space: &'a mut Space,
    log_flex: u8,
    next_inode: u32,
    pub(super) inodes: Vec<UsedInode>,
    pub(super) blocks: Vec<(u64, Bytes)>,
    /// Blocks to be made zeros.
    pub(super) zeros: Vec<Range<u64>>,
    pub(super) named: Named,
    usages: Vec<(u32, u32, u64)>,
}

impl<'a> Contents<'a> {
    pub(super) fn new(
        options: &'a MakeOptions,
        superblock: &'a Superblock,
        space: &'a mut Space,
        log_flex: u8,
    ) -> Self {
        Self {
            options,
            superblock,
            space,
            log_flex,
            next_inode: FIRST_INODE + 1,
            inodes: Vec::new(),
            blocks: Vec::new(),
            zeros: Vec::new(),
            named: Named::default(),
            usages: Vec::new(),
        }
    }

    /// Puts everything in that the features ask for.
    pub(super) fn fill(&mut self, journal: Option<&JournalSizes>) -> Result<()> {
        let features = self.superblock.features;
        self.reserved();
        self.directories()?;
        if features.has_compat(compat::RESIZE_INODE) {
            self.resize_inode()?;
        }
        if let Some(journal) = journal {
            self.journal(journal)?;
        }
        if features.has_incompat(incompat::MMP) {
            self.mmp()?;
        }
        if features.has_ro_compat(ro_compat::QUOTA) {
            self.quotas()?;
        }
        if features.has_compat(compat::ORPHAN_FILE) {
            self.orphan_file()?;
        }
        Ok(())
    }

    fn block_size(&self) -> u64 {
        self.superblock.block_size.into()
    }

    /// Near which block the content of an inode is put.
    fn goal(&self, number: u32) -> u64 {
        let group = (number - 1) / self.superblock.inodes_per_group;
        self.superblock.group_start(group >> self.log_flex << self.log_flex)
    }

    fn inode(&self, number: u32, file_type: FileType) -> Inode {
        let mut inode = Inode::new(self.superblock, number, file_type, self.options.now);
        inode.links = 1;
        inode.permissions = 0o600;
        inode
    }

    fn use_inode(&mut self, inode: &Inode) {
        let record = inode.encode(self.superblock);
        self.inodes.retain(|other| other.number != inode.number);
        self.inodes.push(UsedInode { number: inode.number, record, directory: inode.is_directory() });
    }

    /// Gives an inode `blocks` blocks, its size included; answers where they are.
    fn lay(&mut self, inode: &mut Inode, goal: u64, blocks: u64) -> Result<Vec<Range<u64>>> {
        let block_size = self.superblock.block_size as usize;
        let Laid { runs, root, map } = match self.superblock.features.has_incompat(incompat::EXTENTS) {
            true => {
                inode.flags |= flags::EXTENTS;
                let seed = inode.checksum_seed(self.superblock);
                maps::by_extents(self.space, (goal, blocks), block_size, seed)?
            }
            false => maps::by_blocks(self.space, (goal, blocks), block_size)?,
        };
        inode.block = root;
        inode.size = blocks * self.block_size();
        let cluster = u64::from(self.superblock.cluster_blocks);
        let clusters: u64 = runs.iter().map(|run| (run.end - run.start).div_ceil(cluster)).sum();
        inode.sectors = (clusters + map.len() as u64) * cluster * (self.block_size() / 512);
        self.blocks.extend(map.into_iter().map(|(block, bytes)| (block, Bytes::Plain(bytes))));
        Ok(runs)
    }

    /// Puts content into the blocks of a file, from its first on.
    fn put(&mut self, runs: &[Range<u64>], content: &[u8]) {
        let mut rest = content;
        for run in runs {
            let room = usize::try_from((run.end - run.start) * self.block_size()).unwrap_or(usize::MAX);
            let (part, more) = rest.split_at(room.min(rest.len()));
            if !part.is_empty() {
                let mut bytes = part.to_vec();
                bytes.resize(part.len().next_multiple_of(self.superblock.block_size as usize), 0);
                self.blocks.push((run.start, Bytes::Plain(bytes)));
            }
            rest = more;
        }
    }

    /// Inodes that the format reserves and that nothing is in: their checksums are right all the same.
    fn reserved(&mut self) {
        for number in 1..FIRST_INODE {
            let mut record = vec![0; self.superblock.inode_size.into()];
            if number == BAD_BLOCKS {
                let seconds = (self.options.now.seconds as u32).to_le_bytes();
                for at in [8, 12, 16] {
                    record[at..at + 4].copy_from_slice(&seconds);
                }
            }
            seal(self.superblock, number, &mut record);
            self.inodes.push(UsedInode { number, record, directory: false });
        }
    }

    fn format(&self, inode: &Inode) -> DirFormat {
        let file_types = self.superblock.features.has_incompat(incompat::FILETYPE);
        DirFormat {
            inode: inode.number,
            seed: inode.checksum_seed(self.superblock),
            file_types,
            folding: false,
        }
    }

    /// The root directory, and lost+found with room for names: whoever repairs a volume cannot allocate.
    fn directories(&mut self) -> Result<()> {
        let size = self.superblock.block_size as usize;
        let mut root = self.inode(ROOT_INODE, FileType::Directory);
        root.links = 3;
        root.permissions = self.options.root_mode & 0o7777;
        (root.uid, root.gid) = self.options.root_owner;
        let format = self.format(&root);
        let goal = self.goal(ROOT_INODE);
        let runs = self.lay(&mut root, goal, 1)?;
        let mut block = format.first_block(size, ROOT_INODE, ROOT_INODE);
        format.insert(&mut block, b"lost+found", FIRST_INODE, TYPE_DIRECTORY)?;
        self.put(&runs, &block);
        self.use_directory(&root);

        let mut lost = self.inode(FIRST_INODE, FileType::Directory);
        lost.links = 2;
        lost.permissions = 0o700;
        let blocks = (LOST_FOUND / self.block_size()).clamp(2, 12);
        // mke2fs begins it within its inode, which then counts as a block.
        let inline = self.superblock.features.has_incompat(incompat::INLINE_DATA);
        let blocks = blocks - u64::from(inline && blocks > 1);
        let goal = self.goal(FIRST_INODE);
        let runs = self.lay(&mut lost, goal, blocks)?;
        let format = self.format(&lost);
        let mut content = format.first_block(size, FIRST_INODE, ROOT_INODE);
        for _ in 1..blocks {
            content.extend(format.empty_block(size));
        }
        self.put(&runs, &content);
        self.use_directory(&lost);
        Ok(())
    }

    fn use_directory(&mut self, inode: &Inode) {
        self.use_inode(inode);
        self.usages.push((inode.uid, inode.gid, inode.sectors * 512));
    }

    /// The inode that holds the blocks kept for descriptors: its pointers lead to those of the first group, and in
    /// each of these are pointers to those of the groups with copies.
    fn resize_inode(&mut self) -> Result<()> {
        let superblock = self.superblock;
        let reserved = superblock.reserved_descriptor_blocks();
        let (in_use, size) = (superblock.descriptor_blocks(), self.block_size());
        let pointers = size / 4;
        let table = crate::layout::SUPERBLOCK_OFFSET / size + 1 + in_use;
        let goal = table + 1 + reserved + superblock.inode_table_blocks();
        let own = self.space.allocate(goal, 1)?.first().map_or(0, |run| run.start);
        let word = |block: u64| u32::try_from(block).map_err(|_| no_room());
        let copies: Vec<u64> = (1..superblock.groups)
            .filter(|group| superblock.has_superblock(*group))
            .map(|group| u64::from(group) * u64::from(superblock.blocks_per_group))
            .collect();
        let mut root = vec![0; size as usize];
        let mut blocks = Vec::with_capacity((reserved * size) as usize);
        for index in 0..reserved {
            let block = table + index;
            let slot = ((in_use + index) % pointers * 4) as usize;
            root[slot..slot + 4].copy_from_slice(&word(block)?.to_le_bytes());
            let begin = blocks.len();
            for copy in copies.iter().take(pointers as usize) {
                blocks.extend(word(block + copy)?.to_le_bytes());
            }
            blocks.resize(begin + size as usize, 0);
        }
        let mut inode = self.inode(RESIZE, FileType::Regular);
        inode.block[13 * 4..14 * 4].copy_from_slice(&word(own)?.to_le_bytes());
        inode.size = (pointers * pointers + pointers + 12) * size;
        let count = 1 + reserved * (1 + copies.len() as u64);
        inode.sectors = count * u64::from(superblock.cluster_blocks) * (size / 512);
        self.use_inode(&inode);
        self.blocks.push((own, Bytes::Plain(root)));
        self.blocks.push((table, Bytes::Plain(blocks)));
        Ok(())
    }

    fn journal(&mut self, sizes: &JournalSizes) -> Result<()> {
        let mut inode = self.inode(JOURNAL, FileType::Regular);
        let blocks = sizes.blocks();
        // mke2fs heeds the place for extents alone.
        let goal = match self.superblock.features.has_incompat(incompat::EXTENTS) {
            true => sizes.goal,
            false => self.goal(JOURNAL),
        };
        let runs = self.lay(&mut inode, goal, blocks)?;
        let superblock = new_superblock(&NewJournal {
            block_size: self.superblock.block_size,
            blocks: blocks as u32,
            fast_commits: sizes.fast_commits as u32,
            uuid: *self.options.uuid.as_bytes(),
            first: 1,
            users: 1,
        });
        self.put(&runs, &superblock);
        if !self.options.lazy_journal {
            self.zeros.extend(runs);
        }
        self.named.journal = Some((inode.block, inode.size));
        self.use_inode(&inode);
        Ok(())
    }

    /// The block in which hosts tell each other that they use the volume.
    fn mmp(&mut self) -> Result<()> {
        let block = self.space.allocate(0, 1)?.first().map_or(0, |run| run.start);
        let mut bytes = vec![0; self.superblock.block_size as usize];
        bytes[..4].copy_from_slice(&MMP_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&MMP_CLEAN.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.options.now.seconds.to_le_bytes());
        let interval = self.options.mmp_interval.unwrap_or(0).max(super::fields::MMP_INTERVAL);
        bytes[0x70..0x72].copy_from_slice(&interval.to_le_bytes());
        if self.superblock.features.metadata_csum() {
            let checksum = crate::checksum::crc32c(self.superblock.checksum_seed, &bytes[..1020]);
            bytes[1020..1024].copy_from_slice(&checksum.to_le_bytes());
        }
        self.named.mmp_block = block;
        self.blocks.push((block, Bytes::Plain(bytes)));
        Ok(())
    }

    fn quotas(&mut self) -> Result<()> {
        let project = self.superblock.features.has_ro_compat(ro_compat::PROJECT);
        let types = self.options.quota;
        let by = |id: fn(&(u32, u32, u64)) -> u32, usages: &[(u32, u32, u64)]| {
            let mut sums: Vec<Usage> = Vec::new();
            for usage in usages {
                let id = id(usage);
                match sums.iter_mut().find(|sum| sum.id == id) {
                    Some(sum) => (sum.inodes, sum.bytes) = (sum.inodes + 1, sum.bytes + usage.2),
                    None => sums.push(Usage { id, inodes: 1, bytes: usage.2 }),
                }
            }
            sums.sort_by_key(|sum| sum.id);
            sums
        };
        if types.user {
            let file = quota_file(Sort::User, &by(|usage| usage.0, &self.usages));
            self.named.user_quota = self.quota(USER_QUOTA, &file)?;
        }
        if types.group {
            let file = quota_file(Sort::Group, &by(|usage| usage.1, &self.usages));
            self.named.group_quota = self.quota(GROUP_QUOTA, &file)?;
        }
        if types.project || project {
            let file = quota_file(Sort::Project, &by(|_| 0, &self.usages));
            let number = self.new_inode()?;
            self.named.project_quota = self.quota(number, &file)?;
        }
        Ok(())
    }

    fn quota(&mut self, number: u32, file: &[u8]) -> Result<u32> {
        let mut inode = self.inode(number, FileType::Regular);
        inode.flags |= flags::IMMUTABLE;
        let goal = self.goal(number);
        let runs = self.lay(&mut inode, goal, (file.len() as u64).div_ceil(self.block_size()))?;
        inode.size = file.len() as u64;
        self.put(&runs, file);
        self.use_inode(&inode);
        Ok(number)
    }

    fn new_inode(&mut self) -> Result<u32> {
        let number = self.next_inode;
        if number > self.superblock.inodes {
            return Err(Error::bad_option("inodes", "there are too few for the files of the features"));
        }
        self.next_inode += 1;
        Ok(number)
    }

    fn orphan_file(&mut self) -> Result<()> {
        let (blocks, cluster) = (self.superblock.blocks, u64::from(self.superblock.cluster_blocks));
        let usual = match blocks {
            _ if blocks < 128 << 10 => 32,
            _ if blocks < 2 << 20 => blocks / 4096,
            _ => 512,
        };
        let count = match self.options.orphan_file_size {
            Some(size) if size / self.block_size() == 0 => {
                return Err(Error::bad_option("orphan_file_size", "it must be at least a block"));
            }
            Some(size) => (size / self.block_size()).min(512),
            None => usual.next_multiple_of(cluster),
        };
        let number = self.new_inode()?;
        let mut inode = self.inode(number, FileType::Regular);
        let first = self.superblock.first_data_block;
        let runs = self.lay(&mut inode, first, count)?;
        let seed = inode.checksum_seed(self.superblock);
        for run in runs {
            self.blocks.push((run.start, Bytes::Orphans { blocks: run.end - run.start, seed }));
        }
        self.named.orphan_file = number;
        self.use_inode(&inode);
        Ok(())
    }
}
