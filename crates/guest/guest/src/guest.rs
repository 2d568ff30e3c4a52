use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_crypt::Passphrase;
use vmwright_disk::{Disk, Plan, WriteMode};
use vmwright_image::FormatChoice;
use vmwright_image::chain::{DenyAll, Gate};
use vmwright_vfs::{Root, Timestamp};
use vmwright_volume::PartitionTable;

use crate::fstab::FstabEntry;
use crate::journals;
use crate::roots::{self, Composed};
use crate::session::Session;
use crate::volume::{OpenVolume, Volume, device_name, volumes_of};
use crate::{Error, ErrorKind, Result};

/// What a guest is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Reading; the image is locked against writers.
    #[default]
    Read,
    /// Reading an image that another program may be writing: without locks, at the caller's risk.
    ForceShare,
    /// Changing: all changes reach the image together, with [`Guest::commit`], or not at all.
    Edit,
}

/// Where the journal of a filesystem is that has it on another disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalDisk<'a> {
    /// The image, which may be that of the filesystem.
    pub image: &'a Path,
    /// The partition, by its number or any name that [`OpenOptions::root`] takes; otherwise the only one with a journal.
    pub part: Option<&'a str>,
}

/// How a guest is opened.
pub struct OpenOptions<'a> {
    /// What for.
    pub mode: Mode,
    /// The format of the images.
    pub format: FormatChoice,
    /// Which backing files the images may name.
    pub gate: &'a dyn Gate,
    /// The volume to take as the root, where there is more than one: a device as [`Volume::device`] names it,
    /// or `UUID=…`, `LABEL=…`, `PARTUUID=…`, `PARTLABEL=…`.
    pub root: Option<&'a str>,
    /// How the changes of an edit reach the images.
    pub write_mode: WriteMode,
    /// A folder that outlasts a crash for the redo file of an edit, where the image's own cannot hold it.
    pub redo_dir: Option<&'a Path>,
    /// What opens encrypted images.
    pub secret: Option<Passphrase>,
    /// The disk that holds the journal of a filesystem whose journal is not within it: what it holds is replayed, for
    /// reading in memory.
    pub journal: Option<JournalDisk<'a>>,
    /// Whether multiple mount protection that says a volume is in use is overruled where that journal is replayed.
    pub ignore_mmp: bool,
    /// Whether damages of images that other programs overlook are overlooked.
    pub lenient: bool,
    /// The time that changes are stamped with; the host's where none is given.
    pub now: Option<Timestamp>,
    /// How many bytes of metadata each filesystem and image keeps in memory.
    pub cache_bytes: usize,
}

impl Default for OpenOptions<'_> {
    /// Opens for reading, probing the format, without backing files.
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            format: FormatChoice::Probe,
            gate: &DenyAll,
            root: None,
            write_mode: WriteMode::default(),
            redo_dir: None,
            secret: None,
            journal: None,
            ignore_mmp: false,
            lenient: false,
            now: None,
            cache_bytes: 4 << 20,
        }
    }
}

impl OpenOptions<'_> {
    /// The default, but for changing.
    pub fn edit() -> Self {
        Self { mode: Mode::Edit, ..Self::default() }
    }
}

/// The disks of a virtual machine, opened down to the files of its operating system.
///
/// Dropping a guest that was changed writes nothing: only [`Guest::commit`] does.
pub struct Guest {
    pub(crate) disks: Vec<GuestDisk>,
    pub(crate) volumes: Vec<OpenVolume>,
    pub(crate) composed: Composed,
    session: Option<Session>,
}

/// A disk as the guest sees it.
pub(crate) struct GuestDisk {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) table: Option<PartitionTable>,
}

impl Guest {
    /// Opens image files: the first is the guest's first disk.
    pub fn open<P: AsRef<Path>>(images: &[P], options: &OpenOptions<'_>) -> Result<Self> {
        let paths: Vec<PathBuf> = images.iter().map(|path| path.as_ref().to_owned()).collect();
        let session = Session::open(&paths, options)?;
        let mut guest = Self::open_with(session.disks(), session.journal(), options)?;
        guest.session = Some(session);
        Ok(guest)
    }

