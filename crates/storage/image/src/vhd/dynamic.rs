//! Dynamic and differencing images: blocks, and the footer behind the last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmwright_disk::{Disk, ErrorKind, Extent};

use super::layout::{FOOTER, Footer, Header, Kind, MAX_SIZE};
use super::open::{self, Ends};
use super::{VhdOptions, VhdSubformat, check, exact, geometry, locators};
use crate::blocks::{Backing, Blocks, Frame, MAX_TABLE, SECTOR, State};
use crate::driver::{ContentId, Driver, Place, Placing};
use crate::info::{CheckReport, ImageInfo, Repair};
use crate::{BackingFile, Error, Layout, OpenOptions, Result};

/// The footer as it is now, which moves ahead of new blocks.
pub(super) struct Tail(Mutex<Footer>);

impl Tail {
    fn footer(&self) -> MutexGuard<'_, Footer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frame for Tail {
    fn say_end(&self, file: &dyn Disk, end: u64, _blocks: u64) -> Result<()> {
        Ok(file.write_at(&self.footer().encode(), end)?)
    }
}

/// An open dynamic or differencing image.
pub(super) struct Dynamic {
    blocks: Blocks<Tail>,
    header: Mutex<Header>,
    parent: Option<String>,
    lenient: bool,
}

impl Dynamic {
    pub(super) fn open(file: Arc<dyn Disk>, ends: Ends, options: OpenOptions) -> Result<Self> {
        let Ends { footer, size, .. } = ends;
        let header = open::read_header(&*file, &footer, options.lenient)?;
        let map = open::read_map(&*file, &footer, &header, size)?;
        let mut parent = None;
        let backing = match footer.kind {
            Kind::Differencing => {
                let name = locators::names(&*file, &header)?.into_iter().next().unwrap_or_default();
                parent = Some(name.clone());
                options.backing.clone().map_or(Backing::NotOpened { name }, Backing::Open)
            }
            _ => Backing::None,
        };
        let (shape, tail) = (open::shape(&header), Tail(Mutex::new(footer)));
        let blocks = Blocks::new(file, tail, shape, map, backing, &options);
        Ok(Self { blocks, header: Mutex::new(header), parent, lenient: options.lenient })
    }

    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resize(&self, len: u64) -> Result<()> {
        let blocks = &self.blocks;
        blocks.check_writable()?;
        if !len.is_multiple_of(SECTOR) {
            return Err(Error::invalid("the size of a VHD", "it must be a multiple of 512 bytes"));
        }
        if len > MAX_SIZE {
            return Err(Error::invalid("the size of a VHD", "it must be at most 2040 GiB"));
        }
        if self.parent.is_some() {
            return Err(Error::unsupported(
                "changing the size of a VHD that has a parent, whose size it shares,",
            ));
        }
        blocks.prepare()?;
        let (old, block_size) = (blocks.size(), blocks.shape.block_size);
        if len < old {
            blocks.give_up(len.div_ceil(block_size), old.div_ceil(block_size))?;
        }
        let mut state = blocks.write_state();
        blocks.clear_end(&state, len.min(old))?;
        blocks.write_back(&mut state)?;
        blocks.barrier(&mut state)?;
        let entries = len.div_ceil(block_size);
        if entries > state.map.table.len() as u64 {
            self.lengthen_table(&mut state, entries)?;
        }
        self.say_size(&mut state, len)
    }

    /// Both footers get the new size, that at the head first: it is the one that counts.
    fn say_size(&self, state: &mut State, len: u64) -> Result<()> {
        let blocks = &self.blocks;
        let resized = exact(&blocks.frame.footer(), len);
        blocks.file.write_at(&resized.encode(), 0)?;
        *blocks.frame.footer() = resized;
        state.map.size = len;
        blocks.barrier(state)?;
        blocks.frame.say_end(&*blocks.file, state.map.end, 0)?;
        blocks.barrier(state)
    }

