#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use vmwright_disk::fault::{Fault, FaultDisk};
use vmwright_disk::{Disk, Error, Extent, ExtentKind, HostFile, MemDisk, Result};
use vmwright_nbd::{Command, Encryption, Ended, ErrorKind, Export, SessionLimits};

use crate::client::{Client, Reply, request};
use crate::support::{chosen, connect, serve};

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZERO: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const ONE: u16 = 8;
const FAST: u16 = 16;

fn memory(len: usize) -> Arc<MemDisk> {
    let disk = MemDisk::new(len);
    let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    disk.write_at(&bytes, 0).unwrap();
    Arc::new(disk)
}

/// A file of 1 MiB with 64 KiB of data at 256 KiB, and 4 KiB at 512 KiB.
fn sparse() -> Arc<HostFile> {
    let dir = tempfile::tempdir().unwrap();
    let file = HostFile::create(&dir.path().join("disk"), 1 << 20).unwrap();
    file.write_at(&[5; 64 << 10], 256 << 10).unwrap();
    file.write_at(&[6; 4 << 10], 512 << 10).unwrap();
    Arc::new(file)
}

#[test]
fn bytes_come_back_as_they_were_written_in_both_forms() {
    for structured in [false, true] {
        let disk = memory(1 << 20);
        let (mut client, connection) = chosen(Export::new("disk", disk.clone()).writable(), structured);
        assert_eq!(client.error_of(WRITE, 0, 1000, 5, b"hello"), 0);
        let read = match structured {
            true => client.read(0, 999, 7).unwrap().0,
            false => client.read_simple(999, 7).unwrap(),
        };
        assert_eq!(read, [246, b'h', b'e', b'l', b'l', b'o', 1]);
        assert_eq!(&disk.to_bytes()[1000..1005], b"hello");
        client.send(DISC, 0, 0, 0, &[]);
        let report = connection.end().report();
        assert!(matches!(report.ended, Ended::Disconnected));
        assert_eq!((report.bytes_written, report.bytes_read, report.changed), (5, 7, true));
    }
}

#[test]
fn ranges_past_the_end_are_refused_as_each_command_has_it() {
    for structured in [false, true] {
        let disk = memory(4096);
        let before = disk.to_bytes();
        let (mut client, _connection) = chosen(Export::new("disk", disk.clone()).writable(), structured);
        let ranges = [(4096, 1), (4095, 2), (0, 4097), (u64::MAX, 1), (u64::MAX - 511, 512), (1 << 63, 1)];
        for (offset, len) in ranges {
            let data = vec![9; len as usize];
            assert_eq!(client.error_of(WRITE, 0, offset, len, &data), ENOSPC, "write {len} at {offset}");
            assert_eq!(client.error_of(ZERO, 0, offset, len, &[]), ENOSPC, "zero {len} at {offset}");
            assert_eq!(client.error_of(TRIM, 0, offset, len, &[]), EINVAL, "trim {len} at {offset}");
            assert_eq!(client.error_of(CACHE, 0, offset, len, &[]), EINVAL, "cache {len} at {offset}");
            assert_eq!(client.error_of(READ, 0, offset, len, &[]), EINVAL, "read {len} at {offset}");
            assert_eq!(client.error_of(STATUS, 0, offset, len, &[]), EINVAL, "status {len} at {offset}");
        }
        assert!(disk.to_bytes() == before);
    }
}

#[test]
fn empty_ranges_do_nothing_and_do_not_hurt() {
    for structured in [false, true] {
        let disk = memory(4096);
        let before = disk.to_bytes();
        let (mut client, _connection) = chosen(Export::new("disk", disk.clone()).writable(), structured);
        for offset in [0, 100, 4096] {
            for command in [READ, WRITE, TRIM, CACHE, ZERO] {
                assert_eq!(client.error_of(command, 0, offset, 0, &[]), 0, "{command} at {offset}");
            }
            assert_eq!(client.error_of(STATUS, 0, offset, 0, &[]), EINVAL);
        }
        assert!(disk.to_bytes() == before);
    }
}

