//! Reading: runs of bytes out of the extents, the parent, or nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmwright_disk::{Disk, ExtentKind};

use super::sparse::{RunKind, Sparse, State};
use super::{Backing, Extent, Store, Vmdk, open};
use crate::error::Reason;
use crate::{Error, Result};

/// At most so many tables are looked at for one answer of a map.
const MAX_TABLES: usize = 64;

impl Vmdk {
    /// The extent that holds `offset`, which lies within the disk, and its length now.
    pub(super) fn extent_of(&self, offset: u64) -> Result<(&Extent, u64)> {
        let after = self.extents.partition_point(|extent| extent.start <= offset);
        let found = after.checked_sub(1).and_then(|index| self.extents.get(index));
        let extent = found.ok_or_else(|| Error::invalid("an extent", "none holds this offset"))?;
        let end = self.extents.get(after).map_or(self.len.load(Ordering::Acquire), |next| next.start);
        Ok((extent, end - extent.start))
    }

    /// Does `each` for the part of `offset..offset + len` in each extent: with the extent, the offset in it, and the
    /// part.
    pub(super) fn each_extent(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(&Extent, u64, std::ops::Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            let (extent, extent_len) = self.extent_of(offset + done)?;
            let inside = offset + done - extent.start;
            let part = (len - done).min(extent_len - inside);
            each(extent, inside, done..done + part)?;
            done += part;
        }
        Ok(())
    }

    /// Fills `buf` from `offset` on; the range lies within the disk.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.each_extent(offset, buf.len() as u64, |extent, inside, part| {
            let buf = &mut buf[part.start as usize..part.end as usize];
            match &extent.store {
                Store::Flat { file, offset } => read_there(&**file, buf, offset + inside),
                Store::Sparse(sparse) => sparse.read(&sparse.read_state(), buf, inside, self.below(extent)),
                Store::Zero => {
                    buf.fill(0);
                    Ok(())
                }
                Store::NoAccess => Err(Error::unsupported("reading a part of a VMDK marked as NOACCESS")),
                Store::NotOpened => Err(open::not_opened(extent)),
            }
        })
    }

    /// Where the bytes from `offset` on are, seen through the whole chain.
    pub(super) fn extent(&self, offset: u64) -> Result<vmwright_disk::Extent> {
        let (extent, extent_len) = self.extent_of(offset)?;
        let inside = offset - extent.start;
        let rest = extent_len - inside;
        let simple = |kind, len| vmwright_disk::Extent { start: offset, len, kind, depth: 0 };
        match &extent.store {
            Store::Flat { file, offset: from } => {
                let (kind, len) = data_extent(&**file, from + inside, rest)?;
                Ok(simple(kind, len))
            }
            Store::Zero => Ok(simple(ExtentKind::Zero, rest)),
            Store::NoAccess => Ok(simple(ExtentKind::Opaque, rest)),
            Store::NotOpened => Err(open::not_opened(extent)),
            Store::Sparse(sparse) => {
                let state = sparse.read_state();
                let (kind, len) = sparse.long_run(&state, inside, rest)?;
                let (kind, len) = match kind {
                    RunKind::Unallocated => return self.below(extent).extent(inside, len),
                    RunKind::Zero => (ExtentKind::Zero, len),
                    RunKind::Packed { .. } => (ExtentKind::Compressed, len),
                    RunKind::Data { host } => data_extent(&*sparse.file, host, len)?,
                };
                Ok(simple(kind, len))
            }
        }
    }

    /// What lies beneath an extent.
    pub(super) fn below(&self, extent: &Extent) -> Below<'_> {
        Below { backing: &self.backing, start: extent.start }
    }
}

/// Reads from a file that may lack the end: what is missing is zeros.
fn read_there(file: &dyn Disk, buf: &mut [u8], at: u64) -> Result<()> {
    let there = file.len().saturating_sub(at).min(buf.len() as u64) as usize;
    let (present, missing) = buf.split_at_mut(there);
    missing.fill(0);
    if !present.is_empty() {
        file.read_at(present, at)?;
    }
    Ok(())
}

