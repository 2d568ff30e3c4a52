//! Logs that were not replayed: made by hand, and left by programs that were stopped.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;
mod vhdx_parts;

use std::sync::Arc;

use support::{Folder, content, open, qemu_content, qemu_img};
use vhdx_parts::{
    Change, LOG_GUID, MIB, activate, bat, current, entry, put, put_entry, seal, set_header, u64_at,
};
use vmwright_disk::fault::{Fault, FaultDisk};
use vmwright_disk::{Disk, ErrorKind, MemDisk};
use vmwright_image::{
    CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, Repair, VhdxOptions, create_on,
};
use vmwright_judges::{need, output, tool};

const VHDX: FormatChoice = FormatChoice::Exact(Format::Vhdx);
const SIZE: usize = 4 * MIB;

fn empty() -> Arc<MemDisk> {
    let file = Arc::new(MemDisk::new(0));
    let vhdx = VhdxOptions { block_size: 1 << 20, ..VhdxOptions::default() };
    let options = CreateOptions::laid_out(Layout::Vhdx(vhdx), SIZE as u64);
    create_on(&(file.clone() as Arc<dyn Disk>), &options).unwrap();
    file
}

fn open_bytes(bytes: &[u8], options: OpenOptions) -> vmwright_image::Result<Image> {
    Image::open(Arc::new(MemDisk::from_bytes(bytes.to_vec())), VHDX, options)
}

/// An image whose blocks 0 and 1 are written, with a spare MiB of nines at the end that nothing uses.
fn sample() -> Vec<u8> {
    let file = empty();
    let image = Image::open(file.clone(), VHDX, OpenOptions::default()).unwrap();
    image.write_at(&vec![1; MIB], 0).unwrap();
    image.write_at(&vec![2; MIB], MIB as u64).unwrap();
    image.flush().unwrap();
    let mut bytes = file.to_bytes();
    bytes.extend(vec![9; MIB]);
    bytes
}

/// The first sector of the table with other entries.
fn table(bytes: &[u8], entries: &[(usize, u64)]) -> Change {
    let at = bat(bytes);
    let mut sector = bytes[at..at + 4096].to_vec();
    for (index, value) in entries {
        put(&mut sector, index * 8, &value.to_le_bytes());
    }
    Change::Data(at as u64, sector)
}

/// A log of two whole entries around its end, a torn one behind them, and old ones about.
fn pending() -> (Vec<u8>, Vec<u8>) {
    let mut bytes = sample();
    let len = bytes.len() as u64;
    let spare = len - MIB as u64;
    let block_1 = u64_at(&bytes, bat(&bytes) + 8) >> 20 << 20;
    let start = MIB - 4096;
    // First block 2 becomes the spare one and a sector of block 1 is overwritten; then that sector and its neighbour
    // become zeros, and block 0 does.
    let first = [table(&bytes, &[(2, spare | 6)]), Change::Data(block_1, vec![7; 4096])];
    let second = [Change::Zero(block_1, 8192), table(&bytes, &[(0, 2), (2, spare | 6)])];
    let at = put_entry(&mut bytes, start, &entry(7, start as u32, [len, len], &first));
    let at = put_entry(&mut bytes, at, &entry(8, start as u32, [len, len], &second));
    let mut torn = entry(9, start as u32, [len, len], &[Change::Data(block_1, vec![0x55; 4096])]);
    torn[5000] ^= 1;
    let at = put_entry(&mut bytes, at, &torn);
    put_entry(&mut bytes, at, &entry(3, at as u32, [len, len], &[Change::Zero(block_1, 1 << 20)]));
    activate(&mut bytes);
    let mut expected = vec![0; SIZE];
    expected[MIB + 8192..2 * MIB].fill(2);
    expected[2 * MIB..3 * MIB].fill(9);
    (bytes, expected)
}

#[test]
fn a_pending_log_shows_without_being_written() {
    let (bytes, expected) = pending();
    let file = Arc::new(MemDisk::from_bytes(bytes.clone()));
    for options in [OpenOptions::read_only(), OpenOptions::default()] {
        let image = Image::open(file.clone(), VHDX, options).unwrap();
        assert!(content(&image) == expected);
        assert!(image.info().unwrap().dirty_flag);
        image.check().unwrap();
        drop(image);
        assert!(file.to_bytes() == bytes, "reading changed the file");
    }
}