#[test]
fn an_export_is_read_only_unless_made_writable() {
    let disk = memory(1 << 20);
    let before = disk.to_bytes();
    let (mut client, connection) = chosen(Export::new("disk", disk.clone()), true);
    assert_eq!(client.error_of(WRITE, 0, 0, 100_000, &[9; 100_000]), EPERM);
    assert_eq!(client.error_of(ZERO, 0, 0, 512, &[]), EPERM);
    assert_eq!(client.error_of(TRIM, FUA, 0, 512, &[]), EPERM);
    assert_eq!(client.error_of(FLUSH, 0, 0, 0, &[]), 0);
    // What followed the refused data was understood.
    assert_eq!(client.read(0, 0, 512).unwrap().0, before[..512]);
    drop(client);
    assert!(!connection.end().report().changed);
    assert!(disk.to_bytes() == before);
}

#[test]
fn unknown_commands_and_flags_are_invalid_and_the_connection_goes_on() {
    let disk = memory(4096);
    let (mut client, _connection) = chosen(Export::new("disk", disk).writable(), true);
    for command in [8, 9, 100, u16::MAX] {
        assert_eq!(client.error_of(command, 0, 0, 512, &[]), EINVAL);
    }
    for (command, flag) in
        [(READ, NO_HOLE), (READ, ONE), (ZERO, DF), (TRIM, FAST), (STATUS, NO_HOLE), (FLUSH, 32)]
    {
        let len = if command == FLUSH { 0 } else { 512 };
        assert_eq!(client.error_of(command, flag, 0, len, &[]), EINVAL, "flag {flag} of command {command}");
    }
    assert_eq!(client.error_of(WRITE, DF, 0, 4, b"data"), EINVAL);
    assert_eq!(client.error_of(FLUSH, 0, 512, 0, &[]), EINVAL);
    for command in [READ, TRIM, CACHE, ZERO, STATUS] {
        assert_eq!(client.error_of(command, FUA, 0, 512, &[]), 0, "FUA of command {command}");
    }
}

#[test]
fn the_flag_against_fragments_is_unknown_without_chunks() {
    let (mut client, _connection) = chosen(Export::new("disk", memory(4096)), false);
    assert_eq!(client.error_of(READ, DF, 0, 512, &[]), EINVAL);
}

#[test]
fn more_than_the_maximum_is_refused_and_absurd_data_ends_the_connection() {
    const MAX: u32 = 32 << 20;
    let disk = Arc::new(MemDisk::new(80 << 20));
    for (structured, too_long) in [(true, EOVERFLOW), (false, EINVAL)] {
        let (mut client, connection) = chosen(Export::new("disk", disk.clone()).writable(), structured);
        assert_eq!(client.error_of(READ, 0, 0, MAX + 1, &[]), too_long);
        assert_eq!(client.error_of(WRITE, 0, 0, MAX + 1, &vec![1; MAX as usize + 1]), EINVAL);
        assert_eq!(
            client.error_of(WRITE, 0, 0, MAX, &vec![1; MAX as usize]),
            0,
            "the maximum itself is fine"
        );
        client.stream.write_all(&request(WRITE, 0, 1, 0, 2 * MAX + 1, &[])).unwrap();
        assert_eq!(connection.end().failure().kind(), ErrorKind::Protocol);
    }
    assert!(disk.to_bytes()[MAX as usize..].iter().all(|byte| *byte == 0));
}

