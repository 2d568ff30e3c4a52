use std::path::Path;
use std::sync::Arc;

use vmwright_disk::{Disk, Plan};
use vmwright_ext4::{journal_held, journal_wanted};
use vmwright_vfs::FileSystem;

use crate::guest::{Mode, OpenOptions};
use crate::journals;
use crate::roots::now;
use crate::session::Session;
use crate::volume::{OpenVolume, volumes_of, wanted};
use crate::{Error, ErrorKind, Result, Volume};

/// A filesystem that can be worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// ext2, ext3 and ext4.
    Ext,
}

impl Format {
    /// The formats by the names that users give them.
    pub const NAMES: [(&str, Self); 3] = [("ext2", Self::Ext), ("ext3", Self::Ext), ("ext4", Self::Ext)];
}

/// What a volume is wanted for, which decides what is chosen where none is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// For the filesystem on it: the only one there is.
    Filesystem,
    /// To be written over: the whole disk, if it has no partitions.
    Space,
}

/// One volume of an image, opened for work on its filesystem as a whole.
///
/// Dropping it writes nothing: only [`Target::commit`] does.
pub struct Target {
    session: Session,
    image: Arc<dyn Disk>,
    open: OpenVolume,
    write: bool,
    cache: usize,
    stamp: vmwright_vfs::Timestamp,
}

impl Target {
    /// Opens an image and chooses a volume of it: by the number of a partition, or by any name that
    /// [`OpenOptions::root`] takes.
    ///
    /// # Errors
    ///
    /// Kind `NotFound` where there is no such volume, `InvalidInput` where several could be meant, `Unsupported`
    /// where there is no filesystem that is known.
    pub fn open(
        image: &Path,
        part: Option<&str>,
        purpose: Purpose,
        options: &OpenOptions<'_>,
    ) -> Result<Self> {
        let session = Session::open(&[image.to_owned()], options)?;
        let Some(image) = session.disks().pop() else {
            return Err(Error::plain(ErrorKind::InvalidInput, "an image", "it has no disk"));
        };
        let (table, mut volumes) = volumes_of(0, &image)?;
        let whole = table.is_none() || volumes.iter().all(|open| open.volume.partition.is_none());
        let index = choose(&volumes, part, purpose, whole)?;
        if purpose == Purpose::Filesystem {
            let journals = volumes.iter().filter(|open| journal_held(&*open.disk).is_some());
            let mut journals = session.journal().into_iter().chain(journals.map(|open| open.disk.clone()));
            let wanted = journal_wanted(&*volumes[index].disk).map(|journal| journal.uuid);
            let found = journals.find(|disk| wanted.is_some() && journal_held(&**disk) == wanted);
            match found {
                Some(journal) => journals::settle(&mut volumes[index], &journal, options)?,
                None if options.journal.is_some() => {
                    let problem = "its journal is not on the disk that was named for it";
                    let device = volumes[index].volume.device.clone();
                    return Err(Error::plain(ErrorKind::NotFound, device, problem));
                }
                None => {}
            }
        }
        let (write, cache) = (options.mode == Mode::Edit, options.cache_bytes);
        let stamp = options.now.unwrap_or_else(now);
        Ok(Self { session, image, open: volumes.swap_remove(index), write, cache, stamp })
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.open.volume
    }

    /// The disk that the volume is.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.open.disk
    }

    /// The time that changes are stamped with.
    pub fn now(&self) -> vmwright_vfs::Timestamp {
        self.stamp
    }

    /// Which filesystem is on it.
    ///
    /// # Errors
    ///
    /// Kind `Unsupported` where none is, or one that is not known.
    pub fn format(&self) -> Result<Format> {
        if self.open.volume.holds_ext() {
            return Ok(Format::Ext);
        }
        let found = self.open.volume.content.as_ref().map_or("nothing known", |content| &content.kind);
        Err(Error::not_readable(&self.open.volume.device, found))
    }

    /// Opens the filesystem on it, for its files; for changing them if the image was opened for that.
    pub fn filesystem(&self) -> Result<Box<dyn FileSystem>> {
        self.opened(self.write)
    }

    /// Opens the filesystem on it for its files, which stay as they are.
    pub fn filesystem_to_read(&self) -> Result<Box<dyn FileSystem>> {
        self.opened(false)
    }

    fn opened(&self, write: bool) -> Result<Box<dyn FileSystem>> {
        self.format()?;
        let mut filesystem = self.open.filesystem(write, self.cache)?;
        filesystem.set_now(self.stamp);
        Ok(filesystem)
    }

    /// An error of a driver about this volume.
    pub(super) fn failed(&self, error: vmwright_ext4::Error) -> Error {
        Error::on(&self.open.volume.device, error.kind(), error)
    }

    /// Says what [`Target::commit`] would write, without writing it.
    pub fn plan(&self) -> Result<Plan> {
        self.image.flush()?;
        self.session.plan()
    }

    /// Makes all changes durable, together; answers what was written.
    pub fn commit(self) -> Result<Plan> {
        let Self { session, image, open, .. } = self;
        image.flush()?;
        // The transaction must be alone.
        drop((open, image));
        session.commit()
    }
}

fn choose(volumes: &[OpenVolume], part: Option<&str>, purpose: Purpose, whole: bool) -> Result<usize> {
    let devices = |chosen: &mut dyn Iterator<Item = &OpenVolume>| -> Vec<String> {
        chosen.map(|open| open.volume.device.clone()).collect()
    };
    if let Some(name) = part {
        let found = match name.parse::<u32>() {
            Ok(number) => volumes.iter().position(|open| open.volume.partition == Some(number)),
            Err(_) => volumes.iter().position(|open| open.volume.answers_to(&wanted(name))),
        };
        return found.ok_or_else(|| Error::no_such_volume(name, devices(&mut volumes.iter())));
    }
    if let (true, [_]) = (whole, volumes) {
        return Ok(0);
    }
    if purpose == Purpose::Space {
        return Err(Error::several_roots("partition", devices(&mut volumes.iter())));
    }
    let known: Vec<usize> = (0..volumes.len()).filter(|&index| volumes[index].volume.holds_ext()).collect();
    // Too little may be left of the only one to tell what it is.
    let unknown = |open: &&OpenVolume| open.volume.content.is_none();
    match known.as_slice() {
        &[index] => Ok(index),
        [] if volumes.iter().filter(unknown).count() == 1 => {
            Ok(volumes.iter().position(|open| unknown(&open)).unwrap_or_default())
        }
        [] => {
            let found: Vec<_> = volumes.iter().map(|open| open.volume.describe()).collect();
            Err(Error::no_filesystem(found.join(", ")))
        }
        several => Err(Error::several_roots(
            "filesystem",
            devices(&mut several.iter().map(|&index| &volumes[index])),
        )),
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("volume", &self.open.volume).finish_non_exhaustive()
    }
}
