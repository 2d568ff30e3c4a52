//! What a volume holds, by the marks of its format: enough to list it, not to read it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmwright_disk::Disk;

/// What a volume holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The name of the format as `blkid` gives it, such as `ext4`, `swap` or `crypto_LUKS`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The label, where it has one.
    pub label: Option<String>,
    /// The identifier as `blkid` prints it, where it has one.
    pub uuid: Option<String>,
}

impl Content {
    pub(crate) fn new(kind: &str, label: &[u8], uuid: Option<String>) -> Self {
        let label = trimmed(label);
        Self { kind: kind.to_owned(), label: (!label.is_empty()).then_some(label), uuid }
    }
}

/// A label without what fills it up: zeros or spaces.
fn trimmed(label: &[u8]) -> String {
    let end = label.iter().position(|&byte| byte == 0).unwrap_or(label.len());
    String::from_utf8_lossy(&label[..end]).trim_end().to_owned()
}

fn hyphenated(bytes: &[u8]) -> Option<String> {
    Uuid::from_slice(bytes).ok().filter(|uuid| !uuid.is_nil()).map(|uuid| uuid.to_string())
}

/// How much of a volume's beginning the marks lie in, without those of btrfs and ISO 9660.
const HEAD: usize = 8192;

/// Recognises the content of a volume other than ext2, ext3 and ext4; `None` where nothing is known.
pub fn detect(disk: &dyn Disk) -> vmwright_disk::Result<Option<Content>> {
    let mut head = vec![0; HEAD];
    let len = disk.len().min(HEAD as u64) as usize;
    disk.read_at(&mut head[..len], 0)?;
    for known in [luks, xfs, lvm, squashfs, ntfs, exfat, fat, swap] {
        if let Some(content) = known(&head) {
            return Ok(Some(content));
        }
    }
    if let Some(content) = read(disk, 65536, 4096)?.as_deref().and_then(btrfs) {
        return Ok(Some(content));
    }
    Ok(read(disk, 32768, 2048)?.as_deref().and_then(iso9660))
}

fn read(disk: &dyn Disk, at: u64, len: usize) -> vmwright_disk::Result<Option<Vec<u8>>> {
    if disk.len() < at + len as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    disk.read_at(&mut bytes, at)?;
    Ok(Some(bytes))
}

/// LUKS1 and LUKS2 on-disk formats: magic, version, and a textual UUID at byte 168.
fn luks(head: &[u8]) -> Option<Content> {
    head.starts_with(b"LUKS\xba\xbe").then_some(())?;
    let label: &[u8] = if head[7] == 2 { &head[24..72] } else { b"" };
    Some(Content::new("crypto_LUKS", label, Some(trimmed(&head[168..208])).filter(|uuid| !uuid.is_empty())))
}

/// XFS superblock: `sb_magicnum`, `sb_uuid` at 32, `sb_fname` at 108.
fn xfs(head: &[u8]) -> Option<Content> {
    head.starts_with(b"XFSB").then(|| Content::new("xfs", &head[108..120], hyphenated(&head[32..48])))
}

/// The label of an LVM2 physical volume lies in one of the first four sectors; its identifier at 32.
fn lvm(head: &[u8]) -> Option<Content> {
    let mut sectors = head.chunks_exact(512).take(4);
    let label =
        sectors.find(|sector| sector.starts_with(b"LABELONE") && sector[24..].starts_with(b"LVM2 001"))?;
    let id = std::str::from_utf8(&label[32..64])
        .ok()
        .filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric()))?;
    // Groups of 6-4-4-4-4-4-6 characters, as LVM shows them.
    let mut uuid = String::new();
    for (index, character) in id.chars().enumerate() {
        if matches!(index, 6 | 10 | 14 | 18 | 22 | 26) {
            uuid.push('-');
        }
        uuid.push(character);
    }
    Some(Content::new("LVM2_member", b"", Some(uuid)))
}

/// Squashfs superblock: magic, and version 4 at byte 28.
fn squashfs(head: &[u8]) -> Option<Content> {
    (head.starts_with(b"hsqs") && head[28] == 4).then(|| Content::new("squashfs", b"", None))
}

/// NTFS boot sector: the serial number at byte 72.
fn ntfs(head: &[u8]) -> Option<Content> {
    head[3..].starts_with(b"NTFS    ").then(|| {
        let serial: String = head[72..80].iter().rev().map(|byte| format!("{byte:02X}")).collect();
        Content::new("ntfs", b"", Some(serial))
    })
}