#[test]
fn holes_travel_as_holes_unless_fragments_are_forbidden() {
    let (mut client, _connection) = chosen(Export::new("disk", sparse()), true);
    let (bytes, holes) = client.read(0, 0, 1 << 20).unwrap();
    assert_eq!(holes, (1 << 20) - (68 << 10));
    assert!(bytes[256 << 10..320 << 10].iter().all(|byte| *byte == 5));
    client.send(READ, DF, 0, 1 << 20, &[]);
    let replies = client.replies();
    let data = |reply: &&Reply| matches!(reply, Reply::Chunk { kind: 1 | 2, .. });
    assert_eq!(replies.iter().filter(data).count(), 1, "one chunk only");
    assert!(crate::client::assemble(&replies, 0, 1 << 20).unwrap().0 == bytes);
    // A hole alone, and one at either end.
    assert_eq!(client.read(0, 100, 1000).unwrap(), (vec![0; 1000], 1000));
    assert_eq!(client.read(0, 200 << 10, 100 << 10).unwrap().1, 56 << 10);
    assert_eq!(client.read(0, 300 << 10, 100 << 10).unwrap().1, 80 << 10);
}

#[test]
fn long_reads_come_in_chunks_that_cover_them() {
    let disk = memory(5_000_000);
    let expected = disk.to_bytes();
    let (mut client, _connection) = chosen(Export::new("disk", disk), true);
    assert!(client.read(0, 0, 5_000_000).unwrap().0 == expected);
    assert!(client.read(0, 12_345, 4_900_001).unwrap().0 == expected[12_345..4_912_346]);
    assert!(client.read(DF, 777, 4_000_000).unwrap().0 == expected[777..4_000_777]);
}

#[test]
fn zeroes_are_written_or_punched_as_asked() {
    let disk = sparse();
    let (mut client, _connection) = chosen(Export::new("disk", disk.clone()).writable(), true);
    assert_eq!(client.error_of(ZERO, 0, 256 << 10, 32 << 10, &[]), 0);
    assert!(disk.extent_at(256 << 10).unwrap().is_zero(), "zeroing makes a hole");
    assert_eq!(client.error_of(ZERO, NO_HOLE | FUA, 0, 600_000, &[]), 0);
    let extent = disk.extent_at(0).unwrap();
    assert!(!extent.is_zero() && extent.len >= 600_000, "no hole where none is wanted: {extent:?}");
    let mut bytes = vec![1; 600_000];
    disk.read_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn fast_zeroes_are_fast_or_refused_without_a_change() {
    let disk = sparse();
    let (mut client, _connection) = chosen(Export::new("disk", disk.clone()).writable(), true);
    assert_eq!(client.error_of(ZERO, FAST, 0, 256 << 10, &[]), 0, "zeros already");
    assert_eq!(client.error_of(ZERO, FAST, 0, 300 << 10, &[]), ENOTSUP);
    assert_eq!(client.error_of(ZERO, FAST | NO_HOLE, 0, 4096, &[]), ENOTSUP);
    let mut byte = [0];
    disk.read_at(&mut byte, 256 << 10).unwrap();
    assert_eq!(byte, [5]);
    let fast = Export::new("disk", disk.clone()).writable().zeroing_fast();
    let (mut client, _connection) = chosen(fast, true);
    assert_eq!(client.error_of(ZERO, FAST, 0, 300 << 10, &[]), 0);
    disk.read_at(&mut byte, 256 << 10).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn trimming_gives_space_back() {
    let disk = sparse();
    let (mut client, _connection) = chosen(Export::new("disk", disk.clone()).writable(), false);
    assert_eq!(client.error_of(TRIM, FUA, 0, 1 << 20, &[]), 0);
    assert_eq!(disk.extent_at(0).unwrap().len, 1 << 20);
}

fn ranges(reply: &Reply) -> (u32, Vec<(u32, u32)>) {
    let Reply::Chunk { kind: 5, payload, .. } = reply else { panic!("{reply:?} is no status") };
    let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    assert!(payload.len() >= 12 && payload.len() % 8 == 4);
    (number(0), (4..payload.len()).step_by(8).map(|at| (number(at), number(at + 4))).collect())
}

#[test]
fn block_status_tells_data_from_holes() {
    let (mut client, _connection) = chosen(Export::new("disk", sparse()), true);
    let mut status = |flags, offset, len| {
        client.send(STATUS, flags, offset, len, &[]);
        let replies = client.replies();
        assert_eq!(replies.len(), 1);
        ranges(&replies[0]).1
    };
    let whole = [(256 << 10, 3), (64 << 10, 0), (192 << 10, 3), (4 << 10, 0), (508 << 10, 3)];
    assert_eq!(status(0, 0, 1 << 20), whole);
    assert_eq!(status(ONE, 0, 1 << 20), whole[..1]);
    assert_eq!(status(ONE, 0, 1000), [(1000, 3)], "never more than was asked");
    assert_eq!(status(0, (256 << 10) - 1, 2), [(1, 3), (64 << 10, 0)], "only the last may be longer");
}

#[test]
fn each_selected_context_answers() {
    let export = Export::new("disk", sparse()).showing_depth();
    let (mut client, _connection) = connect(vec![export]);
    client.structured();
    let contexts = client.contexts("disk", &["qemu:allocation-depth", "base:allocation"]);
    client.go("disk");
    client.send(STATUS, 0, 256 << 10, 128 << 10, &[]);
    let replies = client.replies();
    assert_eq!(replies.len(), 2);
    for (number, name) in contexts {
        let found = replies.iter().map(ranges).find(|(found, _)| *found == number).unwrap();
        let expected = match &*name {
            "base:allocation" => [(64 << 10, 0), (192 << 10, 3)],
            _ => [(64 << 10, 1), (192 << 10, 0)],
        };
        assert_eq!(found.1, expected, "{name}");
    }
}

/// A disk of 6 EiB that holds nothing.
struct Vast;

impl Disk for Vast {
    fn len(&self) -> u64 {
        6 << 60
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> Result<()> {
        Err(Error::read_only("nothing"))
    }

    fn zero_at(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::read_only("nothing"))
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::read_only("nothing"))
    }

    fn set_len(&self, _len: u64) -> Result<()> {
        Err(Error::read_only("nothing"))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { start: offset, len: self.len() - offset, kind: ExtentKind::Unallocated, depth: 0 })
    }
}

