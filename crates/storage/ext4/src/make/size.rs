//! How long a volume must be for what it is to hold.

use super::features;
use super::options::MakeOptions;
use super::plan::Plan;
use crate::error::{Error, ErrorKind, Result};

/// What a volume is to hold, counted file by file.
///
/// ```
/// use vmwright_ext4::make::{Content, MakeOptions, fit};
///
/// let mut content = Content::new(4096);
/// content.add_file(3_000_000);
/// content.add_directory([b"vmlinuz".as_slice(), b"initrd.img"].into_iter().map(|name| name.len()));
/// let options = fit(&content, &MakeOptions::default(), 0.0)?;
/// assert!(options.length > Some(3_000_000));
/// # Ok::<(), vmwright_ext4::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    block_size: u64,
    extents: bool,
    cluster: u64,
    inodes: u64,
    blocks: u64,
}

/// The part of a leaf of names that is full on average once its directory has been split many times.
const FULL_LEAF: (u64, u64) = (5, 8);

/// The longest extent, and how many of them an inode holds itself.
const EXTENT: u64 = 1 << 15;
const OWN_EXTENTS: u64 = 4;

/// The longest target of a symbolic link that an inode holds itself.
const OWN_TARGET: u64 = 59;

impl Content {
    /// Nothing yet, for a volume of ext4 with blocks of this size.
    pub fn new(block_size: u32) -> Self {
        Self { block_size: u64::from(block_size.max(1024)), extents: true, cluster: 1, inodes: 0, blocks: 0 }
    }

    /// Nothing yet, for the volume that these options make; its blocks have 4 KiB unless they say otherwise.
    pub fn for_options(options: &MakeOptions) -> Result<Self> {
        let block_size = options.block_size.unwrap_or(4096);
        let features = features::resolve(options)?;
        let bigalloc = features.has_ro_compat(crate::features::ro_compat::BIGALLOC);
        let cluster = if bigalloc { options.cluster_size.unwrap_or(block_size * 16) } else { block_size };
        let extents = features.has_incompat(crate::features::incompat::EXTENTS);
        let cluster = u64::from((cluster / block_size.max(1)).max(1));
        Ok(Self { extents, cluster, ..Self::new(block_size) })
    }

    fn take(&mut self, blocks: u64) {
        self.blocks = self.blocks.saturating_add(blocks.div_ceil(self.cluster).saturating_mul(self.cluster));
    }

    /// Adds a regular file of which `len` bytes are stored.
    pub fn add_file(&mut self, len: u64) {
        self.inodes += 1;
        let blocks = len.div_ceil(self.block_size);
        self.take(blocks);
        let map = match self.extents {
            true => {
                let extents = blocks.div_ceil(EXTENT);
                if extents > OWN_EXTENTS { extents.div_ceil(self.block_size / 12 - 1) } else { 0 }
            }
            false => self.pointer_blocks(blocks),
        };
        self.take(map);
    }

    /// How many blocks of pointers lead to some blocks.
    fn pointer_blocks(&self, blocks: u64) -> u64 {
        let pointers = self.block_size / 4;
        let rest = blocks.saturating_sub(12);
        let over = rest.saturating_sub(pointers);
        let far = over.saturating_sub(pointers * pointers);
        let first = u64::from(rest > 0);
        let second = if over > 0 { 1 + over.min(pointers * pointers).div_ceil(pointers) } else { 0 };
        let third = if far > 0 { 1 + far.div_ceil(pointers) + far.div_ceil(pointers * pointers) } else { 0 };
        first + second + third
    }

    /// Adds a directory with names of these lengths in bytes.
    pub fn add_directory(&mut self, names: impl IntoIterator<Item = usize>) {
        self.inodes += 1;
        let entries = names.into_iter().map(|len| (8 + len as u64).next_multiple_of(4)).sum::<u64>();
        // "." and "..", and the checksum at the end.
        let blocks = match entries + 24 + 12 <= self.block_size {
            true => 1,
            false => {
                let leaves = (entries * FULL_LEAF.1 / FULL_LEAF.0).div_ceil(self.block_size - 12);
                leaves + 1 + leaves / (self.block_size / 16)
            }
        };
        self.take(blocks);
    }

    /// Adds a symbolic link.
    pub fn add_link(&mut self, target: u64) {
        self.inodes += 1;
        if target > OWN_TARGET {
            self.take(1);
        }
    }

    /// Adds a device, a socket or a pipe.
    pub fn add_node(&mut self) {
        self.inodes += 1;
    }

