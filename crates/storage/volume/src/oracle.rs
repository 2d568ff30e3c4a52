//! What holds for every disk, whatever its bytes: for property tests and fuzzing.

use std::sync::Arc;

use vmwright_disk::{Disk, MemDisk};

use crate::{ErrorKind, PartitionTable, Scheme};

/// Checks the laws of reading and repairing on one disk, and panics where one is broken.
///
/// Reading changes nothing; partitions lie on the disk, do not overlap, and have numbers of their own; after
/// a repair nothing is damaged, the partitions are the same, and they stay so when either copy is destroyed.
pub fn check(bytes: Vec<u8>) {
    let memory = Arc::new(MemDisk::from_bytes(bytes.clone()));
    let disk: Arc<dyn Disk> = memory.clone();
    let table = PartitionTable::read(&disk);
    assert!(memory.to_bytes() == bytes, "reading changed the disk");
    let mut table = match table {
        Ok(Some(table)) => table,
        Ok(None) => return,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error}");
            return;
        }
    };
    check_partitions(&table, disk.len());
    if table.scheme() == Scheme::Gpt {
        check_repair(&mut table, &memory);
    }
}

fn check_partitions(table: &PartitionTable, end: u64) {
    let leaves = || table.partitions().iter().filter(|partition| !partition.partition_type.is_container());
    for (index, partition) in leaves().enumerate() {
        assert!(partition.len > 0 && partition.start >= 512 && partition.end() <= end, "{partition:?}");
        assert!(table.partition(partition.number).is_ok_and(|window| window.len() == partition.len));
        for other in leaves().skip(index + 1) {
            let apart = partition.end() <= other.start || other.end() <= partition.start;
            assert!(apart && partition.number != other.number, "{partition:?} {other:?}");
        }
    }
}

fn check_repair(table: &mut PartitionTable, memory: &Arc<MemDisk>) {
    let before = memory.to_bytes();
    let whole = table.damage().is_empty();
    if let Err(error) = table.repair() {
        assert!(matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Corrupt), "{error}");
        assert!(memory.to_bytes() == before, "a repair that failed changed the disk");
        return;
    }
    let after = memory.to_bytes();
    assert!(!whole || after == before, "a repair changed a table that was whole");
    for partition in table.partitions() {
        let range = partition.start as usize..partition.end() as usize;
        assert!(after[range.clone()] == before[range], "a repair changed {partition:?}");
    }
    let size = table.sector_size() as usize;
    let last = after.len() / size * size - size;
    for (destroyed, damaged) in [(None, 0), (Some(size), 1), (Some(last), 1)] {
        let mut bytes = after.clone();
        if let Some(at) = destroyed {
            bytes[at] ^= 0xff;
        }
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(bytes));
        let again = PartitionTable::read(&disk).ok().flatten().expect("a copy is whole");
        assert_eq!(again.partitions(), table.partitions());
        assert_eq!(again.damage().len(), damaged, "{:?}", again.damage());
    }
}

/// Puts right checksums into both copies of a GPT with sectors of 512 bytes, so that bytes made at random
/// reach past them.
pub fn fix_checksums(bytes: &mut [u8]) {
    let Some(last) = (bytes.len() / 512).checked_sub(1) else { return };
    for lba in [1, last] {
        let at = lba * 512;
        if bytes.len() < at + 512 || !bytes[at..].starts_with(b"EFI PART") {
            continue;
        }
        let number = |from: usize, len: usize| {
            let field = bytes[at + from..at + from + len].iter().rev();
            field.fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let start = number(72, 8).checked_mul(512);
        let end = start.and_then(|start| start.checked_add(number(80, 4).checked_mul(number(84, 4))?));
        let range = start.zip(end).map(|(start, end)| start as usize..end as usize);
        if let Some(crc) = range.and_then(|range| bytes.get(range)).map(crc32fast::hash) {
            bytes[at + 88..at + 92].copy_from_slice(&crc.to_le_bytes());
        }
        let size = (u32::from_le_bytes([bytes[at + 12], bytes[at + 13], 0, 0]) as usize).clamp(92, 512);
        bytes[at + 16..at + 20].fill(0);
        let crc = crc32fast::hash(&bytes[at..at + size]);
        bytes[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A disk of 128 KiB with a whole GPT of three partitions.
pub fn small_gpt() -> Vec<u8> {
    let (sectors, array) = (256_u64, 4_u64);
    let mut bytes = vec![0; sectors as usize * 512];
    bytes[446 + 4] = 0xee;
    bytes[446 + 8] = 1;
    bytes[446 + 12..446 + 16].copy_from_slice(&(sectors as u32 - 1).to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (lba, other, entries) in [(1, sectors - 1, 2), (sectors - 1, 1, sectors - 1 - array)] {
        for (index, (first, last)) in [(16_u64, 31_u64), (32, 32), (100, 200)].into_iter().enumerate() {
            let at = (entries * 512) as usize + index * 128;
            bytes[at..at + 32].fill(index as u8 + 1);
            bytes[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
            bytes[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
        }
        let header = &mut bytes[lba as usize * 512..][..92];
        header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        for (index, value) in [lba, other, 16, sectors - array - 2].into_iter().enumerate() {
            header[24 + index * 8..32 + index * 8].copy_from_slice(&value.to_le_bytes());
        }
        header[72..80].copy_from_slice(&entries.to_le_bytes());
        header[80..84].copy_from_slice(&16_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    }
    fix_checksums(&mut bytes);
    bytes
}

/// A disk of 128 KiB with an MBR of one primary and two logical partitions.
pub fn small_mbr() -> Vec<u8> {
    let mut bytes = vec![0; 256 * 512];
    let mut entry = |sector: usize, index: usize, os_type: u8, start: u8, len: u8| {
        let at = sector * 512 + 446 + index * 16;
        (bytes[at + 4], bytes[at + 8], bytes[at + 12]) = (os_type, start, len);
        bytes[sector * 512 + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
    };
    entry(0, 0, 0x83, 1, 10);
    entry(0, 1, 0x05, 16, 200);
    entry(16, 0, 0x83, 1, 10);
    entry(16, 1, 0x05, 50, 60);
    entry(66, 0, 0x83, 2, 50);
    bytes
}