/// How a file keeps `len` bytes from `at` on.
fn data_extent(file: &dyn Disk, at: u64, len: u64) -> Result<(ExtentKind, u64)> {
    let there = file.len().saturating_sub(at).min(len);
    if there == 0 {
        return Ok((ExtentKind::Zero, len));
    }
    let beneath = file.extent_at(at)?;
    let kind = match beneath.kind {
        // A hole in the file: allocated here, and zeros.
        ExtentKind::Unallocated => ExtentKind::Zero,
        kind => kind,
    };
    // What the file lacks of the last grain counts as one with what it has.
    Ok((kind, if beneath.len >= there { len } else { beneath.len }))
}

impl Sparse {
    /// Fills `buf` from `offset` on; the range lies within the extent.
    pub(super) fn read(&self, state: &State, buf: &mut [u8], offset: u64, below: Below<'_>) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let run = self.run_at(state, at, (buf.len() - done) as u64)?;
            let part = &mut buf[done..done + run.len as usize];
            match run.kind {
                RunKind::Unallocated => below.read(part, at)?,
                RunKind::Zero => part.fill(0),
                RunKind::Data { host } => read_there(&*self.file, part, host)?,
                RunKind::Packed { host, skip } => {
                    let grain = self.unpacked(host)?;
                    let bytes = grain.get(skip as usize..).and_then(|rest| rest.get(..part.len()));
                    let short =
                        || Error::corrupt("a compressed grain", host, "a whole grain", grain.len() as u64);
                    part.copy_from_slice(bytes.ok_or_else(short)?);
                }
            }
            done += run.len as usize;
        }
        Ok(())
    }

    /// A run over the borders of tables, and over neighbouring grains that are compressed.
    fn long_run(&self, state: &State, offset: u64, max: u64) -> Result<(RunKind, u64)> {
        let first = self.run_at(state, offset, max)?;
        let mut len = first.len;
        let steps = match first.kind {
            // A step is a grain.
            RunKind::Packed { .. } => MAX_TABLES * 16,
            RunKind::Data { .. } => 0,
            _ => MAX_TABLES,
        };
        for _ in 0..steps {
            if len >= max {
                break;
            }
            let next = self.run_at(state, offset + len, max - len)?;
            if std::mem::discriminant(&next.kind) != std::mem::discriminant(&first.kind) {
                break;
            }
            len += next.len;
        }
        Ok((first.kind, len))
    }
}

/// What shows where an extent holds nothing.
#[derive(Clone, Copy)]
pub(super) struct Below<'a> {
    backing: &'a Backing,
    /// Where the extent begins in the disk.
    start: u64,
}

impl<'a> Below<'a> {
    /// The parent, if there is one; an error if it was not opened.
    pub(super) fn parent(self) -> Result<Option<&'a Arc<dyn Disk>>> {
        match self.backing {
            Backing::None => Ok(None),
            Backing::Open(disk) => Ok(Some(disk)),
            Backing::NotOpened(name) => Err(Reason::BackingNotOpened { name: name.clone() }.into()),
        }
    }

    /// Fills `buf` from `offset` of the extent on; a parent may be shorter.
    pub(super) fn read(self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self.parent()? {
            None => buf.fill(0),
            Some(parent) => read_there(&**parent, buf, self.start + offset)?,
        }
        Ok(())
    }

    /// How many of `len` bytes from `offset` on are known to be zeros.
    pub(super) fn zeros(self, offset: u64, len: u64) -> Result<u64> {
        let Some(parent) = self.parent()? else { return Ok(len) };
        let mut done = 0;
        while done < len && self.start + offset + done < parent.len() {
            let extent = parent.extent_at(self.start + offset + done)?;
            if !extent.is_zero() {
                return Ok(done);
            }
            done += extent.len;
        }
        // Past the end of a short parent there is nothing.
        Ok(len)
    }

    fn extent(self, offset: u64, len: u64) -> Result<vmwright_disk::Extent> {
        let start = self.start + offset;
        let unallocated = vmwright_disk::Extent { start, len, kind: ExtentKind::Unallocated, depth: 0 };
        let Some(parent) = self.parent()? else { return Ok(unallocated) };
        if start >= parent.len() {
            return Ok(unallocated);
        }
        let beneath = parent.extent_at(start)?;
        let depth = beneath.depth.saturating_add(1);
        Ok(vmwright_disk::Extent { start, len: beneath.len.min(len), kind: beneath.kind, depth })
    }
}