    /// Adds a block of extended attributes, which those of a file need beyond some 100 bytes in inodes of 256 bytes.
    pub fn add_attribute_block(&mut self) {
        self.take(1);
    }

    /// How many inodes are needed.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// How many blocks are needed.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}

/// The lengths that are tried at most.
const TRIES: u32 = 200;

/// Makes options for the smallest volume that holds some content and `slack` percents more blocks and inodes: their
/// block size, length and number of inodes are set, the latter unless they had one.
///
/// # Errors
///
/// As for [`make`](super::make()).
pub fn fit(content: &Content, options: &MakeOptions, slack: f64) -> Result<MakeOptions> {
    let mut options = options.clone();
    let more = |count: u64| count.saturating_add((count as f64 * slack.max(0.0) / 100.0).ceil() as u64);
    // In the last of the space files come in pieces, whose maps take blocks.
    let pieces = 16 + content.blocks / 256;
    let wanted = Wanted { blocks: more(content.blocks).saturating_add(pieces), inodes: more(content.inodes) };
    let block_size = options.block_size.unwrap_or(content.block_size as u32);
    if u64::from(block_size) != content.block_size {
        return Err(Error::bad_option("block_size", "it is not that for which content was counted"));
    }
    options.block_size = Some(block_size);
    options.usage.get_or_insert(super::Usage::Default);
    if options.inodes.is_none() && options.inode_ratio.is_none() {
        // Each group may come to have up to seven less than its share: bitmaps have whole bytes.
        let groups = wanted.blocks / (u64::from(block_size) * 4) + 2;
        let own = u64::from(super::geometry::FIRST_INODE) + 2;
        let all = wanted.inodes.saturating_add(own + groups * 8);
        let too_many = || Error::bad_option("inodes", "a volume has fewer than 2^32");
        options.inodes = Some(u32::try_from(all).map_err(|_| too_many())?);
    }
    let blocks = wanted.search(&options)?;
    options.length = blocks.checked_mul(block_size.into());
    Ok(options)
}

/// What must be free.
struct Wanted {
    blocks: u64,
    inodes: u64,
}

/// What a length comes to.
enum Outcome {
    /// Everything fits into so many blocks, which may be fewer.
    Fits(u64),
    /// So many blocks are missing.
    Short(u64),
    /// The volume cannot be made at all.
    Impossible(Error),
}

impl Wanted {
    fn search(&self, options: &MakeOptions) -> Result<u64> {
        let (mut fails, mut length) = (0, self.blocks.max(64));
        let (mut step, mut before) = (0_u64, 0_u64);
        let mut fits = None;
        for _ in 0..TRIES {
            match self.attempt(options, length)? {
                Outcome::Fits(used) => {
                    fits = Some(used);
                    break;
                }
                // Longer by what is missing, and by more where the volume's last group is too small to be one.
                Outcome::Short(missing) => {
                    step = if missing == before { step.saturating_mul(2) } else { missing };
                    before = missing;
                }
                Outcome::Impossible(error) if length > self.blocks.saturating_mul(2) + (1 << 16) => {
                    return Err(error);
                }
                Outcome::Impossible(_) => step = 16.max(length / 64),
            }
            fails = length;
            length = length.saturating_add(step);
        }
        let none = Error::bad_option("length", "no length was found in which the content fits");
        let mut fits = fits.ok_or(none)?;
        while fits > fails + 1 {
            let middle = fails + (fits - fails) / 2;
            match self.attempt(options, middle)? {
                Outcome::Fits(used) => fits = used.min(middle),
                _ => fails = middle,
            }
        }
        Ok(fits)
    }

    fn attempt(&self, options: &MakeOptions, length: u64) -> Result<Outcome> {
        let block_size = u64::from(options.block_size.unwrap_or(4096));
        let too_long = || Error::bad_option("length", "the content needs more than a volume can have");
        let len = length.checked_mul(block_size).ok_or_else(too_long)?;
        let features = features::resolve(options)?;
        let planned = Plan::new(options, features, len).and_then(Plan::fill);
        Ok(match planned.map(|filled| filled.room()) {
            Ok((used, free, inodes)) if free >= self.blocks && inodes >= self.inodes => Outcome::Fits(used),
            Ok((_, free, inodes)) => {
                let ratio = u64::from(options.inode_ratio.unwrap_or(0));
                let for_inodes = self.inodes.saturating_sub(inodes).saturating_mul(ratio) / block_size;
                Outcome::Short(self.blocks.saturating_sub(free).max(for_inodes).max(1))
            }
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NoSpace) => {
                Outcome::Impossible(error)
            }
            Err(error) => return Err(error),
        })
    }
}