/// A disk that cannot say where its bytes are from 64 KiB on.
struct Mapless(MemDisk);

impl Disk for Mapless {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> Result<()> {
        Err(Error::read_only("nothing"))
    }

    fn zero_at(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::read_only("nothing"))
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::read_only("nothing"))
    }

    fn set_len(&self, _len: u64) -> Result<()> {
        Err(Error::read_only("nothing"))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        match offset < 65536 {
            true => Ok(Extent { start: offset, len: 65536 - offset, ..self.0.extent_at(offset)? }),
            false => Err(Error::fixed_size("the map")),
        }
    }
}

#[test]
fn what_has_no_map_can_be_read_all_the_same() {
    let disk = Arc::new(Mapless(MemDisk::from_bytes(memory(5 << 20).to_bytes())));
    let expected = disk.0.to_bytes();
    let (mut client, _connection) = chosen(Export::new("disk", disk), true);
    assert!(client.read(0, 0, 5 << 20).unwrap().0 == expected);
    client.send(STATUS, 0, 0, 5 << 20, &[]);
    assert_eq!(ranges(&client.replies()[0]).1, [(65536, 0)], "what is known is told");
    assert_eq!(client.error_of(STATUS, 0, 65536, 512, &[]), EIO);
}

#[test]
fn disks_longer_than_any_answer_are_described_in_parts() {
    let (mut client, _connection) = chosen(Export::new("vast", Arc::new(Vast)), true);
    client.send(STATUS, 0, 5 << 60, u32::MAX, &[]);
    let (_, found) = ranges(&client.replies()[0]);
    assert!(found.iter().all(|(len, flags)| len % 512 == 0 && *flags == 3));
    let sum: u64 = found.iter().map(|(len, _)| u64::from(*len)).sum();
    assert!(sum >= u64::from(u32::MAX));
    assert_eq!(client.read(0, (6 << 60) - 512, 512).unwrap().1, 512);
}

