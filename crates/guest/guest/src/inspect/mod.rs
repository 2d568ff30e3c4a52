//! What a Linux guest is, read out of its files.
//!
//! Nothing in here fails because of what a guest's files say: what cannot be made sense of is left out, and
//! what cannot be read is named among the problems.

use serde::{Deserialize, Serialize};
use vmwright_vfs::Root;

use crate::fstab::FstabEntry;
use crate::guest::Guest;
use crate::volume::{Volume, scheme_name};

mod boot;
mod cloud_init;
mod elf;
mod grub;
mod kernels;
mod network;
mod os_release;
mod packages;
mod settings;
mod users;
mod yaml;

pub use boot::{Boot, BootEntry, BootLoader};
pub use cloud_init::CloudInit;
pub use kernels::Kernel;
pub use network::{Interface, NetworkFile};
pub use os_release::OsRelease;
pub use packages::{Package, Packages};
pub use users::{Group, Password, User};

/// All that is known of a guest. Field names are stable: they are those of `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The device of the root volume.
    pub root: String,
    /// What the operating system calls itself.
    pub os: OsRelease,
    /// The processor that its programs are made for, as `uname -m` names it.
    pub architecture: Option<String>,
    /// The name of the machine.
    pub hostname: Option<String>,
    /// The identifier of the machine; none where it is made at the first boot.
    pub machine_id: Option<String>,
    /// What runs as process 1: `systemd`, `sysvinit`, `openrc`, `busybox` …
    pub init: Option<String>,
    /// The time zone, such as `Europe/Berlin`.
    pub timezone: Option<String>,
    /// The value of `LANG`.
    pub locale: Option<String>,
    /// The partition table of each disk.
    pub disks: Vec<DiskSummary>,
    /// The partitions, and what they hold.
    pub volumes: Vec<Volume>,
    /// The lines of `/etc/fstab`.
    pub fstab: Vec<FstabEntry>,
    /// Which volumes are mounted where.
    pub mounts: Vec<MountPoint>,
    /// The kernels, newest first.
    pub kernels: Vec<Kernel>,
    /// How it starts.
    pub boot: Boot,
    /// The installed packages.
    pub packages: Packages,
    /// The users.
    pub users: Vec<User>,
    /// The groups.
    pub groups: Vec<Group>,
    /// The network's configuration.
    pub network: Vec<NetworkFile>,
    /// The configuration of cloud-init, where that is installed.
    pub cloud_init: Option<CloudInit>,
    /// What could not be read, or is wrong.
    pub problems: Vec<String>,
}

/// A disk and its partition table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSummary {
    /// The name by which it is called here.
    pub device: String,
    /// The length in bytes.
    pub size: u64,
    /// `gpt` or `mbr`, or none for a disk without a table.
    pub table: Option<String>,
    /// The identifier of the table.
    pub id: Option<String>,
}

/// A mounted volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// Where.
    pub target: String,
    /// What.
    pub device: String,
}

impl Guest {
    /// Finds out what the guest is. Runs nothing and changes nothing.
    pub fn inspect(&self) -> Inspection {
        let reader = &mut Reader::new(self.root(), self.problems().to_vec());
        let os = os_release::read(reader);
        let kernels = kernels::read(reader);
        Inspection {
            root: self.root_volume().device.clone(),
            architecture: elf::architecture(reader),
            hostname: settings::hostname(reader),
            machine_id: settings::machine_id(reader),
            init: settings::init(reader),
            timezone: settings::timezone(reader),
            locale: settings::locale(reader),
            disks: self.disk_summaries(),
            volumes: self.volumes().cloned().collect(),
            fstab: self.fstab().to_vec(),
            mounts: self.mount_points(),
            boot: boot::read(reader, self, &kernels),
            packages: packages::read(reader),
            users: users::users(reader),
            groups: users::groups(reader),
            network: network::read(reader),
            cloud_init: cloud_init::read(reader, self),
            os,
            kernels,
            problems: std::mem::take(&mut reader.problems),
        }
    }

    fn disk_summaries(&self) -> Vec<DiskSummary> {
        let disks = self.disks.iter().enumerate();
        let summaries = disks.map(|(index, disk)| DiskSummary {
            device: crate::volume::device_name(index, None),
            size: disk.disk.len(),
            table: disk.table.as_ref().map(|table| scheme_name(table.scheme()).to_owned()),
            id: disk.table.as_ref().and_then(|table| table.id()).map(str::to_owned),
        });
        summaries.collect()
    }

    fn mount_points(&self) -> Vec<MountPoint> {
        let root = MountPoint { target: "/".to_owned(), device: self.root_volume().device.clone() };
        let mounted = self.composed.mounted.iter().map(|(target, index)| MountPoint {
            target: target.clone(),
            device: self.volumes[*index].volume.device.clone(),
        });
        std::iter::once(root).chain(mounted).collect()
    }
}

/// The longest file that is read whole here; only package databases come near.
const FILE_MAX: u64 = 64 << 20;

/// How much is read in all, in bytes: a sparse file or many take no space in a guest, but time here.
const TOTAL_MAX: u64 = 512 << 20;