#[test]
fn what_we_read_before_the_replay_is_what_qemu_reads_after_it() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    let (bytes, expected) = pending();
    std::fs::write(&path, &bytes).unwrap();
    assert!(content(&open(&path, true)) == expected);
    // QEMU says so too that it must be replayed, and does it.
    assert!(!output("qemu-img", ["check", "-f", "vhdx", path.to_str().unwrap()]).status.success());
    qemu_img("check -q -f vhdx -r all {}", &[&path]);
    assert!(qemu_content(&path) == expected);
    assert!(content(&open(&path, true)) == expected);
}

#[test]
fn the_first_change_replays_the_log() {
    let (bytes, mut expected) = pending();
    let file = Arc::new(MemDisk::from_bytes(bytes));
    let image = Image::open(file.clone(), VHDX, OpenOptions::default()).unwrap();
    image.write_at(&[5; 512], 3 * MIB as u64 + 512).unwrap();
    expected[3 * MIB + 512..][..512].fill(5);
    assert!(content(&image) == expected);
    image.flush().unwrap();
    let bytes = file.to_bytes();
    let header = current(&bytes);
    assert_eq!(bytes[header + 48..header + 64], [0; 16]);
    assert!(vhdx_parts::read_disk(&bytes, None) == expected);
    if tool("qemu-img").is_some() {
        let folder = Folder::new();
        std::fs::write(folder.path("image"), &bytes).unwrap();
        assert!(qemu_content(&folder.path("image")) == expected);
    }
}

#[test]
fn repair_replays_the_log_and_mends_copies() {
    let (mut bytes, expected) = pending();
    bytes[vhdx_parts::TABLES[0] + 20] ^= 1;
    let other = vhdx_parts::HEADERS.into_iter().find(|at| *at != current(&bytes)).unwrap();
    bytes[other + 100] ^= 1;
    let file = Arc::new(MemDisk::from_bytes(bytes));
    let image = Image::open(file.clone(), VHDX, OpenOptions::default()).unwrap();
    let found = image.check().unwrap();
    assert_eq!((found.findings.len(), found.corruptions), (3, 0), "{:?}", found.findings);
    let report = image.repair(Repair::All).unwrap();
    assert!(report.findings.is_empty() && report.is_clean(), "{:?}", report.findings);
    assert!(report.corruptions_fixed >= 2);
    image.flush().unwrap();
    let image = Image::open(file.clone(), VHDX, OpenOptions::default()).unwrap();
    assert!(image.check().unwrap().findings.is_empty());
    assert!(content(&image) == expected);
    assert!(vhdx_parts::read_disk(&file.to_bytes(), None) == expected);
}

#[test]
fn a_torn_entry_takes_nothing_with_it() {
    // The second of two whole entries loses one byte after the other: what remains is the first.
    let sound = sample();
    let len = sound.len() as u64;
    let first = entry(1, 0, [len, len], &[table(&sound, &[(0, 2)])]);
    let second = entry(2, 0, [len, len], &[table(&sound, &[(0, 2), (1, 2)])]);
    for at in [0, 4, 9, 17, 30, 40, 64, 70, 90, 4096, 4101, 6000, 8191] {
        let mut bytes = sound.clone();
        let mut torn = second.clone();
        torn[at] ^= 0x10;
        let next = put_entry(&mut bytes, 0, &first);
        put_entry(&mut bytes, next, &torn);
        activate(&mut bytes);
        let image = open_bytes(&bytes, OpenOptions::read_only()).unwrap();
        let now = content(&image);
        assert!(now[..MIB].iter().all(|byte| *byte == 0) && now[MIB] == 2, "{at}");
    }
}

#[test]
fn a_log_that_was_never_written_is_empty() {
    let mut bytes = sample();
    set_header(&mut bytes, 48, &[0x77; 16]);
    let image = open_bytes(&bytes, OpenOptions::default()).unwrap();
    image.write_at(&[3; 512], 0).unwrap();
    image.flush().unwrap();
    assert_eq!(content(&image)[..513], [[3; 512].as_slice(), &[1]].concat());
}

