use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;
use vmwright_disk::{Disk, MemDisk};
use vmwright_judges::{need, output, run, tool};

use crate::oracle::{self, small_gpt, small_mbr};
use crate::{Damage, ErrorKind, NewPartition, NewTable, PartitionTable, PartitionType, Scheme};

const MIB: u64 = 1 << 20;

struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    fn new(len: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        Self { _dir: dir, path }
    }

    fn feed(self, program: &str, args: &[&str], script: &str) -> Self {
        let mut child = Command::new(tool(program).unwrap());
        child.args(args).arg(&self.path).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{program}: {script}");
        self
    }

    fn sfdisk(len: u64, script: &str) -> Self {
        Self::new(len).feed("sfdisk", &["-q"], script)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    fn load(&self) -> (Arc<MemDisk>, Arc<dyn Disk>) {
        disk(self.bytes())
    }

    fn store(&self, disk: &MemDisk) {
        std::fs::write(&self.path, disk.to_bytes()).unwrap();
    }
}

fn disk(bytes: Vec<u8>) -> (Arc<MemDisk>, Arc<dyn Disk>) {
    let memory = Arc::new(MemDisk::from_bytes(bytes));
    (memory.clone(), memory)
}

fn read(bytes: Vec<u8>) -> crate::Result<Option<PartitionTable>> {
    PartitionTable::read(&disk(bytes).1)
}

const GPT: &str = "label: gpt\nlabel-id: 11111111-2222-3333-4444-555555555555\n\
    1: size=1MiB, type=21686148-6449-6E6F-744E-656564454649, name=\"bios boot\"\n\
    2: size=2MiB, type=U, name=\"ESP ü\"\n\
    4: size=1MiB, type=L, attrs=\"LegacyBIOSBootable,GUID:60\"\n";

const MBR: &str = "label: dos\nlabel-id: 0xcafe1234\n\
    1: start=2048, size=2048, type=83, bootable\n\
    2: start=4096, size=10240, type=5\n\
    5: start=6144, size=1000, type=83\n\
    6: start=9216, size=1000, type=82\n\
    7: start=12288, size=1000, type=8e\n";

