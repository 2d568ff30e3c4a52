//! Opening: from the first bytes to extents.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};

use vmwright_disk::Disk;

use super::descriptor::{self, Access, Descriptor, ExtentLine, Kind};
use super::layout::{
    AT_END, COWD_ENTRIES, COWD_HEADER, COWD_MAGIC, CowdHeader, FLAG_MARKERS, FLAG_REDUNDANT, FLAG_ZEROED,
    MARKER_END, MARKER_FOOTER, SECTOR, SPARSE_MAGIC, SeSparseHeader, SparseHeader, parse_marker,
};
use super::packed::Unpacked;
use super::sparse::{Layout, Sparse, State, Writer};
use super::stream::Stream;
use super::{Backing, Extent, ReadOnly, Store, Vmdk};
use crate::cache::Cache;
use crate::error::Reason;
use crate::{Error, OpenOptions, Result};

/// What the image file itself is.
pub(super) enum Main {
    /// A text that names the extents; it begins at this place of the file, and there is so much room for it.
    Text {
        descriptor: Descriptor,
        at: u64,
        room: Option<u64>,
    },
    /// A sparse extent that holds its descriptor, if any, at a place with some room.
    Hosted {
        header: SparseHeader,
        descriptor: Option<(Descriptor, u64, u64)>,
    },
    Cowd(CowdHeader),
}

impl Main {
    pub(super) fn descriptor(&self) -> Option<&Descriptor> {
        match self {
            Self::Text { descriptor, .. } => Some(descriptor),
            Self::Hosted { descriptor, .. } => descriptor.as_ref().map(|(descriptor, ..)| descriptor),
            Self::Cowd(_) => None,
        }
    }
}

/// Reads what the image file says.
pub(super) fn read_main(file: &dyn Disk) -> Result<Main> {
    let head = read_up_to(file, 0, SECTOR)?;
    if head.starts_with(COWD_MAGIC) {
        return Ok(Main::Cowd(CowdHeader::parse(&read_up_to(file, 0, COWD_HEADER)?)?));
    }
    if !head.starts_with(SPARSE_MAGIC) {
        if !descriptor::is_descriptor(&head) {
            return Err(Error::corrupt("the first bytes of a VMDK", 0, "a signature or a descriptor", 0));
        }
        if file.len() > descriptor::MAX_LEN {
            return Err(Error::corrupt("the descriptor", 0, "at most 1 MiB of text", file.len()));
        }
        let descriptor = Descriptor::parse(&read_up_to(file, 0, descriptor::MAX_LEN)?)?;
        return Ok(Main::Text { descriptor, at: 0, room: None });
    }
    let header = read_header(file, 0)?;
    if header.descriptor_at == 0 {
        if header.capacity == 0 {
            return Err(Error::corrupt("the capacity of a VMDK extent", 12, "more than nothing", 0));
        }
        return Ok(Main::Hosted { header, descriptor: None });
    }
    let (at, room) = (header.descriptor_at.checked_mul(SECTOR), header.descriptor_len.checked_mul(SECTOR));
    let end = at.zip(room).and_then(|(at, room)| at.checked_add(room));
    let (Some(at), Some(room), true) = (at, room, end.is_some_and(|end| end <= file.len())) else {
        let found = header.descriptor_at;
        return Err(Error::corrupt("the place of the descriptor", 28, "sectors within the file", found));
    };
    if room > descriptor::MAX_LEN {
        return Err(Error::corrupt("the length of the descriptor", 36, "at most 1 MiB", room));
    }
    let descriptor = Descriptor::parse(&read_up_to(file, at, room)?)?;
    let is_sparse =
        |kind: &str| ["monolithicsparse", "streamoptimized"].contains(&kind.to_ascii_lowercase().as_str());
    if header.capacity == 0 && !descriptor.create_type.as_deref().is_some_and(is_sparse) {
        return Ok(Main::Text { descriptor, at, room: Some(room) });
    }
    Ok(Main::Hosted { header, descriptor: Some((descriptor, at, room)) })
}

fn read_up_to(file: &dyn Disk, at: u64, max: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; file.len().saturating_sub(at).min(max) as usize];
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}

fn read_header(file: &dyn Disk, at: u64) -> Result<SparseHeader> {
    let mut sector = [0; 512];
    if at.checked_add(SECTOR).is_none_or(|end| end > file.len()) {
        return Err(Error::corrupt("the header of a VMDK extent", at, "a whole sector", file.len()));
    }
    file.read_at(&mut sector, at)?;
    SparseHeader::parse(&sector, at)
}

