//! VHDX files taken apart and put together after the specification, without the crate under test.
#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
pub(crate) const TABLES: [usize; 2] = [192 << 10, 256 << 10];

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

/// CRC-32C, a bit at a time.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    let mut sum = !0u32;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    !sum
}

/// Puts the right checksum at 4 of a structure.
pub(crate) fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = crc(bytes);
    put(bytes, 4, &sum.to_le_bytes());
}

/// Where the current header is.
pub(crate) fn current(bytes: &[u8]) -> usize {
    let sound = |at: &usize| {
        let mut copy = bytes[*at..*at + 4096].to_vec();
        seal(&mut copy);
        bytes[*at..].starts_with(b"head") && copy[..] == bytes[*at..*at + 4096]
    };
    HEADERS.into_iter().filter(sound).max_by_key(|at| u64_at(bytes, at + 8)).unwrap()
}

/// Changes the current header in place.
pub(crate) fn set_header(bytes: &mut [u8], at: usize, what: &[u8]) {
    let header = current(bytes);
    put(bytes, header + at, what);
    seal(&mut bytes[header..header + 4096]);
}

/// Changes both region tables.
pub(crate) fn set_regions(bytes: &mut [u8], at: usize, what: &[u8]) {
    for table in TABLES {
        put(bytes, table + at, what);
        seal(&mut bytes[table..table + 65536]);
    }
}

/// Where the entry of a region with this first byte of its GUID is in the region table.
fn region_entry(bytes: &[u8], first: u8) -> usize {
    (0..u32_at(bytes, TABLES[0] + 8) as usize)
        .map(|index| 16 + index * 32)
        .find(|at| bytes[TABLES[0] + at] == first)
        .unwrap()
}

pub(crate) fn bat_entry(bytes: &[u8]) -> usize {
    region_entry(bytes, 0x66)
}

/// Where the table of blocks is.
pub(crate) fn bat(bytes: &[u8]) -> usize {
    u64_at(bytes, TABLES[0] + bat_entry(bytes) + 16) as usize
}

/// Where the metadata is.
pub(crate) fn metadata(bytes: &[u8]) -> usize {
    u64_at(bytes, TABLES[0] + region_entry(bytes, 0x06) + 16) as usize
}

/// Where the metadata item is whose GUID begins with this byte.
pub(crate) fn item(bytes: &[u8], first: u8) -> usize {
    let table = metadata(bytes);
    let count = u16::from_le_bytes([bytes[table + 10], bytes[table + 11]]);
    let entries = (0..usize::from(count)).map(|index| table + 32 + index * 32);
    let entry = entries.into_iter().find(|at| bytes[*at] == first).unwrap();
    table + u32_at(bytes, entry + 16) as usize
}

pub(crate) const FILE_PARAMETERS: u8 = 0x37;
pub(crate) const VIRTUAL_DISK_SIZE: u8 = 0x24;
pub(crate) const LOGICAL_SECTOR_SIZE: u8 = 0x1d;
pub(crate) const PARENT_LOCATOR: u8 = 0x2d;

/// What a log entry does.
pub(crate) enum Change {
    Data(u64, Vec<u8>),
    Zero(u64, u64),
}

pub(crate) const LOG_GUID: [u8; 16] = [0xa5; 16];

