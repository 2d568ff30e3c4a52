use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmwright_disk::Disk;
use vmwright_ext4::Ext4;
use vmwright_vfs::FileSystem;
use vmwright_volume::{PartitionTable, Scheme};

use crate::detect::{Content, detect};
use crate::{Error, Result};

/// A partition, or a whole disk without a table, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The name by which it is chosen here: the first disk is `/dev/sda`, its second partition `/dev/sda2`.
    pub device: String,
    /// Which of the disks it is on, from zero on.
    pub disk: usize,
    /// The number of the partition, or none for a whole disk.
    pub partition: Option<u32>,
    /// The length in bytes.
    pub size: u64,
    /// What it holds, where that is recognised.
    pub content: Option<Content>,
    /// The type of the partition, as `sfdisk` shows it.
    pub partition_type: Option<String>,
    /// The identifier that `PARTUUID=` names.
    pub partition_uuid: Option<String>,
    /// The name that `PARTLABEL=` names.
    pub partition_label: Option<String>,
    /// Whether it is an EFI system partition.
    pub efi_system: bool,
}

impl Volume {
    /// What it holds in words, for messages.
    pub(crate) fn describe(&self) -> String {
        match &self.content {
            Some(content) => format!("{} ({})", self.device, content.kind),
            None => format!("{} (nothing known)", self.device),
        }
    }

    pub(crate) fn holds_ext(&self) -> bool {
        self.content.as_ref().is_some_and(|content| matches!(content.kind.as_str(), "ext2" | "ext3" | "ext4"))
    }

    /// Whether a name from an fstab, a kernel's command line or a user means this volume.
    pub(crate) fn answers_to(&self, name: &str) -> bool {
        let same = |ours: &Option<String>, theirs: &str| {
            ours.as_deref().is_some_and(|ours| ours.eq_ignore_ascii_case(theirs.trim_matches('"')))
        };
        let exact = |ours: Option<&String>, theirs: &str| {
            ours.is_some_and(|ours| *ours == link_name(theirs.trim_matches('"')))
        };
        let content = self.content.as_ref();
        let (tag, value) = match split_tag(name) {
            Some(tagged) => tagged,
            None => return device_matches(name, self.disk, self.partition),
        };
        match tag {
            "UUID" => content.is_some_and(|content| same(&content.uuid, value)),
            "LABEL" => exact(content.and_then(|content| content.label.as_ref()), value),
            "PARTUUID" => same(&self.partition_uuid, value),
            _ => exact(self.partition_label.as_ref(), value),
        }
    }
}

/// The name that a user means: one without a folder or a tag is that of a device.
pub(crate) fn wanted(name: &str) -> String {
    let bare = !name.contains(['/', '=']);
    if bare { format!("/dev/{name}") } else { name.to_owned() }
}

/// Splits `UUID=x` and `/dev/disk/by-uuid/x` alike into tag and value.
fn split_tag(name: &str) -> Option<(&'static str, &str)> {
    const TAGS: [(&str, &str, &str); 4] = [
        ("UUID", "UUID=", "/dev/disk/by-uuid/"),
        ("LABEL", "LABEL=", "/dev/disk/by-label/"),
        ("PARTUUID", "PARTUUID=", "/dev/disk/by-partuuid/"),
        ("PARTLABEL", "PARTLABEL=", "/dev/disk/by-partlabel/"),
    ];
    TAGS.iter().find_map(|(tag, equals, folder)| {
        let value = name.strip_prefix(equals).or_else(|| name.strip_prefix(folder))?;
        Some((*tag, value))
    })
}

/// Undoes the escapes of udev in the names of links, as `\x20`.
fn link_name(name: &str) -> String {
    let mut out = String::new();
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        let code = rest.get(at + 2..at + 4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let Some(code) = code.filter(u8::is_ascii) else { break };
        out.push_str(&rest[..at]);
        out.push(code.into());
        rest = &rest[at + 4..];
    }
    out + rest
}

