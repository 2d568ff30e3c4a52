//! GRUB 2 as a BIOS starts it: its first sector, and where that says the rest is.

use std::sync::Arc;

use vmwright_disk::Disk;

/// Where the rest of a GRUB begins, in bytes, if the first sector of the disk is GRUB's.
///
/// `boot.img` keeps the first sector of the core image at byte 0x5c and the word GRUB among its messages.
pub(super) fn core_start(disk: &Arc<dyn Disk>) -> Option<u64> {
    let sector = sector(disk, 0)?;
    let code = &sector[..440];
    let signed = sector[510..] == [0x55, 0xaa];
    if !signed || !contains(code, b"GRUB ") {
        return None;
    }
    let start = u64::from_le_bytes(code[0x5c..0x64].try_into().ok()?).checked_mul(512)?;
    // `diskboot.img`, the first sector of the core image, says that it is loading.
    let first = self::sector(disk, start)?;
    (start > 0 && contains(&first, b"loading")).then_some(start)
}

/// Whether the first sector holds any code that a BIOS would run.
pub(super) fn has_boot_code(disk: &Arc<dyn Disk>) -> bool {
    sector(disk, 0)
        .is_some_and(|sector| sector[510..] == [0x55, 0xaa] && sector[..8].iter().any(|&byte| byte != 0))
}

fn sector(disk: &Arc<dyn Disk>, at: u64) -> Option<[u8; 512]> {
    let mut bytes = [0; 512];
    disk.read_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::MemDisk;

    /// A first sector as `grub-bios-setup` leaves it, with the core image in sector `core`.
    fn disk(core: u64, message: &[u8]) -> Arc<dyn Disk> {
        let mut bytes = vec![0; 1 << 20];
        bytes[0] = 0xeb;
        bytes[0x5c..0x64].copy_from_slice(&core.to_le_bytes());
        bytes[0x180..0x188].copy_from_slice(b"GRUB \0Ge");
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        let at = (core.min(2047) * 512) as usize + 0x150;
        bytes[at..at + message.len()].copy_from_slice(message);
        Arc::new(MemDisk::from_bytes(bytes))
    }

    #[test]
    fn the_core_image_is_found_where_the_boot_sector_says() {
        assert_eq!(core_start(&disk(34, b"loading")), Some(34 * 512));
        assert_eq!(core_start(&disk(34, b"nothing")), None);
        assert!(has_boot_code(&disk(34, b"")));
    }

    #[test]
    fn a_place_outside_of_the_disk_is_no_core_image() {
        for core in [2048, u64::MAX / 512, u64::MAX] {
            assert_eq!(core_start(&disk(core, b"loading")), None);
        }
        let empty: Arc<dyn Disk> = Arc::new(MemDisk::new(100));
        assert_eq!(core_start(&empty), None);
        assert!(!has_boot_code(&empty));
    }
}