#[test]
fn a_disk_that_is_full_says_so_and_goes_on() {
    for structured in [false, true] {
        let disk = Arc::new(FaultDisk::with_fault(Arc::new(MemDisk::new(4096)), 1, Fault::NoSpace));
        let (mut client, connection) = chosen(Export::new("disk", disk).writable(), structured);
        assert_eq!(client.error_of(WRITE, 0, 0, 4, b"one!"), 0);
        assert_eq!(client.error_of(WRITE, 0, 0, 4, b"two!"), ENOSPC);
        assert_eq!(client.error_of(WRITE, 0, 8, 4, b"more"), 0);
        drop(client);
        let watch = connection.watch.clone();
        let report = connection.end().report();
        assert_eq!((report.requests, report.failed_requests), (3, 1));
        let failures = watch.failures.lock().unwrap();
        assert_eq!((failures[0].0, failures[0].1, failures[0].2), (Command::Write, 0, 4));
    }
}

#[test]
fn a_flush_that_fails_is_told_and_so_is_the_one_behind_a_write() {
    for (nth, expected) in [(1, [0, EIO, 0]), (3, [0, 0, EIO])] {
        let disk = Arc::new(FaultDisk::with_fault(Arc::new(MemDisk::new(4096)), nth, Fault::Fail));
        let (mut client, _connection) = chosen(Export::new("disk", disk).writable(), true);
        let write = client.error_of(WRITE, 0, 0, 4, b"data");
        let flush = client.error_of(FLUSH, 0, 0, 0, &[]);
        let durable = client.error_of(WRITE, FUA, 0, 4, b"data");
        assert_eq!([write, flush, durable], expected);
    }
}

#[test]
fn fua_flushes_and_a_plain_write_does_not() {
    let disk = Arc::new(FaultDisk::new(Arc::new(MemDisk::new(4096))));
    let (mut client, _connection) = chosen(Export::new("disk", disk.clone()).writable(), true);
    let mut changes = |command, flags, data: &[u8]| {
        let before = disk.changes();
        assert_eq!(client.error_of(command, flags, 0, 4, data), 0);
        disk.changes() - before
    };
    assert_eq!([changes(WRITE, 0, b"data"), changes(WRITE, FUA, b"data")], [1, 2]);
    assert_eq!([changes(ZERO, 0, &[]), changes(ZERO, FUA, &[])], [1, 2]);
    assert_eq!([changes(TRIM, 0, &[]), changes(TRIM, FUA, &[])], [1, 2]);
}

#[test]
fn what_the_disk_says_stays_with_the_owner() {
    let secret = Arc::new(FaultDisk::with_fault(Arc::new(MemDisk::new(4096)), 0, Fault::Fail));
    let (mut client, connection) = chosen(Export::new("disk", secret).writable(), true);
    client.send(WRITE, 0, 0, 4, b"data");
    let Reply::Chunk { payload, .. } = &client.replies()[0] else { panic!("an error has words") };
    let words = String::from_utf8(payload[6..].to_vec()).unwrap();
    assert_eq!(words, "the host could not do it");
    let told = connection.watch.failures.lock().unwrap()[0].3.clone();
    assert!(told.contains("a disk with an injected fault"), "{told}");
}

#[test]
fn garbage_ends_the_connection() {
    let (mut client, connection) = chosen(Export::new("disk", memory(4096)), true);
    client.stream.write_all(&[0xaa; 28]).unwrap();
    let error = connection.end().failure();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(error.to_string().contains("0xaaaaaaaa"), "{error}");
}

#[test]
fn a_client_that_dies_within_a_write_has_written_nothing() {
    let disk = memory(4096);
    let before = disk.to_bytes();
    let (mut client, connection) = chosen(Export::new("disk", disk.clone()).writable(), true);
    client.stream.write_all(&request(WRITE, 0, 1, 0, 4096, &[9; 4000])).unwrap();
    drop(client);
    assert_eq!(connection.end().failure().kind(), ErrorKind::Connection);
    assert!(disk.to_bytes() == before);
}

