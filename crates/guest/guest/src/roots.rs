use std::time::{SystemTime, UNIX_EPOCH};

use vmwright_vfs::{FileSystem, Root, Timestamp};

use crate::fstab::{self, FstabEntry};
use crate::guest::{Mode, OpenOptions};
use crate::volume::{OpenVolume, wanted};
use crate::{Error, Result};

/// The longest `/etc/fstab` that is read.
const FSTAB_MAX: u64 = 1 << 20;

/// The most filesystems that are mounted.
const MOUNTS_MAX: usize = 64;

/// The tree of files of one root, and how it came about.
pub(crate) struct Composed {
    pub(crate) root: Root,
    pub(crate) root_index: usize,
    pub(crate) is_system: bool,
    pub(crate) fstab: Vec<FstabEntry>,
    /// Where each mounted volume is, by its index; the root itself is not among them.
    pub(crate) mounted: Vec<(String, usize)>,
    pub(crate) problems: Vec<String>,
}

/// Finds the root among the volumes and mounts what its fstab asks for.
pub(crate) fn compose(volumes: &[OpenVolume], options: &OpenOptions<'_>) -> Result<Composed> {
    let (root_index, is_system) = choose(volumes, options)?;
    let write = options.mode == Mode::Edit;
    let filesystem = volumes[root_index].filesystem(write, options.cache_bytes)?;
    let root = Root::new(filesystem);
    let mut composed = Composed {
        root,
        root_index,
        is_system,
        fstab: Vec::new(),
        mounted: Vec::new(),
        problems: Vec::new(),
    };
    if is_system {
        composed.read_fstab();
        composed.mount_all(volumes, options);
    }
    composed.root.set_now(options.now.unwrap_or_else(now));
    Ok(composed)
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanoseconds: since.subsec_nanos() }
}