/// Opens an image.
pub(super) fn open(file: Arc<dyn Disk>, options: OpenOptions) -> Result<Vmdk> {
    let main = read_main(&*file)?;
    let mut opened = Opened { options: &options, extents: Vec::new(), bare: false };
    match &main {
        Main::Text { descriptor, .. } => opened.lines(&descriptor.extents)?,
        Main::Hosted { header, descriptor } => {
            let name = descriptor.as_ref().and_then(|(text, ..)| text.extents.first()?.name.clone());
            opened.bare = descriptor.is_none();
            let sparse = opened.hosted(&file, header, true)?;
            opened.push(header.capacity * SECTOR, Access::ReadWrite, name, Store::Sparse(Box::new(sparse)));
        }
        Main::Cowd(header) => {
            if header.names_parent {
                return Err(Error::unsupported(
                    "a VMFS sparse extent with a parent, without its descriptor,",
                ));
            }
            opened.bare = true;
            let sparse = opened.cowd(&file, header.clone())?;
            let len = header.capacity * SECTOR;
            opened.push(len, Access::ReadWrite, None, Store::Sparse(Box::new(sparse)));
        }
    }
    let (extents, bare) = (opened.extents, opened.bare);
    let (descriptor, place) = match main {
        Main::Text { descriptor, at, room } => (descriptor, Some((at, room))),
        Main::Hosted { descriptor: Some((text, at, room)), .. } => (text, Some((at, Some(room)))),
        _ => (Descriptor::default(), None),
    };
    let read_only = read_only(&file, &options, &extents, &descriptor, bare);
    let backing = match (descriptor.has_parent(), options.backing) {
        (false, _) => Backing::None,
        (true, Some(disk)) => Backing::Open(disk),
        (true, None) => Backing::NotOpened(descriptor.hint.clone().unwrap_or_default()),
    };
    let len = extents.last().map_or(0, |last| last.start + last.len);
    Ok(Vmdk {
        file,
        place,
        descriptor: RwLock::new(descriptor),
        extents,
        len: AtomicU64::new(len),
        backing,
        read_only,
        cid: Mutex::new(false),
        changed: AtomicBool::new(false),
        broken: AtomicBool::new(false),
    })
}

fn read_only(
    file: &Arc<dyn Disk>,
    options: &OpenOptions,
    extents: &[Extent],
    descriptor: &Descriptor,
    bare: bool,
) -> Option<ReadOnly> {
    let sparse = || extents.iter().filter_map(Extent::sparse);
    if options.read_only || file.is_read_only() || extents.iter().any(Extent::is_file_read_only) {
        Some(ReadOnly::Opened)
    } else if sparse().any(|sparse| sparse.packed.is_some()) {
        Some(ReadOnly::Stream)
    } else if sparse().any(|sparse| matches!(sparse.layout, Layout::SeSparse(_))) {
        Some(ReadOnly::SeSparse)
    } else if bare || descriptor.cid().is_none() {
        Some(ReadOnly::NoDescriptor)
    } else if descriptor.tracks_changes {
        Some(ReadOnly::TracksChanges)
    } else {
        None
    }
}

/// An image while it is opened.
struct Opened<'a> {
    options: &'a OpenOptions,
    extents: Vec<Extent>,
    bare: bool,
}