    /// Opens disks that are open already, such as images beneath a transaction of the caller's.
    ///
    /// [`Guest::commit`] then writes to those disks and leaves the rest to the caller.
    /// A journal on another disk is looked for on these alone.
    pub fn open_disks(disks: Vec<Arc<dyn Disk>>, options: &OpenOptions<'_>) -> Result<Self> {
        Self::open_with(disks, None, options)
    }

    fn open_with(
        disks: Vec<Arc<dyn Disk>>,
        journal: Option<Arc<dyn Disk>>,
        options: &OpenOptions<'_>,
    ) -> Result<Self> {
        if disks.is_empty() {
            return Err(Error::plain(ErrorKind::InvalidInput, "a guest", "it needs at least one disk"));
        }
        let mut opened = Vec::new();
        let mut volumes = Vec::new();
        for (index, disk) in disks.into_iter().enumerate() {
            let (table, found) = volumes_of(index, &disk)?;
            volumes.extend(found);
            opened.push(GuestDisk { disk, table });
        }
        journals::settle_all(&mut volumes, journal, options)?;
        let mut composed = roots::compose(&volumes, options)?;
        for (index, disk) in opened.iter().enumerate() {
            let damage = disk.table.iter().flat_map(|table| table.damage());
            composed.problems.extend(damage.map(|damage| format!("{}: {damage}", device_name(index, None))));
        }
        Ok(Self { disks: opened, volumes, composed, session: None })
    }

    /// The partitions and whole disks, with what they hold.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().map(|open| &open.volume)
    }

    /// The volume that is the root.
    pub fn root_volume(&self) -> &Volume {
        &self.volumes[self.composed.root_index].volume
    }

    /// Whether the root is that of an operating system, rather than a volume of mere data.
    pub fn has_operating_system(&self) -> bool {
        self.composed.is_system
    }

    /// The tree of files, with what `/etc/fstab` mounts.
    pub fn root(&self) -> &Root {
        &self.composed.root
    }

    /// The tree of files, to be changed.
    pub fn root_mut(&mut self) -> &mut Root {
        &mut self.composed.root
    }

    /// Gives the tree of files away, for reading; the images stay open as long as it lives.
    pub fn into_root(self) -> Root {
        self.composed.root
    }

    /// What `/etc/fstab` says.
    pub fn fstab(&self) -> &[FstabEntry] {
        &self.composed.fstab
    }

    /// What was found to be wrong and worked around, such as a mount whose volume is absent.
    pub fn problems(&self) -> &[String] {
        &self.composed.problems
    }

    /// Writes everything pending down to the images' files, or to the transaction above them.
    fn sync(&mut self) -> Result<()> {
        self.composed.root.sync()?;
        for disk in self.disks.iter().filter(|disk| !disk.disk.is_read_only()) {
            disk.disk.flush()?;
        }
        Ok(())
    }

    /// Says what [`Guest::commit`] would write, without writing it.
    pub fn plan(&mut self) -> Result<Plan> {
        self.sync()?;
        self.session.as_ref().map_or_else(|| Ok(Plan::default()), Session::plan)
    }

    /// Makes all changes durable, together; answers what was written.
    ///
    /// Until it returns, the images are as they were before or, after a crash, are brought to the new state
    /// from the redo file the next time they are opened.
    pub fn commit(mut self) -> Result<Plan> {
        self.sync()?;
        let Some(session) = self.session.take() else { return Ok(Plan::default()) };
        // The filesystems and partitions hold the images open; the transaction must be alone.
        let Self { disks, volumes, composed, .. } = self;
        drop((composed, volumes, disks));
        session.commit()
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("root", &self.root_volume().device).finish_non_exhaustive()
    }
}