#[test]
fn requests_before_a_goodbye_are_carried_out() {
    let disk = memory(1 << 20);
    let (mut client, connection) = chosen(Export::new("disk", disk.clone()).writable(), true);
    let mut bytes = Vec::new();
    for number in 0..64_u64 {
        bytes.extend(request(WRITE, 0, number, number * 4096, 4096, &[number as u8 + 1; 4096]));
    }
    bytes.extend(request(DISC, 0, 0, 0, 0, &[]));
    client.stream.write_all(&bytes).unwrap();
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 64 * 16, "each was answered");
    assert_eq!(connection.end().report().requests, 64);
    for (number, block) in disk.to_bytes().chunks(4096).take(64).enumerate() {
        assert!(block.iter().all(|byte| *byte == number as u8 + 1));
    }
}

/// A disk whose reads wait for one another.
struct Meeting {
    inner: MemDisk,
    barrier: Barrier,
    most: AtomicUsize,
    now: AtomicUsize,
}

impl Disk for Meeting {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.barrier.wait();
        self.now.fetch_sub(1, Ordering::SeqCst);
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.inner.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.inner.extent_at(offset)
    }
}

#[test]
fn requests_are_carried_out_at_once_but_no_more_than_allowed() {
    let disk = Arc::new(Meeting {
        inner: MemDisk::new(1 << 20),
        barrier: Barrier::new(3),
        most: AtomicUsize::new(0),
        now: AtomicUsize::new(0),
    });
    let limits = SessionLimits { requests: 3, memory: 0 };
    let exports = vec![Export::new("disk", disk.clone())];
    let (stream, connection) = serve(exports, Encryption::Off, limits, None);
    let mut client = Client::connect(stream);
    client.go("disk");
    // Each three wait for one another, so that this ends only if three are carried out at once.
    for _ in 0..30 {
        client.send(READ, 0, 0, 512, &[]);
    }
    for _ in 0..30 {
        assert_eq!(client.reply(512).unwrap().0.error(), 0);
    }
    assert_eq!(disk.most.load(Ordering::SeqCst), 3);
    drop(client);
    connection.end().report();
}

#[test]
fn a_client_that_reads_no_answers_is_left_in_the_end() {
    let limits = SessionLimits::default();
    let patience = Some(Duration::from_millis(200));
    let (stream, connection) =
        serve(vec![Export::new("disk", memory(8 << 20))], Encryption::Off, limits, patience);
    let mut client = Client::connect(stream);
    client.go("disk");
    for _ in 0..32 {
        client.send(READ, 0, 0, 8 << 20, &[]);
    }
    assert_eq!(connection.end().failure().kind(), ErrorKind::Connection);
}

#[test]
fn a_silent_client_is_left_in_the_end_but_not_while_it_waits() {
    let limits = SessionLimits::default();
    let patience = Some(Duration::from_millis(100));
    let disk = Arc::new(Meeting {
        inner: MemDisk::new(4096),
        barrier: Barrier::new(2),
        most: AtomicUsize::new(0),
        now: AtomicUsize::new(0),
    });
    let (stream, connection) =
        serve(vec![Export::new("disk", disk.clone())], Encryption::Off, limits, patience);
    let mut client = Client::connect(stream);
    client.go("disk");
    client.send(READ, 0, 0, 512, &[]);
    std::thread::sleep(Duration::from_millis(400));
    disk.barrier.wait();
    assert_eq!(client.reply(512).unwrap().0.error(), 0, "a slow disk is not the client's fault");
    assert!(matches!(connection.end().report().ended, Ended::Idle));
}

#[test]
fn a_connection_that_is_told_to_stop_answers_what_it_has() {
    let (mut client, connection) = chosen(Export::new("disk", memory(4096)), true);
    client.read(0, 0, 512).unwrap();
    connection.watch.stopping.store(true, Ordering::SeqCst);
    client.send(READ, 0, 0, 512, &[]);
    client.replies();
    let report = connection.end().report();
    assert!(matches!(report.ended, Ended::Stopped), "{:?}", report.ended);
}
