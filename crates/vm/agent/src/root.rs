//! Finding the device that holds the guest's root.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vmwright_agent_proto::RootDevice;

const BLOCK: &str = "/sys/block";
/// The largest partition table that is looked through.
const MAX_ENTRIES: u64 = 1024;

/// A disk or partition as the kernel shows it.
struct Device {
    /// Its name in /dev.
    name: String,
    /// The disk it belongs to.
    disk: String,
    partition: Option<u32>,
}

/// Looks for the device once.
pub(crate) fn find(wanted: &RootDevice) -> Option<PathBuf> {
    let found = match wanted {
        RootDevice::Path(path) => return Path::new(path).exists().then(|| PathBuf::from(path)),
        RootDevice::Serial { serial, partition } => devices().into_iter().find(|device| {
            device.partition == *partition && serial_of(&device.disk).as_deref() == Some(serial)
        }),
        RootDevice::Uuid(uuid) => {
            devices().into_iter().find(|device| filesystem_uuid(&device.name).as_deref() == Some(uuid))
        }
        RootDevice::PartUuid(uuid) => devices().into_iter().find(|device| {
            let number = device.partition;
            number.and_then(|number| partition_uuid(&device.disk, number)).as_deref() == Some(uuid)
        }),
    };
    let path = Path::new("/dev").join(found?.name);
    path.exists().then_some(path)
}

fn devices() -> Vec<Device> {
    let mut devices = Vec::new();
    for disk in names(Path::new(BLOCK)) {
        let folder = Path::new(BLOCK).join(&disk);
        for name in names(&folder) {
            let number = std::fs::read_to_string(folder.join(&name).join("partition"));
            if let Ok(number) = number.unwrap_or_default().trim_end().parse() {
                devices.push(Device { name, disk: disk.clone(), partition: Some(number) });
            }
        }
        devices.push(Device { name: disk.clone(), disk, partition: None });
    }
    devices
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn serial_of(disk: &str) -> Option<String> {
    let folder = Path::new(BLOCK).join(disk);
    // virtio-blk shows it at the disk, other drivers at the device.
    let serial = ["serial", "device/serial"]
        .iter()
        .find_map(|name| std::fs::read_to_string(folder.join(name)).ok())?;
    Some(serial.trim().to_owned())
}

fn read<const N: usize>(device: &str, offset: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    File::open(Path::new("/dev").join(device)).ok()?.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// The identifier in the superblock of ext2/3/4, XFS or Btrfs.
fn filesystem_uuid(device: &str) -> Option<String> {
    let uuid = if read(device, 0x438)? == [0x53, 0xEF] {
        read(device, 0x468)
    } else if read(device, 0)? == *b"XFSB" {
        read(device, 32)
    } else if read(device, 0x1_0040)? == *b"_BHRfS_M" {
        read(device, 0x1_0020)
    } else {
        None
    };
    Some(format_uuid(uuid?))
}

/// The 16 bytes in the order they are written in.
fn format_uuid(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    text
}

/// A GUID on disk has its first three fields in little-endian order.
fn format_guid(mut bytes: [u8; 16]) -> String {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    format_uuid(bytes)
}

/// The identifier of a partition: out of the GPT, or the MBR's signature and the number.
fn partition_uuid(disk: &str, number: u32) -> Option<String> {
    let block: u64 = std::fs::read_to_string(Path::new(BLOCK).join(disk).join("queue/logical_block_size"))
        .ok()
        .and_then(|text| text.trim_end().parse().ok())
        .unwrap_or(512);
    let header: [u8; 92] = read(disk, block)?;
    if !header.starts_with(b"EFI PART") {
        let signature = u32::from_le_bytes(read(disk, 0x1B8)?);
        return Some(format!("{signature:08x}-{number:02x}"));
    }
    let table = u64::from_le_bytes(*header[72..].first_chunk()?);
    let size = u64::from(u32::from_le_bytes(*header[84..].first_chunk()?));
    let index = u64::from(number).checked_sub(1).filter(|index| *index < MAX_ENTRIES)?;
    let entry = table.checked_mul(block)?.checked_add(size.checked_mul(index)?)?;
    read(disk, entry.checked_add(16)?).map(format_guid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_written_as_the_kernel_writes_them() {
        let bytes = std::array::from_fn(|at| at as u8 + 1);
        assert_eq!(format_uuid(bytes), "01020304-0506-0708-090a-0b0c0d0e0f10");
        assert_eq!(format_guid(bytes), "04030201-0605-0807-090a-0b0c0d0e0f10");
    }
}