/// Whether a name that some bus gave to a device means a partition of a disk of ours: `sdb3`, `vdb3`, `xvdb3`,
/// `hdb3`, `nvme1n1p3` and `mmcblk1p3` all mean the third partition of the second disk.
fn device_matches(name: &str, disk: usize, partition: Option<u32>) -> bool {
    let Some(name) = name.strip_prefix("/dev/") else { return false };
    let parsed = ["nvme", "mmcblk", "xvd", "sd", "vd", "hd"].into_iter().find_map(|bus| {
        let rest = name.strip_prefix(bus)?;
        if matches!(bus, "nvme" | "mmcblk") { numbered(rest, bus == "nvme") } else { lettered(rest) }
    });
    parsed == Some((disk, partition))
}

fn lettered(rest: &str) -> Option<(usize, Option<u32>)> {
    let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
    let (letters, number) = rest.split_at(letters);
    if letters.is_empty() || letters.len() > 3 {
        return None;
    }
    let index = letters.bytes().fold(0, |sum, letter| sum * 26 + usize::from(letter - b'a') + 1) - 1;
    Some((index, if number.is_empty() { None } else { Some(number.parse().ok()?) }))
}

fn numbered(rest: &str, namespaced: bool) -> Option<(usize, Option<u32>)> {
    let (disk, partition) = match rest.split_once('p') {
        Some((disk, partition)) => (disk, Some(partition.parse().ok()?)),
        None => (rest, None),
    };
    let disk = if namespaced { disk.strip_suffix("n1")? } else { disk };
    Some((disk.parse().ok()?, partition))
}

/// The name of a disk or partition: letters count `a` to `z`, then `aa` on.
pub(crate) fn device_name(disk: usize, partition: Option<u32>) -> String {
    let mut letters = Vec::new();
    let mut left = disk + 1;
    while left > 0 {
        letters.push(b'a' + ((left - 1) % 26) as u8);
        left = (left - 1) / 26;
    }
    let letters: String = letters.iter().rev().map(|&letter| char::from(letter)).collect();
    partition.map_or(format!("/dev/sd{letters}"), |number| format!("/dev/sd{letters}{number}"))
}

/// A volume with the disk that it is.
pub(crate) struct OpenVolume {
    pub(crate) volume: Volume,
    pub(crate) disk: Arc<dyn Disk>,
}

impl OpenVolume {
    /// Looks again at what it holds.
    pub(crate) fn identify(&mut self) -> Result<()> {
        self.volume.content = content_of(&self.disk)?;
        Ok(())
    }

    /// Opens the filesystem on it.
    pub(crate) fn filesystem(&self, write: bool, cache: usize) -> Result<Box<dyn FileSystem>> {
        let options = vmwright_ext4::Options { write, metadata_cache: cache, ..Default::default() };
        let opened = Ext4::open(self.disk.clone(), options);
        let opened = opened.map_err(|error| {
            Error::volume("open the filesystem on", &self.volume.device, error.kind(), error)
        })?;
        Ok(Box::new(opened))
    }
}

/// The volumes of one disk, and its table if it has one.
pub(crate) fn volumes_of(
    index: usize,
    disk: &Arc<dyn Disk>,
) -> Result<(Option<PartitionTable>, Vec<OpenVolume>)> {
    let device = device_name(index, None);
    let fail = |error: vmwright_volume::Error| {
        Error::volume("read the partition table of", &device, error.kind(), error)
    };
    let table = PartitionTable::read(disk).map_err(fail)?;
    let mut volumes = Vec::new();
    for partition in table.iter().flat_map(|table| table.partitions()) {
        if partition.partition_type.is_container() {
            continue;
        }
        let Some(table) = &table else { continue };
        let window: Arc<dyn Disk> = Arc::new(table.partition(partition.number).map_err(fail)?);
        volumes.push(OpenVolume {
            volume: Volume {
                device: device_name(index, Some(partition.number)),
                disk: index,
                partition: Some(partition.number),
                size: partition.len,
                content: content_of(&window)?,
                partition_type: Some(partition.partition_type.to_string()),
                partition_uuid: partition.id.clone(),
                partition_label: Some(partition.name.clone()).filter(|name| !name.is_empty()),
                efi_system: partition.partition_type.is_efi_system(),
            },
            disk: window,
        });
    }
    if volumes.is_empty() {
        // A boot sector without partitions may stand before a filesystem on the whole disk.
        volumes.push(whole(index, device, disk)?);
    }
    Ok((table, volumes))
}

