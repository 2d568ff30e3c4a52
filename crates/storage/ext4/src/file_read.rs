//! Reading the content of inodes.

use vmwright_disk::{Extent, ExtentKind};

use crate::error::{Error, ErrorKind, Place, Result};
use crate::inode::{Inode, flags};
use crate::mapping::RunPlace;
use crate::volume::Ext4;

/// The longest target of a symbolic link that kernels make.
const MAX_LINK: u64 = 65_536;

impl Ext4 {
    /// Reads from an inode's content; answers how many bytes, fewer than asked only at its end.
    pub(crate) fn read_content(&self, inode: &Inode, buf: &mut [u8], offset: u64) -> Result<usize> {
        if inode.has_flag(flags::ENCRYPT) {
            return Err(Error::unsupported("the inode is encrypted"));
        }
        let rest = inode.size.saturating_sub(offset);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..len];
        if inode.has_flag(flags::INLINE_DATA) {
            self.read_inline(inode, buf, offset)?;
            return Ok(len);
        }
        let block_size = self.block_size();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let run = self.run_at(inode, at / block_size)?;
            let within = at % block_size;
            let available = run.len.saturating_mul(block_size) - within;
            let step = usize::try_from(available).unwrap_or(usize::MAX).min(len - done);
            let part = &mut buf[done..done + step];
            match run.place {
                RunPlace::Hole | RunPlace::Unwritten(_) => part.fill(0),
                RunPlace::Written(start) => self.cache.read_data(part, start * block_size + within)?,
            }
            done += step;
        }
        Ok(len)
    }

    /// Reads the whole content of an inode that must not be longer than `limit` bytes.
    pub(crate) fn read_whole(&self, inode: &Inode, limit: u64) -> Result<Vec<u8>> {
        if inode.size > limit {
            let place = Place::Inode(inode.number.into());
            return Err(Error::mismatch(place, "its size, at most", limit, inode.size));
        }
        let mut content = vec![0; inode.size as usize];
        self.read_content(inode, &mut content, 0)?;
        Ok(content)
    }

    /// Reads the target of a symbolic link.
    pub(crate) fn link_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.has_flag(flags::ENCRYPT) {
            return Err(Error::unsupported("the symbolic link is encrypted"));
        }
        if inode.is_fast_symlink(&self.superblock) {
            return Ok(inode.block[..inode.size as usize].to_vec());
        }
        self.read_whole(inode, MAX_LINK)
    }

    /// Says where a file's bytes from `offset` on are, on the disk beneath.
    pub(crate) fn content_extent(&self, inode: &Inode, offset: u64) -> Result<Extent> {
        if offset >= inode.size {
            return Err(Error::plain(ErrorKind::InvalidInput, "the offset is not within the file"));
        }
        let rest = inode.size - offset;
        let extent = |len: u64, kind, depth| Extent { start: offset, len: len.min(rest), kind, depth };
        if inode.has_flag(flags::INLINE_DATA | flags::ENCRYPT) {
            return Ok(extent(rest, ExtentKind::Opaque, 0));
        }
        let block_size = self.block_size();
        let run = self.run_at(inode, offset / block_size)?;
        let within = offset % block_size;
        let len = run.len.saturating_mul(block_size) - within;
        let start = match run.place {
            RunPlace::Hole => return Ok(extent(len, ExtentKind::Unallocated, 0)),
            RunPlace::Unwritten(_) => return Ok(extent(len, ExtentKind::Zero, 0)),
            RunPlace::Written(start) => start,
        };
        if self.cache.is_waiting(start * block_size + within, len.min(rest)) {
            return Ok(extent(len, ExtentKind::Opaque, 0));
        }
        let redirected = |block: u64| self.cache.is_redirected(block);
        if self.cache.has_redirects() {
            // Blocks in the journal are not where the map says; neighbours of one kind go together.
            let first = redirected(start);
            let same =
                (start..start + run.len).take_while(|block| redirected(*block) == first).count() as u64;
            let len = same * block_size - within;
            if first {
                return Ok(extent(len, ExtentKind::Opaque, 0));
            }
            return self.disk_extent(start * block_size + within, len.min(rest), offset);
        }
        self.disk_extent(start * block_size + within, len.min(rest), offset)
    }

    /// The disk's own extent at `at`, as that of a file at `offset`, at most `len` bytes of it.
    fn disk_extent(&self, at: u64, len: u64, offset: u64) -> Result<Extent> {
        let extent = self.cache.disk().extent_at(at).map_err(|source| Error::disk("map", source))?;
        Ok(Extent { start: offset, len: extent.len.min(len), ..extent })
    }
}