/// Picks the volume that is the root: the one asked for, the only operating system, or the only filesystem.
fn choose(volumes: &[OpenVolume], options: &OpenOptions<'_>) -> Result<(usize, bool)> {
    if let Some(name) = options.root {
        let index = volumes.iter().position(|open| open.volume.answers_to(&wanted(name)));
        let index = index.ok_or_else(|| Error::no_such_volume(name, devices(volumes.iter())))?;
        let volume = &volumes[index].volume;
        if !volume.holds_ext() {
            let found = volume.content.as_ref().map_or("nothing known", |content| &content.kind);
            return Err(Error::not_readable(&volume.device, found));
        }
        let filesystem = volumes[index].filesystem(false, options.cache_bytes)?;
        return Ok((index, is_system(filesystem)));
    }
    let (mut systems, mut others, mut failed) = (Vec::new(), Vec::new(), None);
    for (index, open) in volumes.iter().enumerate().filter(|(_, open)| open.volume.holds_ext()) {
        match open.filesystem(false, options.cache_bytes) {
            Ok(filesystem) => if is_system(filesystem) { &mut systems } else { &mut others }.push(index),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match (systems.as_slice(), others.as_slice(), failed) {
        (&[index], ..) => Ok((index, true)),
        ([], .., Some(error)) => Err(error),
        ([], &[index], None) => Ok((index, false)),
        ([], [], None) => {
            let found: Vec<_> = volumes.iter().map(|open| open.volume.describe()).collect();
            Err(Error::no_filesystem(found.join(", ")))
        }
        ([], several, None) => {
            Err(Error::several_roots("filesystem", devices(several.iter().map(|&index| &volumes[index]))))
        }
        (several, ..) => Err(Error::several_roots(
            "operating system",
            devices(several.iter().map(|&index| &volumes[index])),
        )),
    }
}

fn devices<'a>(volumes: impl Iterator<Item = &'a OpenVolume>) -> Vec<String> {
    volumes.map(|open| open.volume.device.clone()).collect()
}

/// Whether a filesystem is the root of an operating system.
fn is_system(filesystem: Box<dyn FileSystem>) -> bool {
    let root = Root::new(filesystem);
    let os_release = ["/etc/os-release", "/usr/lib/os-release"].iter().any(|path| root.exists(path));
    os_release || root.is_dir("/etc") && ["/usr", "/bin", "/sbin"].iter().any(|path| root.is_dir(path))
}

impl Composed {
    fn read_fstab(&mut self) {
        match self.root.read_file("/etc/fstab", FSTAB_MAX) {
            Ok(bytes) => self.fstab = fstab::parse(&String::from_utf8_lossy(&bytes)),
            Err(error) if error.kind() == crate::ErrorKind::NotFound => {}
            Err(error) => self.problems.push(error.to_string()),
        }
    }

    /// Mounts what the fstab names, parents before children.
    fn mount_all(&mut self, volumes: &[OpenVolume], options: &OpenOptions<'_>) {
        let mut entries: Vec<_> = self.fstab.iter().filter(|entry| is_volume(entry)).cloned().collect();
        entries.sort_by_key(|entry| entry.target.split('/').filter(|name| !name.is_empty()).count());
        for entry in entries {
            if let Err(problem) = self.mount(&entry, volumes, options) {
                self.problems.push(format!("{}: {problem}", entry.target));
            }
        }
    }

    fn mount(
        &mut self,
        entry: &FstabEntry,
        volumes: &[OpenVolume],
        options: &OpenOptions<'_>,
    ) -> Result<(), String> {
        let index = volumes.iter().position(|open| open.volume.answers_to(&entry.source));
        let Some(index) = index else {
            let optional = entry.options.iter().any(|option| option == "nofail" || option == "noauto");
            return if optional { Ok(()) } else { Err(format!("{} is not on these disks", entry.source)) };
        };
        let open = &volumes[index];
        if index == self.root_index && entry.target.trim_matches('/').is_empty() {
            return Ok(());
        }
        if index == self.root_index || self.mounted.iter().any(|(_, other)| *other == index) {
            return Err(format!("{} is mounted elsewhere already", open.volume.device));
        }
        if self.mounted.len() >= MOUNTS_MAX {
            return Err(format!("more than {MOUNTS_MAX} filesystems"));
        }
        if !open.volume.holds_ext() {
            return Err(format!("{} cannot be read", open.volume.describe()));
        }
        // Whether there is a place for it is checked first: opening for changes may replay a journal.
        if !self.root.is_dir(&entry.target) {
            return Err("there is no such directory to mount at".to_owned());
        }
        let filesystem = self.open_for(open, options)?;
        self.root.mount(&entry.target, filesystem).map_err(|error| error.to_string())?;
        self.mounted.push((entry.target.clone(), index));
        Ok(())
    }

    /// A filesystem that cannot be changed is mounted for reading, and said to be.
    fn open_for(
        &mut self,
        open: &OpenVolume,
        options: &OpenOptions<'_>,
    ) -> Result<Box<dyn FileSystem>, String> {
        let read = || open.filesystem(false, options.cache_bytes).map_err(|error| in_full(&error));
        if options.mode != Mode::Edit {
            return read();
        }
        match open.filesystem(true, options.cache_bytes) {
            Ok(filesystem) => Ok(filesystem),
            Err(error) if error.kind() == crate::ErrorKind::Unsupported => {
                self.problems.push(format!("{} is read-only: {}", open.volume.device, in_full(&error)));
                read()
            }
            Err(error) => Err(in_full(&error)),
        }
    }
}

/// An error with its causes, on one line.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Whether an entry is of a volume that belongs into the tree.
fn is_volume(entry: &FstabEntry) -> bool {
    let tagged = ["/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="];
    entry.target.starts_with('/')
        && entry.kind != "swap"
        && tagged.iter().any(|prefix| entry.source.starts_with(prefix))
        && !entry.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind" | "noauto"))
}