/// How many files are read in all.
const FILES_MAX: usize = 50_000;

/// How many names of one directory are looked at.
const NAMES_MAX: usize = 20_000;

/// Reads a guest's files within bounds, and notes what cannot be read.
struct Reader<'a> {
    root: &'a Root,
    problems: Vec<String>,
    bytes_left: u64,
    files_left: usize,
}

impl<'a> Reader<'a> {
    fn new(root: &'a Root, problems: Vec<String>) -> Self {
        Self { root, problems, bytes_left: TOTAL_MAX, files_left: FILES_MAX }
    }

    /// The content of a file; `None` where there is none, or where it cannot be read.
    fn bytes(&mut self, path: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        if self.files_left == 0 || self.bytes_left == 0 {
            return None;
        }
        self.files_left -= 1;
        let limit = FILE_MAX.min(self.bytes_left);
        let bytes = self.checked(|root| root.read_file(path.as_ref(), limit))?;
        self.bytes_left -= bytes.len() as u64;
        if self.files_left == 0 || self.bytes_left == 0 {
            self.problems
                .push("there is more to read than a system should have: the rest is left out".to_owned());
        }
        Some(bytes)
    }

    /// The content of a file as text; what is not UTF-8 becomes U+FFFD.
    fn text(&mut self, path: impl AsRef<[u8]>) -> Option<String> {
        let bytes = self.bytes(path)?;
        Some(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// The names in a directory, which are UTF-8; none where there is no directory.
    fn names(&mut self, path: &str) -> Vec<String> {
        let mut entries = self.checked(|root| root.read_dir(path)).unwrap_or_default();
        if entries.len() > NAMES_MAX {
            self.problems.push(format!("{path}: only the first {NAMES_MAX} names are looked at"));
            entries.truncate(NAMES_MAX);
        }
        entries.into_iter().filter_map(|entry| String::from_utf8(entry.name).ok()).collect()
    }

    /// The paths in a directory whose names end so.
    fn files(&mut self, dir: &str, ending: &str) -> Vec<String> {
        let names = self.names(dir).into_iter().filter(|name| name.ends_with(ending));
        names.map(|name| format!("{dir}/{name}")).collect()
    }

    fn exists(&self, path: &str) -> bool {
        self.root.exists(path)
    }

    fn checked<T>(&mut self, read: impl FnOnce(&Root) -> vmwright_vfs::Result<T>) -> Option<T> {
        use crate::ErrorKind::{InvalidInput, NotFound};
        match read(self.root) {
            Ok(value) => Some(value),
            // Absent, or of another type than a system has there: nothing to tell.
            Err(error) if matches!(error.kind(), NotFound | InvalidInput) => None,
            Err(error) => {
                self.problems.push(error.to_string());
                None
            }
        }
    }
}

/// Reads `NAME=value` lines as the shell would, without running anything.
fn assignments(text: &str) -> impl Iterator<Item = (&str, String)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        let name = name.strip_prefix("export ").unwrap_or(name).trim();
        (!name.starts_with('#')).then(|| (name, unquoted(value.trim())))
    })
}

/// Removes quotes and, within double ones, the backslashes that escape.
fn unquoted(value: &str) -> String {
    let within = |quote| value.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    if let Some(inner) = within('\'') {
        return inner.to_owned();
    }
    let Some(inner) = within('"') else { return value.to_owned() };
    let mut out = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(escaped @ ('"' | '\\' | '$' | '`')) => out.push(escaped),
                other => {
                    out.push('\\');
                    out.extend(other);
                }
            },
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_vfs::MemoryFs;

    #[test]
    fn reading_ends_with_its_budget() {
        let mut root = Root::new(Box::new(MemoryFs::default()));
        root.create_dir_all("/d", 0o755).unwrap();
        for index in 0..40 {
            root.write_file(format!("/d/{index}"), &[b'x'; 1000]).unwrap();
        }
        let mut reader = Reader { root: &root, problems: Vec::new(), bytes_left: 10_500, files_left: 100 };
        let read = (0..40).filter(|index| reader.bytes(format!("/d/{index}")).is_some()).count();
        // Ten whole files; the eleventh is longer than what is left.
        assert_eq!((read, reader.bytes_left), (10, 500));
        let mut reader = Reader { root: &root, problems: Vec::new(), bytes_left: 1 << 20, files_left: 3 };
        let read = (0..40).filter(|index| reader.bytes(format!("/d/{index}")).is_some()).count();
        assert_eq!((read, reader.problems.len()), (3, 1));
    }

    #[test]
    fn absence_is_no_problem_but_an_endless_file_is() {
        let mut root = Root::new(Box::new(MemoryFs::default()));
        root.write_file("/long", &vec![0; FILE_MAX as usize + 1]).unwrap();
        let mut reader = Reader::new(&root, Vec::new());
        assert_eq!(reader.bytes("/none"), None);
        assert!(reader.problems.is_empty());
        assert_eq!(reader.bytes("/long"), None);
        assert_eq!(reader.problems.len(), 1);
    }
}