/// Whether `sfdisk` sees the same table.
fn assert_sfdisk_agrees(path: &Path, table: &PartitionTable) {
    let text = run("sfdisk", ["--json".as_ref(), path.as_os_str()]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let judged = &json["partitiontable"];
    let label = if table.scheme() == Scheme::Gpt { "gpt" } else { "dos" };
    assert_eq!(judged["label"], label);
    let id = judged["id"].as_str().unwrap().to_lowercase();
    assert_eq!(id.trim_start_matches("0x"), table.id().unwrap());
    assert_eq!(judged["sectorsize"], 512);
    let empty = Vec::new();
    let partitions = judged["partitions"].as_array().unwrap_or(&empty);
    assert_eq!(partitions.len(), table.partitions().len());
    for (judged, ours) in partitions.iter().zip(table.partitions()) {
        assert_eq!(judged["node"], format!("{}{}", path.display(), ours.number));
        assert_eq!(judged["start"].as_u64().unwrap() * 512, ours.start);
        assert_eq!(judged["size"].as_u64().unwrap() * 512, ours.len);
        assert_eq!(judged["type"].as_str().unwrap().to_lowercase(), ours.partition_type.to_string());
        assert_eq!(judged["name"].as_str().unwrap_or_default(), ours.name);
        if let Some(uuid) = judged["uuid"].as_str() {
            assert_eq!(uuid.to_lowercase(), ours.id.clone().unwrap());
        }
        if table.scheme() == Scheme::Mbr {
            assert_eq!(judged["bootable"].as_bool().unwrap_or_default(), ours.bootable);
        }
    }
}

fn assert_sgdisk_finds_no_fault(path: &Path) {
    let text = run("sgdisk", ["-v".as_ref(), path.as_os_str()]);
    assert!(text.contains("No problems found"), "{text}");
}

#[test]
fn a_gpt_of_sfdisk_reads_as_sfdisk_says() {
    need!("sfdisk");
    let image = Image::sfdisk(16 * MIB, GPT);
    let table = PartitionTable::read(&image.load().1).unwrap().unwrap();
    assert_sfdisk_agrees(&image.path, &table);
    assert_eq!(table.damage(), []);
    assert_eq!(table.partitions()[0].partition_type, PartitionType::BIOS_BOOT);
    assert!(table.partitions()[1].partition_type.is_efi_system());
    assert_eq!(table.partitions()[1].name, "ESP ü");
    assert_eq!(table.get(4).unwrap().flags, 1 << 60 | 4);
    assert!(table.get(4).unwrap().bootable && !table.get(2).unwrap().bootable);
    assert_eq!(table.partition(4).unwrap().len(), MIB);
    assert_eq!(table.partition(3).err().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn a_gpt_of_sgdisk_with_many_entries_reads_as_sfdisk_says() {
    need!("sgdisk", "sfdisk");
    let image = Image::new(32 * MIB);
    let args = ["-S", "256", "-n", "200:0:+1M", "-n", "1:0:+1M", "-c", "1:root"];
    run("sgdisk", args.iter().map(AsRef::as_ref).chain([image.path.as_os_str()]));
    let table = PartitionTable::read(&image.load().1).unwrap().unwrap();
    assert_sfdisk_agrees(&image.path, &table);
    assert_eq!(table.partitions().iter().map(|partition| partition.number).collect::<Vec<_>>(), [1, 200]);
}

#[test]
fn a_gpt_with_sectors_of_4096_bytes_is_found() {
    need!("fdisk");
    let image = Image::new(16 * MIB).feed("fdisk", &["-b", "4096"], "g\nn\n1\n\n+1M\nn\n2\n\n\nw\n");
    let (memory, disk) = image.load();
    let mut table = PartitionTable::read(&disk).unwrap().unwrap();
    assert_eq!((table.sector_size(), table.partitions().len()), (4096, 2));
    assert_eq!(table.partitions()[0].len, MIB);
    assert_eq!(table.damage(), []);
    table.repair().unwrap();
    assert!(memory.to_bytes() == image.bytes());
    disk.write_at(&[0; 512], 4096).unwrap();
    let mut again = PartitionTable::read(&disk).unwrap().unwrap();
    assert_eq!(again.partitions(), table.partitions());
    again.repair().unwrap();
    assert!(memory.to_bytes() == image.bytes());
}

#[test]
fn a_table_of_logical_partitions_reads_as_sfdisk_says() {
    need!("sfdisk");
    let image = Image::sfdisk(16 * MIB, MBR);
    let table = PartitionTable::read(&image.load().1).unwrap().unwrap();
    assert_sfdisk_agrees(&image.path, &table);
    assert_eq!(table.partitions()[0].id.as_deref(), Some("cafe1234-01"));
    assert_eq!(table.get(7).unwrap().partition_type, PartitionType::Mbr(0x8e));
    assert!(table.get(2).unwrap().partition_type.is_container());
}

#[test]
fn logical_partitions_out_of_order_and_deleted_read_as_sfdisk_says() {
    need!("sfdisk");
    let image = Image::sfdisk(16 * MIB, MBR);
    run("sfdisk", ["-q".as_ref(), "--delete".as_ref(), image.path.as_os_str(), "5".as_ref()]);
    let image = image.feed("sfdisk", &["-q", "--append"], "7: start=6144, size=500, type=83\n");
    let table = PartitionTable::read(&image.load().1).unwrap().unwrap();
    assert_sfdisk_agrees(&image.path, &table);
    assert_eq!(table.partitions().len(), 5);
}

#[test]
fn an_extended_partition_may_be_empty() {
    need!("sfdisk");
    let image = Image::sfdisk(16 * MIB, "label: dos\nstart=2048, size=2048, type=f\n");
    let table = PartitionTable::read(&image.load().1).unwrap().unwrap();
    assert_sfdisk_agrees(&image.path, &table);
}

#[test]
fn a_filesystem_on_the_whole_disk_is_no_table() {
    need!("mke2fs", "mkfs.vfat");
    assert!(read(vec![0; 1 << 20]).unwrap().is_none());
    assert!(read(vec![0; 100]).unwrap().is_none());
    for (program, args) in [("mke2fs", &["-q", "-F"][..]), ("mkfs.vfat", &[]), ("mkfs.vfat", &["-F", "32"])] {
        // A table that was there before must not show through.
        let image = Image::sfdisk(64 * MIB, GPT);
        output(program, args.iter().map(AsRef::as_ref).chain([image.path.as_os_str()]));
        assert!(PartitionTable::read(&image.load().1).unwrap().is_none(), "{program} {args:?}");
    }
}

#[test]
fn each_copy_stands_in_for_the_other_and_is_repaired() {
    need!("sfdisk", "sgdisk");
    let image = Image::sfdisk(16 * MIB, GPT);
    let original = image.bytes();
    let (end, entries) = (16 * MIB, 16384);
    for (what, at) in [
        ("primary header", 512 + 60),
        ("primary entries", 1024 + 40),
        ("backup header", end - 512 + 60),
        ("backup entries", end - 512 - entries + 40),
    ] {
        let (memory, disk) = disk(original.clone());
        disk.write_at(b"damage", at).unwrap();
        let mut table = PartitionTable::read(&disk).unwrap().unwrap();
        assert_eq!(table.partitions().len(), 3, "{what}");
        let [damage] = table.damage() else { panic!("{what}: {:?}", table.damage()) };
        assert_eq!(matches!(damage, Damage::Primary { .. }), what.starts_with("primary"), "{damage}");
        table.repair().unwrap();
        assert!(memory.to_bytes() == original, "{what}");
        image.store(&memory);
        assert_sgdisk_finds_no_fault(&image.path);
    }
}

#[test]
fn the_backup_moves_to_the_end_of_a_disk_that_has_grown() {
    need!("sfdisk", "sgdisk");
    let image = Image::sfdisk(16 * MIB, GPT);
    let mut grown = image.bytes();
    grown.resize(20 << 20, 0);
    let (memory, disk) = disk(grown);
    let mut table = PartitionTable::read(&disk).unwrap().unwrap();
    let expected = Damage::MisplacedBackup { at: 16 * MIB - 512, expected: 20 * MIB - 512 };
    assert_eq!(table.damage(), [expected, Damage::ProtectiveMbr]);
    table.repair().unwrap();
    assert_eq!(table.damage(), []);
    image.store(&memory);
    assert_sgdisk_finds_no_fault(&image.path);
    assert_sfdisk_agrees(&image.path, &table);
    let again = PartitionTable::read(&disk).unwrap().unwrap();
    assert_eq!((again.damage(), again.partitions()), (&[][..], table.partitions()));
}

#[test]
fn a_backup_that_says_something_else_is_stale() {
    need!("sfdisk", "sgdisk");
    let image = Image::sfdisk(16 * MIB, GPT);
    let old = image.bytes();
    run("sgdisk", ["-c".as_ref(), "1:renamed".as_ref(), image.path.as_os_str()]);
    let mut bytes = image.bytes();
    let tail = bytes.len() - 33 * 512;
    bytes[tail..].copy_from_slice(&old[tail..]);
    let (memory, disk) = disk(bytes);
    let mut table = PartitionTable::read(&disk).unwrap().unwrap();
    assert_eq!(table.damage(), [Damage::StaleBackup]);
    assert_eq!(table.partitions()[0].name, "renamed");
    table.repair().unwrap();
    assert!(memory.to_bytes() == image.bytes());
}

#[test]
fn a_repair_stopped_after_any_write_leaves_a_whole_copy() {
    need!("sfdisk");
    let mut bytes = Image::sfdisk(16 * MIB, GPT).bytes();
    bytes.resize(20 << 20, 0);
    let expected = read(bytes.clone()).unwrap().unwrap();
    for writes in 0.. {
        let memory = Arc::new(MemDisk::from_bytes(bytes.clone()));
        let failing = Arc::new(FailAfter { inner: memory.clone(), left: writes.into() });
        let disk: Arc<dyn Disk> = failing;
        let done = PartitionTable::read(&disk).unwrap().unwrap().repair().is_ok();
        let table = read(memory.to_bytes()).unwrap().unwrap();
        assert_eq!(table.partitions(), expected.partitions(), "after {writes} writes");
        if done {
            assert!(writes >= 4 && table.damage().is_empty());
            break;
        }
    }
}

/// Lets a number of writes through; half of the next one still happens.
struct FailAfter {
    inner: Arc<MemDisk>,
    left: std::sync::atomic::AtomicU32,
}

impl Disk for FailAfter {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        use std::sync::atomic::Ordering;
        if self.left.load(Ordering::Relaxed) == 0 {
            self.inner.write_at(&data[..data.len() / 2], offset)?;
            return Err(vmwright_disk::Error::read_only("the broken disk"));
        }
        self.left.fetch_sub(1, Ordering::Relaxed);
        self.inner.write_at(data, offset)
    }
    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.inner.zero_at(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.inner.discard(offset, len)
    }
    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        self.inner.set_len(len)
    }
    fn flush(&self) -> vmwright_disk::Result<()> {
        self.inner.flush()
    }
    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<vmwright_disk::Extent> {
        self.inner.extent_at(offset)
    }
}

#[test]
fn a_disk_cut_short_within_a_partition_is_corrupt() {
    need!("sfdisk");
    for script in [GPT, MBR] {
        let mut bytes = Image::sfdisk(16 * MIB, script).bytes();
        bytes.truncate(4 << 20);
        assert_eq!(read(bytes).err().unwrap().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn a_disk_cut_short_without_room_for_the_backup_is_not_repaired() {
    need!("sfdisk");
    let mut bytes = Image::sfdisk(16 * MIB, GPT).bytes();
    let end = read(bytes.clone()).unwrap().unwrap().partitions().last().unwrap().end();
    bytes.truncate(end as usize + 512);
    let (memory, disk) = disk(bytes.clone());
    let mut table = PartitionTable::read(&disk).unwrap().unwrap();
    assert_eq!(table.repair().unwrap_err().kind(), ErrorKind::NoSpace);
    assert!(memory.to_bytes() == bytes);
}

#[test]
fn overlapping_partitions_are_corrupt() {
    need!("sfdisk");
    let mut bytes = Image::sfdisk(16 * MIB, GPT).bytes();
    // The second partition begins where the first does.
    let first = bytes[1024 + 32..1024 + 40].to_vec();
    bytes[1024 + 128 + 32..1024 + 128 + 40].copy_from_slice(&first);
    oracle::fix_checksums(&mut bytes);
    let error = read(bytes).err().unwrap();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Corrupt, "partitions 1 and 2 overlap")
    );
    let mut bytes = Image::sfdisk(16 * MIB, MBR).bytes();
    bytes[446 + 16 + 8..446 + 16 + 12].copy_from_slice(&2049_u32.to_le_bytes());
    assert_eq!(read(bytes).err().unwrap().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_loop_of_logical_partitions_is_corrupt() {
    need!("sfdisk");
    let mut bytes = Image::sfdisk(16 * MIB, MBR).bytes();
    // The second entry of the first link leads on: back to itself, then out of the extended partition.
    let link = 4096 * 512 + 446 + 16;
    assert_eq!(bytes[link + 4], 5);
    for target in [0_u32, 10240, u32::MAX] {
        bytes[link + 8..link + 12].copy_from_slice(&target.to_le_bytes());
        assert_eq!(read(bytes.clone()).err().unwrap().kind(), ErrorKind::Corrupt, "{target}");
    }
}

#[test]
fn a_hybrid_table_is_read_as_a_gpt() {
    need!("sfdisk", "sgdisk");
    let image = Image::sfdisk(16 * MIB, GPT);
    run("sgdisk", ["-h".as_ref(), "2".as_ref(), image.path.as_os_str()]);
    let table = PartitionTable::read(&image.load().1).unwrap().unwrap();
    assert_eq!((table.scheme(), table.partitions().len()), (Scheme::Gpt, 3));
    assert!(table.is_hybrid());
    assert_eq!(table.damage(), []);
}

#[test]
fn without_its_mark_a_backup_alone_is_no_table() {
    need!("sfdisk");
    let mut bytes = Image::sfdisk(16 * MIB, GPT).bytes();
    bytes[..1024].fill(0);
    assert!(read(bytes.clone()).unwrap().is_none());
    bytes[446 + 4] = 0xee;
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let end = bytes.len() - 512;
    bytes[end] = 0;
    assert_eq!(read(bytes).err().unwrap().kind(), ErrorKind::Corrupt);
}

#[test]
fn entries_are_bounded_and_their_size_checked() {
    need!("sfdisk");
    let good = Image::sfdisk(16 * MIB, GPT).bytes();
    for (count, size, kind) in [
        (u32::MAX, 128_u32, ErrorKind::Unsupported),
        (128, u32::MAX, ErrorKind::Corrupt),
        (128, 127, ErrorKind::Corrupt),
        (128, 1 << 31, ErrorKind::Unsupported),
    ] {
        let mut bytes = good.clone();
        for header in [512, bytes.len() - 512] {
            bytes[header + 80..header + 84].copy_from_slice(&count.to_le_bytes());
            bytes[header + 84..header + 88].copy_from_slice(&size.to_le_bytes());
        }
        oracle::fix_checksums(&mut bytes);
        assert_eq!(read(bytes).err().unwrap().kind(), kind, "{count} entries of {size}");
    }
}

#[test]
fn the_small_disks_are_whole() {
    let table = read(small_gpt()).unwrap().unwrap();
    assert_eq!((table.damage(), table.partitions().len()), (&[][..], 3));
    assert_eq!(read(small_mbr()).unwrap().unwrap().partitions().len(), 4);
}

/// Where a change is likely to matter: the tables, with some bytes around them.
fn changes(len: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    let near = move |start: usize, size: usize| (start..(start + size).min(len), any::<u8>());
    let sectors = prop_oneof![
        near(440, 72),
        near(512, 92),
        near(1024, 400),
        near(len - 512, 92),
        near(16 * 512 + 446, 66)
    ];
    proptest::collection::vec(sectors, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 20_000 } else { 500 }))]

    #[test]
    fn the_laws_hold_for_changed_tables(
        gpt in any::<bool>(),
        changes in changes(256 * 512),
        fix in any::<bool>(),
        cut in proptest::option::of(0_usize..256 * 512 + 8192),
    ) {
        let mut bytes = if gpt { small_gpt() } else { small_mbr() };
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Some(len) = cut {
            bytes.resize(len, 0);
        }
        if fix {
            oracle::fix_checksums(&mut bytes);
        }
        oracle::check(bytes);
    }

    #[test]
    fn a_flipped_bit_is_noticed_and_the_other_copy_used(at in 0_usize..92 * 8, array in any::<bool>(), backup in any::<bool>()) {
        let mut bytes = small_gpt();
        let base = match (array, backup) {
            (false, false) => 512,
            (true, false) => 1024,
            (false, true) => 255 * 512,
            (true, true) => 251 * 512,
        };
        bytes[base + at / 8] ^= 1 << (at % 8);
        let table = read(bytes).unwrap().unwrap();
        prop_assert_eq!(table.damage().len(), 1);
        let expected = read(small_gpt()).unwrap().unwrap();
        prop_assert_eq!(table.partitions(), expected.partitions());
    }
}

fn two_partitions(scheme: Scheme) -> NewTable {
    let types = match scheme {
        Scheme::Gpt => [PartitionType::EFI_SYSTEM, PartitionType::LINUX_FILESYSTEM],
        Scheme::Mbr => [PartitionType::Mbr(0xef), PartitionType::Mbr(0x83)],
    };
    let partition = |number: u128, start, len| NewPartition {
        start,
        len,
        partition_type: types[number as usize],
        id: Uuid::from_u128(7 + number),
        name: format!("part {number}"),
        bootable: number == 1,
    };
    let partitions = vec![partition(0, MIB, 3 * MIB), partition(1, 4 * MIB, 5 * MIB + 512)];
    NewTable { scheme, id: Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0), partitions }
}