impl Opened<'_> {
    fn push(&mut self, len: u64, access: Access, name: Option<String>, store: Store) {
        let start = self.extents.last().map_or(0, |last| last.start + last.len);
        self.extents.push(Extent { start, len, access, name, store });
    }

    /// Opens what the lines of a descriptor name.
    fn lines(&mut self, lines: &[ExtentLine]) -> Result<()> {
        let files = lines.iter().filter(|line| line.has_file()).count();
        let parts = &self.options.parts;
        if !parts.is_empty() && parts.len() != files {
            return Err(Error::invalid(
                "the parts of a VMDK",
                "there must be one for each extent that has a file",
            ));
        }
        let mut parts = parts.iter();
        for line in lines {
            let store = match (line.access, line.kind) {
                (Access::None, _) => Store::NoAccess,
                (_, Kind::Zero) => Store::Zero,
                (_, Kind::Device) => return Err(Error::unsupported("a VMDK on a device behind VMFS")),
                _ => match parts.next() {
                    Some(part) => self.part(line, part)?,
                    None => Store::NotOpened,
                },
            };
            self.push(line.sectors * SECTOR, line.access, line.name.clone(), store);
        }
        Ok(())
    }

    fn part(&self, line: &ExtentLine, part: &Arc<dyn Disk>) -> Result<Store> {
        let sparse = match line.kind {
            Kind::Flat | Kind::Vmfs => {
                let offset = line.offset * SECTOR;
                let end = offset.checked_add(line.sectors * SECTOR);
                if end.is_none_or(|end| end > part.len()) && !self.options.lenient {
                    let expected = "a file as long as its line says";
                    return Err(Error::corrupt("a flat extent", offset, expected, part.len()));
                }
                return Ok(Store::Flat { file: part.clone(), offset });
            }
            Kind::SeSparse => self.se_sparse(part)?,
            _ if read_up_to(&**part, 0, 4)?.starts_with(COWD_MAGIC) => {
                self.cowd(part, CowdHeader::parse(&read_up_to(&**part, 0, COWD_HEADER)?)?)?
            }
            _ => self.hosted(part, &read_header(&**part, 0)?, false)?,
        };
        let capacity = sparse.read_state().len;
        if capacity < line.sectors * SECTOR {
            return Err(Error::corrupt(
                "the capacity of a VMDK extent",
                12,
                "as much as its line says",
                capacity,
            ));
        }
        sparse.write_state().len = line.sectors * SECTOR;
        Ok(Store::Sparse(Box::new(sparse)))
    }

    /// Reads the directory of a hosted extent. Only an image of one file is written as a stream.
    fn hosted(&self, file: &Arc<dyn Disk>, first: &SparseHeader, alone: bool) -> Result<Sparse> {
        let header = if first.gd == AT_END && first.capacity > 0 { read_footer(&**file)? } else { *first };
        let entries = u64::from(header.entries).max(1);
        let len = header.directory_len();
        let at_rgd = Some(header.rgd).filter(|_| header.has(FLAG_REDUNDANT) && !header.compressed);
        // What the redundant directory lacks is found by a check, and before anything is written.
        let redundant = |sector: u64| read_directory(&**file, sector, len, "the redundant grain directory");
        let rgd = at_rgd.map(|sector| (sector.saturating_mul(SECTOR), redundant(sector).unwrap_or_default()));
        let primary = read_directory(&**file, header.gd, len, "the grain directory");
        let (gd_at, gd, rgd) = match (primary, rgd) {
            (Ok(gd), rgd) => (header.gd.saturating_mul(SECTOR), gd, rgd),
            (Err(_), Some((at, copy))) if self.options.lenient && !copy.is_empty() => (at, copy, None),
            (Err(error), _) => return Err(error),
        };
        let packed = header.compressed.then(|| header.has(FLAG_MARKERS));
        let is_new =
            alone && first.gd == AT_END && packed == Some(true) && gd.iter().all(|entry| *entry == 0);
        let grain = header.grain.max(1) * SECTOR;
        let state = State {
            len: header.capacity * SECTOR,
            header: Some(header),
            gd_at,
            gd,
            rgd,
            writer: Writer::default(),
            stream: (is_new && !self.options.read_only).then(|| Stream::new(stream_start(&header))),
        };
        let zeroed = header.has(FLAG_ZEROED) && header.version >= 2;
        Ok(Sparse {
            file: file.clone(),
            layout: Layout::Hosted,
            grain,
            entries,
            zeroed,
            packed,
            cache: self.cache(entries * 4),
            unpacked: Unpacked::new(grain),
            state: RwLock::new(state),
        })
    }

    fn cowd(&self, file: &Arc<dyn Disk>, header: CowdHeader) -> Result<Sparse> {
        let gd = read_directory(&**file, header.gd, header.directory_len, "the grain directory")?;
        let grain = header.grain * SECTOR;
        let state = State {
            len: header.capacity * SECTOR,
            header: None,
            gd_at: header.gd * SECTOR,
            gd,
            rgd: None,
            writer: Writer::default(),
            stream: None,
        };
        Ok(Sparse {
            file: file.clone(),
            layout: Layout::Cowd(header),
            grain,
            entries: COWD_ENTRIES,
            zeroed: false,
            packed: None,
            cache: self.cache(COWD_ENTRIES * 4),
            unpacked: Unpacked::new(grain),
            state: RwLock::new(state),
        })
    }

    fn se_sparse(&self, file: &Arc<dyn Disk>) -> Result<Sparse> {
        let header = SeSparseHeader::parse(&read_up_to(&**file, 0, SECTOR)?)?;
        header.check_volatile(&read_up_to(&**file, header.volatile_at.saturating_mul(SECTOR), SECTOR)?)?;
        let len = header.gd_len * SECTOR;
        let gd_at = header.gd.saturating_mul(SECTOR);
        if gd_at.checked_add(len).is_none_or(|end| end > file.len()) {
            return Err(Error::corrupt("the grain directory", gd_at, "sectors within the file", len));
        }
        let bytes = read_up_to(&**file, gd_at, len)?;
        let table = |(index, bytes): (usize, &[u8])| {
            let raw = super::sparse::word(bytes, 0, 8);
            let sector = match raw >> 32 {
                0 if raw == 0 => Some(0),
                0x1000_0000 => header.tables.checked_add((raw & 0xffff_ffff) * header.table),
                _ => None,
            };
            sector.and_then(|sector| u32::try_from(sector).ok()).ok_or_else(|| {
                Error::corrupt("the grain directory", gd_at + index as u64 * 8, "the number of a table", raw)
            })
        };
        let gd = bytes.chunks_exact(8).enumerate().map(table).collect::<Result<_>>()?;
        let grain = header.grain * SECTOR;
        let entries = header.table * SECTOR / 8;
        let state = State {
            len: header.capacity * SECTOR,
            header: None,
            gd_at,
            gd,
            rgd: None,
            writer: Writer::default(),
            stream: None,
        };
        Ok(Sparse {
            file: file.clone(),
            layout: Layout::SeSparse(header.grains),
            grain,
            entries,
            zeroed: false,
            packed: None,
            cache: self.cache(entries * 8),
            unpacked: Unpacked::new(grain),
            state: RwLock::new(state),
        })
    }

    fn cache(&self, table_len: u64) -> Cache {
        let share = self.options.cache_bytes / self.options.parts.len().max(1);
        Cache::new(table_len as usize, share)
    }
}