/// exFAT boot sector: the serial number at byte 100.
fn exfat(head: &[u8]) -> Option<Content> {
    head[3..].starts_with(b"EXFAT   ").then(|| Content::new("exfat", b"", Some(serial(&head[100..104]))))
}

fn serial(bytes: &[u8]) -> String {
    format!("{:02X}{:02X}-{:02X}{:02X}", bytes[3], bytes[2], bytes[1], bytes[0])
}

/// FAT boot sector: the serial number and label lie before the name of the type, which differs by width.
fn fat(head: &[u8]) -> Option<Content> {
    if head[510..512] != [0x55, 0xaa] || !matches!(head[0], 0xeb | 0xe9) {
        return None;
    }
    let at = if head[82..].starts_with(b"FAT32   ") {
        67
    } else if head[54..].starts_with(b"FAT1") {
        39
    } else {
        return None;
    };
    let label = Some(&head[at + 4..at + 15]).filter(|label| **label != *b"NO NAME    ").unwrap_or_default();
    Some(Content::new("vfat", label, Some(serial(&head[at..at + 4]))))
}

/// Swap: the magic ends the first page, the UUID lies at 1036 and the label at 1052.
fn swap(head: &[u8]) -> Option<Content> {
    head[4086..]
        .starts_with(b"SWAPSPACE2")
        .then(|| Content::new("swap", &head[1052..1068], hyphenated(&head[1036..1052])))
}

/// btrfs superblock: the identifier at 32, the magic at 64, the label at 299.
fn btrfs(superblock: &[u8]) -> Option<Content> {
    superblock[64..]
        .starts_with(b"_BHRfS_M")
        .then(|| Content::new("btrfs", &superblock[299..555], hyphenated(&superblock[32..48])))
}

/// ISO 9660 primary volume descriptor: the label at 40, and the time of making, which stands in as UUID.
fn iso9660(descriptor: &[u8]) -> Option<Content> {
    descriptor[1..].starts_with(b"CD001").then_some(())?;
    let time = &descriptor[813..829];
    let uuid = time.iter().all(u8::is_ascii_digit).then(|| {
        let digits = String::from_utf8_lossy(time);
        let parts =
            [&digits[..4], &digits[4..6], &digits[6..8], &digits[8..10], &digits[10..12], &digits[12..14]];
        format!("{}-{}", parts.join("-"), &digits[14..16])
    });
    Some(Content::new("iso9660", &descriptor[40..72], uuid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::{HostFile, MemDisk};
    use vmwright_judges::{need, output, run, tool};

    /// Makes a volume with a tool and compares with what `blkid` says of it.
    fn assert_blkid_agrees(program: &str, args: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume.img");
        std::fs::File::create(&path).unwrap().set_len(320 << 20).unwrap();
        run(program, args.iter().map(AsRef::as_ref).chain([path.as_os_str()]));
        let text = run("blkid", ["-p".as_ref(), "-o".as_ref(), "export".as_ref(), path.as_os_str()]);
        let judged = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        let found = detect(&HostFile::open(&path, true).unwrap()).unwrap().unwrap();
        assert_eq!(Some(found.kind), judged("TYPE="), "{text}");
        assert_eq!(found.uuid, judged("UUID="), "{text}");
        assert_eq!(found.label, judged("LABEL=").or(judged("LABEL_FATBOOT=")), "{text}");
    }

    #[test]
    fn volumes_are_recognised_as_blkid_recognises_them() {
        need!("blkid");
        let recipes: [(&str, &[&str]); 6] = [
            ("mkfs.vfat", &["-F", "32", "-n", "CIDATA"]),
            ("mkfs.vfat", &["-F", "16"]),
            ("mkfs.xfs", &["-q", "-f", "-L", "data"]),
            ("mkfs.btrfs", &["-q", "-L", "pool"]),
            ("mkswap", &["-L", "swap"]),
            (
                "cryptsetup",
                &[
                    "-q",
                    "luksFormat",
                    "--label",
                    "secret",
                    "--pbkdf",
                    "pbkdf2",
                    "--pbkdf-force-iterations",
                    "1000",
                    "--key-file",
                    "/proc/self/exe",
                    "--keyfile-size",
                    "16",
                ],
            ),
        ];
        for (program, args) in recipes {
            if tool(program).is_some()
                && (program != "cryptsetup" || output(program, ["--version"]).status.success())
            {
                assert_blkid_agrees(program, args);
            }
        }
    }

    #[test]
    fn random_or_short_bytes_are_nothing_known() {
        for len in [0, 1, 511, 4096, 70_000] {
            assert_eq!(detect(&MemDisk::new(len)).unwrap(), None);
        }
    }
}