    /// Makes the table long enough: where it is, if nothing is behind it, else anew behind the last block.
    fn lengthen_table(&self, state: &mut State, entries: u64) -> Result<()> {
        let (blocks, map) = (&self.blocks, &state.map);
        let bytes = entries * 4;
        if bytes > MAX_TABLE {
            return Err(Error::unsupported("a block table of more than 128 MiB"));
        }
        let old_end = map.table_at + map.table.len() as u64 * 4;
        let after = |at: &u64| *at >= map.table_at.saturating_add(4);
        let others = map.reserved.iter().map(|range| range.start).filter(|at| *at > map.table_at);
        let places = map.table.iter().filter(|raw| blocks.shape.is_place(**raw));
        let starts = places.map(|raw| map.place(blocks.shape.unit, *raw));
        let next = starts.chain(others).filter(after).min().unwrap_or(u64::MAX);
        let whole = bytes.next_multiple_of(SECTOR);
        let table_at = if map.table_at + whole <= next { map.table_at } else { map.end };
        let table_end = table_at + whole;
        let end = map.end.max(table_end);
        if end > map.end {
            // The footer goes ahead of what will lie where it is.
            match blocks.file.set_len((end + FOOTER).max(blocks.file.len())) {
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    return Err(crate::error::Reason::DeviceFull { end: end + FOOTER }.into());
                }
                result => result?,
            }
            blocks.frame.say_end(&*blocks.file, end, 0)?;
        }
        let (from, skip) = if table_at == map.table_at { (old_end, map.table.len()) } else { (table_at, 0) };
        let mut new: Vec<u8> = map.table[skip..].iter().flat_map(|raw| blocks.shape.encode(*raw)).collect();
        new.resize((table_end - from) as usize, 0xff);
        blocks.file.write_at(&new, from)?;
        blocks.barrier(state)?;
        let entries = u32::try_from(entries).map_err(|_| Error::unsupported("so many blocks"))?;
        let mut header = self.header();
        header.set_table(table_at, entries);
        blocks.file.write_at(&header.encode()[..SECTOR as usize], blocks.frame.footer().data_offset())?;
        blocks.barrier(state)?;
        state.map.table_at = table_at;
        state.map.end = end;
        // The old place stays reserved until the image is opened again, when it is a gap.
        state.map.reserved.push(table_at..table_end);
        state.set_blocks(entries as usize);
        Ok(())
    }
}

impl Driver for Dynamic {
    fn info(&self) -> Result<ImageInfo> {
        super::describe_with(&*self.blocks.file, self.lenient)
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        let repair = if self.blocks.is_read_only() { Repair::Nothing } else { repair };
        check::dynamic(&*self.blocks.file, self.lenient, repair)
    }

    fn cluster_size(&self) -> Option<u64> {
        Some(self.blocks.shape.block_size)
    }

    fn backing_file(&self) -> Option<BackingFile> {
        let name = self.parent.clone()?;
        Some(BackingFile { name, format: Some(crate::Format::Vhd.qemu_name().to_owned()) })
    }

    fn content_id(&self) -> Result<Option<ContentId>> {
        Ok(Some(ContentId::Vhd(self.blocks.frame.footer().id())))
    }

    fn make_empty(&self) -> Result<()> {
        self.blocks.make_empty()
    }

    fn place(&self, offset: u64, len: u64, places: &mut Vec<Place>) -> Result<Placing> {
        self.blocks.place(offset, len, places)
    }

    fn layout(&self) -> Layout {
        let footer = self.blocks.frame.footer();
        Layout::Vhd(VhdOptions {
            subformat: VhdSubformat::Dynamic,
            force_size: !geometry::is_by_geometry(footer.creator()),
            block_size: self.blocks.shape.block_size as u32,
            ..VhdOptions::default()
        })
    }
}

impl Disk for Dynamic {
    fn len(&self) -> u64 {
        self.blocks.size()
    }

    fn is_read_only(&self) -> bool {
        self.blocks.is_read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        self.blocks.read(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        self.blocks.write(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.blocks.zero(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.blocks.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        Ok(self.resize(len)?)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        Ok(self.blocks.sync()?)
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        self.blocks.extent(offset)
    }
}