#[test]
fn new_tables_are_what_sfdisk_and_sgdisk_read() {
    need!("sfdisk", "sgdisk");
    for scheme in [Scheme::Gpt, Scheme::Mbr] {
        // Over whatever was there.
        let old = Image::sfdisk(
            12 * MIB,
            if scheme == Scheme::Gpt { "label: dos\n,4M\n,\n" } else { "label: gpt\n,4M\n" },
        );
        let (memory, disk) = old.load();
        let table = PartitionTable::create(&disk, &two_partitions(scheme)).unwrap();
        assert!(table.damage().is_empty());
        assert_eq!(table.scheme(), scheme);
        assert_eq!(table.partitions().len(), 2);
        old.store(&memory);
        let json = run("sfdisk", ["--json".as_ref(), old.path.as_os_str()]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let shown = &json["partitiontable"];
        for (number, (start, sectors)) in [(2048, 6144), (8192, 10241)].into_iter().enumerate() {
            assert_eq!(shown["partitions"][number]["start"], start);
            assert_eq!(shown["partitions"][number]["size"], sectors);
        }
        run("sfdisk", ["--verify".as_ref(), "-q".as_ref(), old.path.as_os_str()]);
        match scheme {
            Scheme::Gpt => {
                assert_eq!(shown["label"], "gpt");
                assert_eq!(shown["id"], "12345678-9ABC-DEF0-1234-56789ABCDEF0");
                assert_eq!(shown["partitions"][1]["name"], "part 1");
                let said = run("sgdisk", ["-v".as_ref(), old.path.as_os_str()]);
                assert!(said.contains("No problems found"), "{said}");
            }
            Scheme::Mbr => {
                assert_eq!(shown["label"], "dos");
                assert_eq!(shown["id"], "0x12345678");
                assert_eq!(shown["partitions"][1]["bootable"], true);
            }
        }
    }
}

#[test]
fn tables_that_do_not_fit_are_refused_and_change_nothing() {
    type Change = fn(&mut NewTable);
    let changes: [Change; 6] = [
        |table| table.partitions[1].len = 8 * MIB,
        |table| table.partitions[1].start = 2 * MIB,
        |table| table.partitions[0].start = 512,
        |table| table.partitions[0].len = 100,
        |table| table.partitions[0].partition_type = PartitionType::Mbr(0x83),
        |table| table.partitions[0].name = "n".repeat(37),
    ];
    for change in changes {
        let mut table = two_partitions(Scheme::Gpt);
        change(&mut table);
        let (memory, disk) = disk(vec![0; 12 << 20]);
        let error = PartitionTable::create(&disk, &table).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(memory.to_bytes().iter().all(|byte| *byte == 0));
    }
}
