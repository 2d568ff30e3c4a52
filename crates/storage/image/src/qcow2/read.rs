//! Reading: runs of bytes out of the file, the backing file, or nothing.

use std::sync::Arc;

use vmwright_disk::{Disk, Extent, ExtentKind, check_range};

use super::compress;
use super::map::{Packed, RunKind};
use super::state::State;
use super::{Backing, Qcow2};
use crate::Result;
use crate::error::Reason;

impl Qcow2 {
    /// Fills `buf` from `offset` on; the range lies within the disk.
    pub(super) fn read(&self, state: &State, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let run = self.run_at(state, at, (buf.len() - done) as u64)?;
            let part = &mut buf[done..done + run.len as usize];
            match run.kind {
                RunKind::Unallocated => self.read_backing(part, at)?,
                RunKind::Zero => part.fill(0),
                RunKind::Data { host, .. } => self.read_data(part, host)?,
                RunKind::Compressed { packed, skip } => self.read_packed(part, packed, skip)?,
            }
            done += run.len as usize;
        }
        Ok(())
    }

    /// Reads what this image does not hold out of the backing file, which may be shorter.
    pub(super) fn read_backing(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Some(backing) = self.backing()? else {
            buf.fill(0);
            return Ok(());
        };
        let there = backing.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (present, missing) = buf.split_at_mut(there);
        missing.fill(0);
        if !present.is_empty() {
            backing.read_at(present, offset)?;
        }
        Ok(())
    }

    /// The backing file, if the image has one; an error if it has one that was not opened.
    pub(super) fn backing(&self) -> Result<Option<&Arc<dyn Disk>>> {
        match &self.backing {
            Backing::None => Ok(None),
            Backing::Open(disk) => Ok(Some(disk)),
            Backing::NotOpened { name } => Err(Reason::BackingNotOpened { name: name.clone() }.into()),
        }
    }

    /// Reads a part of a compressed cluster from `skip` on.
    fn read_packed(&self, out: &mut [u8], packed: Packed, skip: u64) -> Result<()> {
        let cluster_size = self.header.cluster_size() as usize;
        let unpack = |out: &mut [u8]| {
            let len = packed.len.min(self.file.len().saturating_sub(packed.host));
            let mut bytes = vec![0; len as usize];
            self.file.read_at(&mut bytes, packed.host)?;
            compress::unpack_to(self.header.compression, &bytes, out, packed.host)
        };
        if out.len() == cluster_size {
            // Who reads all of it has no more use for it.
            return unpack(out);
        }
        let cluster = self.unpacked.get(packed.host, || {
            let mut cluster = vec![0; cluster_size];
            unpack(&mut cluster)?;
            Ok(cluster)
        })?;
        out.copy_from_slice(&cluster[skip as usize..][..out.len()]);
        Ok(())
    }

    /// Where the bytes from `offset` on are, seen through the whole chain.
    pub(super) fn extent(&self, state: &State, offset: u64) -> Result<Extent> {
        // The disk may just have become smaller.
        check_range(offset, 1, self.size())?;
        let rest = self.size() - offset;
        let mut run = self.run_at(state, offset, rest)?;
        // Slices are an affair of the cache: go on for as long as the answer stays the same.
        let merges = matches!(run.kind, RunKind::Unallocated | RunKind::Zero);
        for _ in 0..64 {
            if !merges || run.len >= rest {
                break;
            }
            let next = self.run_at(state, offset + run.len, rest - run.len)?;
            if next.kind != run.kind {
                break;
            }
            run.len += next.len;
        }
        let (kind, len) = match run.kind {
            RunKind::Unallocated => return self.backing_extent(offset, run.len),
            RunKind::Zero => (ExtentKind::Zero, run.len),
            RunKind::Compressed { .. } => (ExtentKind::Compressed, run.len),
            RunKind::Data { .. } if self.is_encrypted() => (ExtentKind::Opaque, run.len),
            RunKind::Data { host, .. } => self.data_extent(host, run.len)?,
        };
        Ok(Extent { start: offset, len, kind, depth: 0 })
    }

    /// How `len` bytes of data clusters at `host` are kept.
    fn data_extent(&self, host: u64, len: u64) -> Result<(ExtentKind, u64)> {
        let file = self.data_file()?;
        let there = file.len().saturating_sub(host).min(len);
        if there == 0 {
            return Ok((ExtentKind::Zero, len));
        }
        let beneath = file.extent_at(host)?;
        let kind = match beneath.kind {
            // A hole in the file: allocated here, and zeros.
            ExtentKind::Unallocated => ExtentKind::Zero,
            kind => kind,
        };
        // What the file lacks of its last cluster counts as one with what it has.
        Ok((kind, if beneath.len >= there { len } else { beneath.len }))
    }

    fn backing_extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let unallocated = Extent { start: offset, len, kind: ExtentKind::Unallocated, depth: 0 };
        let Some(backing) = self.backing()? else { return Ok(unallocated) };
        if offset >= backing.len() {
            // Past the end of a short backing file there is nothing that could show.
            return Ok(unallocated);
        }
        let beneath = backing.extent_at(offset)?;
        let depth = beneath.depth.saturating_add(1);
        Ok(Extent { start: offset, len: beneath.len.min(len), kind: beneath.kind, depth })
    }
}