/// Where the grains of a new stream begin: past the header, the descriptor and what counts as overhead.
fn stream_start(header: &SparseHeader) -> u64 {
    let descriptor = header.descriptor_at.saturating_add(header.descriptor_len);
    header.overhead.max(descriptor).max(1).saturating_mul(SECTOR)
}

fn read_directory(file: &dyn Disk, sector: u64, len: u64, what: &'static str) -> Result<Vec<u32>> {
    let at = sector.saturating_mul(SECTOR);
    if (sector == 0 && len > 0) || at.checked_add(len * 4).is_none_or(|end| end > file.len()) {
        return Err(Error::corrupt(what, at, "a directory within the file", len * 4));
    }
    let mut bytes = vec![0; (len * 4) as usize];
    file.read_at(&mut bytes, at)?;
    Ok(bytes.chunks_exact(4).map(|entry| super::sparse::word(entry, 0, 4) as u32).collect())
}

/// Reads the header at the end of a stream, which knows where the directory is.
fn read_footer(file: &dyn Disk) -> Result<SparseHeader> {
    let what = "the footer of a stream-optimized VMDK";
    let len = file.len() - file.len() % SECTOR;
    let at = len.saturating_sub(3 * SECTOR);
    let tail = read_up_to(file, at, 3 * SECTOR)?;
    let marker = |sector: usize| tail.get(sector * 512..).and_then(parse_marker);
    let sound =
        matches!(marker(0), Some((_, 0, MARKER_FOOTER))) && matches!(marker(2), Some((0, 0, MARKER_END)));
    if !sound || at == 0 {
        return Err(Error::corrupt(what, at, "a footer between its markers: the file is cut off", len));
    }
    let header = read_header(file, at + SECTOR)?;
    match header.gd {
        AT_END => Err(Error::corrupt(what, at + SECTOR + 56, "the place of the grain directory", AT_END)),
        _ => Ok(header),
    }
}

/// The error for an extent whose file was not opened.
pub(super) fn not_opened(extent: &Extent) -> Error {
    Reason::PartNotOpened { name: extent.name.clone().unwrap_or_default() }.into()
}