fn whole(index: usize, device: String, disk: &Arc<dyn Disk>) -> Result<OpenVolume> {
    let volume = Volume {
        device,
        disk: index,
        partition: None,
        size: disk.len(),
        content: content_of(disk)?,
        partition_type: None,
        partition_uuid: None,
        partition_label: None,
        efi_system: false,
    };
    Ok(OpenVolume { volume, disk: disk.clone() })
}

fn content_of(disk: &Arc<dyn Disk>) -> Result<Option<Content>> {
    if !vmwright_ext4::is_ext(&**disk) {
        return Ok(detect(&**disk)?);
    }
    if let Some(uuid) = vmwright_ext4::journal_held(&**disk) {
        return Ok(Some(Content::new("jbd", b"", Some(uuid.to_string()))));
    }
    match Ext4::open(disk.clone(), vmwright_ext4::Options::default()) {
        Ok(filesystem) => {
            let identity = filesystem.identity();
            Ok(Some(Content::new(identity.kind, &identity.label, identity.uuid)))
        }
        // Perhaps something else lies over what is left of it; else what is wrong is said on reading.
        Err(_) => Ok(detect(&**disk)?.or_else(|| Some(described(&**disk)))),
    }
}

/// What the superblock alone says of a filesystem that cannot be opened.
fn described(disk: &dyn Disk) -> Content {
    match vmwright_ext4::describe(disk) {
        Ok(known) => Content::new(known.kind, &known.label, Some(known.uuid)),
        Err(_) => Content::new("ext4", b"", None),
    }
}

/// The scheme as `--json` shows it.
pub(crate) fn scheme_name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Gpt => "gpt",
        Scheme::Mbr => "mbr",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_bus_mean_the_same_partition() {
        for name in ["/dev/sdb3", "/dev/vdb3", "/dev/xvdb3", "/dev/hdb3", "/dev/nvme1n1p3", "/dev/mmcblk1p3"]
        {
            assert!(device_matches(name, 1, Some(3)), "{name}");
            assert!(!device_matches(name, 0, Some(3)) && !device_matches(name, 1, Some(2)), "{name}");
        }
        assert!(device_matches("/dev/vda", 0, None) && device_matches("/dev/sdaa1", 26, Some(1)));
        for name in ["sda1", "/dev/sd1", "/dev/mapper/vg-root", "/dev/nvme0n2p1", "/dev/", "/dev/sda1x"] {
            assert!(!device_matches(name, 0, Some(1)), "{name}");
        }
    }

    #[test]
    fn disks_past_the_26th_have_two_letters() {
        let names = [0, 25, 26, 701, 702].map(|disk| device_name(disk, Some(1)));
        assert_eq!(names, ["/dev/sda1", "/dev/sdz1", "/dev/sdaa1", "/dev/sdzz1", "/dev/sdaaa1"]);
    }

    #[test]
    fn tags_match_as_in_fstab() {
        let volume = Volume {
            device: device_name(0, Some(1)),
            disk: 0,
            partition: Some(1),
            size: 1,
            content: Some(Content::new("ext4", b"my disk", Some("ABCD-12".to_owned()))),
            partition_type: None,
            partition_uuid: Some("f00-01".to_owned()),
            partition_label: Some("root".to_owned()),
            efi_system: false,
        };
        for name in [
            "UUID=abcd-12",
            "UUID=\"ABCD-12\"",
            "LABEL=my disk",
            "/dev/disk/by-label/my\\x20disk",
            "PARTUUID=F00-01",
            "PARTLABEL=root",
            "/dev/disk/by-partlabel/root",
            "/dev/sda1",
        ] {
            assert!(volume.answers_to(name), "{name}");
        }
        for name in ["UUID=", "LABEL=MY DISK", "PARTUUID=f00-02", "my disk", ""] {
            assert!(!volume.answers_to(name), "{name}");
        }
    }
}