/// A log entry.
pub(crate) fn entry(sequence: u64, tail: u32, file_len: [u64; 2], changes: &[Change]) -> Vec<u8> {
    let heads = (64 + changes.len() * 32).next_multiple_of(4096);
    let mut bytes = vec![0; heads];
    for (index, change) in changes.iter().enumerate() {
        let mut descriptor = vec![0; 32];
        match change {
            Change::Data(at, data) => {
                put(&mut descriptor, 0, b"desc");
                put(&mut descriptor, 4, &data[4092..4096]);
                put(&mut descriptor, 8, &data[..8]);
                put(&mut descriptor, 16, &at.to_le_bytes());
                let mut sector = vec![0; 4096];
                put(&mut sector, 0, b"data");
                put(&mut sector, 4, &((sequence >> 32) as u32).to_le_bytes());
                put(&mut sector, 8, &data[8..4092]);
                put(&mut sector, 4092, &(sequence as u32).to_le_bytes());
                bytes.extend(sector);
            }
            Change::Zero(at, len) => {
                put(&mut descriptor, 0, b"zero");
                put(&mut descriptor, 8, &len.to_le_bytes());
                put(&mut descriptor, 16, &at.to_le_bytes());
            }
        }
        put(&mut descriptor, 24, &sequence.to_le_bytes());
        put(&mut bytes, 64 + index * 32, &descriptor);
    }
    let len = bytes.len() as u32;
    put(&mut bytes, 0, b"loge");
    put(&mut bytes, 8, &len.to_le_bytes());
    put(&mut bytes, 12, &tail.to_le_bytes());
    put(&mut bytes, 16, &sequence.to_le_bytes());
    put(&mut bytes, 24, &(changes.len() as u32).to_le_bytes());
    put(&mut bytes, 32, &LOG_GUID);
    put(&mut bytes, 48, &file_len[0].to_le_bytes());
    put(&mut bytes, 56, &file_len[1].to_le_bytes());
    seal(&mut bytes);
    bytes
}

/// Puts an entry into the log, around its end where it must; answers where the next one goes.
pub(crate) fn put_entry(bytes: &mut [u8], at: usize, entry: &[u8]) -> usize {
    let header = current(bytes);
    let (offset, len) = (u64_at(bytes, header + 72) as usize, u32_at(bytes, header + 68) as usize);
    for (index, sector) in entry.chunks(4096).enumerate() {
        put(bytes, offset + (at + index * 4096) % len, sector);
    }
    (at + entry.len()) % len
}

/// Says in the header that the log counts.
pub(crate) fn activate(bytes: &mut [u8]) {
    set_header(bytes, 48, &LOG_GUID);
}

/// Reads the disk of an image whose log is empty, over what its parent holds.
pub(crate) fn read_disk(bytes: &[u8], parent: Option<&[u8]>) -> Vec<u8> {
    let table = bat(bytes);
    let parameters = item(bytes, FILE_PARAMETERS);
    let block_size = u32_at(bytes, parameters) as usize;
    let has_parent = u32_at(bytes, parameters + 4) & 2 != 0;
    assert_eq!(has_parent, parent.is_some());
    let sector = u32_at(bytes, item(bytes, LOGICAL_SECTOR_SIZE)) as usize;
    let size = u64_at(bytes, item(bytes, VIRTUAL_DISK_SIZE)) as usize;
    let ratio = (sector << 23) / block_size;
    let mut below = parent.unwrap_or_default().to_vec();
    below.resize(size, 0);
    let mut disk = vec![0; size];
    for (block, part) in disk.chunks_mut(block_size).enumerate() {
        let chunk = block / ratio;
        let entry = u64_at(bytes, table + (block + chunk) * 8);
        let host = (entry >> 20 << 20) as usize;
        let lower = &below[block * block_size..][..part.len()];
        match entry & 7 {
            0 => part.copy_from_slice(lower),
            1..=3 => {}
            6 => part.copy_from_slice(&bytes[host..host + part.len()]),
            7 => {
                let entry = u64_at(bytes, table + (chunk * (ratio + 1) + ratio) * 8);
                assert_eq!(entry & 7, 6, "a sector bitmap block");
                let bitmap = (entry >> 20 << 20) as usize;
                let first = block % ratio * (block_size / sector);
                for (index, part) in part.chunks_mut(sector).enumerate() {
                    let bit = first + index;
                    let here = bytes[bitmap + bit / 8] >> (bit % 8) & 1 == 1;
                    let from = if here { &bytes[host..] } else { lower };
                    part.copy_from_slice(&from[index * sector..][..part.len()]);
                }
            }
            other => panic!("state {other}"),
        }
    }
    disk
}
