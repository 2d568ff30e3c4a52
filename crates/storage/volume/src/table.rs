use std::sync::Arc;

use uuid::Uuid;
use vmwright_disk::{Disk, Window};

use crate::gpt::{self, Gpt};
use crate::{Damage, Error, Result, mbr};

/// The kind of a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// The GUID partition table of UEFI.
    Gpt,
    /// The master boot record of the PC, with logical partitions.
    Mbr,
}

/// What a partition says it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartitionType {
    /// A type of GPT, such as `c12a7328-f81f-11d2-ba4b-00a0c93ec93b` for the EFI system partition.
    Gpt(Uuid),
    /// A type of MBR, such as `0x83` for Linux.
    Mbr(u8),
}

impl PartitionType {
    /// The EFI system partition of a GPT.
    pub const EFI_SYSTEM: Self = Self::Gpt(Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b));
    /// The partition of a GPT where GRUB keeps its core image when it starts from a BIOS.
    pub const BIOS_BOOT: Self = Self::Gpt(Uuid::from_u128(0x21686148_6449_6e6f_744e_656564454649));

    /// A filesystem of Linux, in a GPT.
    pub const LINUX_FILESYSTEM: Self = Self::Gpt(Uuid::from_u128(0x0fc63daf_8483_4772_8e79_3d69d8477de4));
    /// The root filesystem of Linux on x86-64, in a GPT, which systemd finds by itself.
    pub const LINUX_ROOT_X86_64: Self = Self::Gpt(Uuid::from_u128(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709));

    /// Whether it only holds other partitions, as extended partitions of MBR do.
    pub fn is_container(self) -> bool {
        matches!(self, Self::Mbr(0x05 | 0x0f | 0x85))
    }

    /// Whether it is an EFI system partition of either scheme.
    pub fn is_efi_system(self) -> bool {
        self == Self::EFI_SYSTEM || self == Self::Mbr(0xef)
    }
}

impl std::fmt::Display for PartitionType {
    /// Shows the type as `sfdisk` does: a GUID, or hexadecimal digits.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gpt(guid) => write!(f, "{guid}"),
            Self::Mbr(id) => write!(f, "{id:x}"),
        }
    }
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The number that Linux gives it: from one on, logical partitions from five on.
    pub number: u32,
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it says it is for.
    pub partition_type: PartitionType,
    /// The identifier that `PARTUUID=` names, in lower case; none where the table has no signature.
    pub id: Option<String>,
    /// The name that `PARTLABEL=` names; empty on MBR.
    pub name: String,
    /// The attribute bits of GPT, or the first byte of an MBR entry.
    pub flags: u64,
    /// Whether it is marked as the one that a BIOS boots.
    pub bootable: bool,
}

impl Partition {
    /// The offset just past the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// The partition table of a disk.
pub struct PartitionTable {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) scheme: Scheme,
    pub(crate) id: Option<String>,
    pub(crate) sector_size: u32,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) damage: Vec<Damage>,
    pub(crate) hybrid: bool,
    pub(crate) gpt: Option<Gpt>,
}

impl PartitionTable {
    /// Reads the table of a disk; answers `None` where it has none, such as a filesystem on a whole disk.
    ///
    /// A GPT whose primary copy is damaged is read from its backup, and [`PartitionTable::damage`] says so.
    /// Partitions that overlap or reach past the end of the disk are an error of kind `Corrupt`.
    pub fn read(disk: &Arc<dyn Disk>) -> Result<Option<Self>> {
        let Some(boot) = mbr::BootSector::read(disk)? else { return Ok(None) };
        let mut table = match gpt::read(disk, &boot)? {
            Some(table) => table,
            None => match mbr::read(disk, &boot)? {
                Some(table) => table,
                None => return Ok(None),
            },
        };
        table.partitions.sort_by_key(|partition| partition.number);
        Ok(Some(table))
    }

    /// The kind of the table.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The identifier of the table as `blkid` prints it (`PTUUID`), where it has one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The size of the sectors that the table counts in: 512 or 4096 bytes.
    pub fn sector_size(&self) -> u32 {
        self.sector_size
    }

    /// Whether a GPT's protective MBR names partitions of its own.
    pub fn is_hybrid(&self) -> bool {
        self.hybrid
    }

    /// The partitions in the order of their numbers.
    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    /// What is known of one partition.
    pub fn get(&self, number: u32) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.number == number)
    }

    /// The bytes of one partition as a disk; kind `NotFound` where there is none of that number.
    pub fn partition(&self, number: u32) -> Result<Window> {
        let found = self.get(number).ok_or_else(|| Error::no_partition(number))?;
        Window::new(self.disk.clone(), found.start, found.len).map_err(Error::disk("open a partition of"))
    }

    /// What is wrong with the copies of the table, though its content is known; empty if nothing is.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Writes the copies of a damaged GPT anew, moving the backup to the end of the disk.
    ///
    /// The backup's entries come first, then its header, then the primary's entries and header, with a flush
    /// after each: whenever it is stopped, one copy is whole. What is right already is not written.
    pub fn repair(&mut self) -> Result<()> {
        let Some(gpt) = self.gpt.as_ref().filter(|_| !self.damage.is_empty()) else { return Ok(()) };
        let last = self.partitions.iter().max_by_key(|partition| partition.end());
        self.gpt = Some(gpt.repair(&self.disk, last)?);
        self.damage.clear();
        Ok(())
    }
}

/// Refuses partitions that overlap or reach past the end of the disk.
pub(crate) fn check_partitions<'a>(partitions: impl Iterator<Item = &'a Partition>, end: u64) -> Result<()> {
    let mut sorted: Vec<_> = partitions.collect();
    sorted.sort_by_key(|partition| partition.start);
    if let Some(outside) = sorted.iter().find(|partition| partition.end() > end) {
        return Err(Error::partition(outside.number, "it reaches past the end of the disk"));
    }
    match sorted.windows(2).find(|pair| pair[0].end() > pair[1].start) {
        Some(pair) => Err(Error::overlap(pair[0].number, pair[1].number)),
        None => Ok(()),
    }
}