fn refused(bytes: &[u8], what: &str) {
    let error = open_bytes(bytes, OpenOptions::read_only()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    assert!(error.to_string().contains("0x"), "{error}");
}

#[test]
fn damaged_logs_are_corrupt() {
    let sound = sample();
    let len = sound.len() as u64;
    let with = |entry: Vec<u8>| {
        let mut bytes = sound.clone();
        put_entry(&mut bytes, 0, &entry);
        activate(&mut bytes);
        bytes
    };
    let good = || vec![table(&sound, &[(0, 2)])];
    open_bytes(&with(entry(1, 0, [len, len], &good())), OpenOptions::read_only()).unwrap();

    let mut wrong_sum = entry(1, 0, [len, len], &good());
    wrong_sum[100] ^= 1;
    let bytes = with(wrong_sum);
    refused(&bytes, "checksum");
    // Others take it for no log at all; whoever says so may have that.
    let lenient = OpenOptions { lenient: true, ..OpenOptions::read_only() };
    assert_eq!(content(&open_bytes(&bytes, lenient).unwrap())[0], 1);

    refused(&with(entry(1, 8192, [len, len], &good())), "a tail without an entry");
    refused(&with(entry(0, 0, [len, len], &good())), "number 0");
    refused(&with(entry(1, 0, [len + 1, len], &good())), "a file that was cut");
    refused(&with(entry(1, 0, [len, u64::MAX], &good())), "a file longer than any");
    for at in [0, 65_536, 131_072, MIB as u64, len, u64::MAX - 4095] {
        refused(&with(entry(1, 0, [len, len], &[Change::Zero(at, 4096)])), "a target that no log may have");
    }
    refused(
        &with(entry(1, 0, [len, len], &[Change::Zero(MIB as u64 * 2, u64::MAX - 4095)])),
        "zeros without end",
    );
    let odd = [Change::Zero(3 * MIB as u64 + 512, 4096)];
    refused(&with(entry(1, 0, [len, len], &odd)), "a target that is not aligned");
    let mut long = entry(1, 0, [len, len], &good());
    put(&mut long, 24, &u32::MAX.to_le_bytes());
    seal(&mut long);
    refused(&with(long), "more descriptors than fit");

    for (at, value) in [(68, 4096u64), (68, 0x7ff0_0000), (72, 4096), (72, 0), (72, 1 << 40), (72, 1 << 63)] {
        let mut bytes = sound.clone();
        let width = if at == 68 { 4 } else { 8 };
        set_header(&mut bytes, at, &value.to_le_bytes()[..width]);
        refused(&bytes, "the place of the log");
    }
    assert_ne!(LOG_GUID, [0; 16]);
}

#[test]
fn entries_that_all_claim_the_whole_log_cost_little() {
    let mut bytes = sample();
    let len = bytes.len() as u64;
    let mut head = entry(1, 0, [len, len], &[]);
    put(&mut head, 8, &(MIB as u32).to_le_bytes());
    for at in (0..MIB).step_by(4096) {
        put_entry(&mut bytes, at, &head);
    }
    activate(&mut bytes);
    refused(&bytes, "entries over entries");
}

#[test]
fn logs_that_we_leave_are_replayed_by_qemu_to_what_we_read() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    let start = sample();
    let mut replayed = 0;
    for nth in 0..40 {
        let file = Arc::new(MemDisk::from_bytes(start.clone()));
        let faulty = Arc::new(FaultDisk::with_fault(file.clone(), nth, Fault::Stop));
        let Ok(image) = Image::open(faulty, VHDX, OpenOptions::default()) else { continue };
        let steps = || {
            image.write_at(&[4; 4096], 2 * MIB as u64)?;
            image.discard(0, MIB as u64)?;
            image.flush()?;
            image.write_at(&[5; 4096], 3 * MIB as u64 - 512)?;
            image.set_len(6 * MIB as u64)?;
            image.flush()
        };
        let whole = steps().is_ok();
        let bytes = file.to_bytes();
        let header = current(&bytes);
        if bytes[header + 48..header + 64] != [0; 16] {
            let ours = content(&open_bytes(&bytes, OpenOptions::read_only()).unwrap());
            std::fs::write(&path, &bytes).unwrap();
            qemu_img("check -q -f vhdx -r all {}", &[&path]);
            assert!(qemu_content(&path) == ours, "stopped at change {nth}");
            replayed += 1;
        }
        if whole {
            break;
        }
    }
    assert!(replayed >= 4, "{replayed}");
}

#[test]
fn what_qemu_leaves_when_it_aborts_reads_as_qemu_reads_it() {
    need!("qemu-io");
    let folder = Folder::new();
    let path = folder.path("image");
    std::fs::write(&path, sample()).unwrap();
    let script = ["write -P 8 2560k 1M", "write -P 7 100k 300k", "abort"];
    let args = ["-f", "vhdx"].into_iter().chain(script.iter().flat_map(|command| ["-c", command]));
    let status = output("qemu-io", args.chain([path.to_str().unwrap()])).status;
    assert!(!status.success());
    let ours = content(&open(&path, true));
    qemu_img("check -q -f vhdx -r all {}", &[&path]);
    assert!(qemu_content(&path) == ours);
    assert_eq!([ours[2560 << 10], ours[200 << 10]], [8, 7]);
}
