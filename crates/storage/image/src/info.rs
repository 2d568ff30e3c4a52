use serde::Serialize;

use crate::Format;

/// What is known about one image without its backing files; serialises with the names of
/// `qemu-img info --output=json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ImageInfo {
    /// The format.
    pub format: Format,
    /// The size of the disk that a guest sees, in bytes.
    pub virtual_size: u64,
    /// The bytes that the image occupies on the host, holes left out.
    pub actual_size: u64,
    /// The unit of allocation in bytes, where the format has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// Whether the image was not closed properly and needs repair before it is written.
    pub dirty_flag: bool,
    /// Whether the content is encrypted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// The backing file as the image names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// The format of the backing file as the image names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// The internal snapshots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotInfo>,
    /// What only one format has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<FormatInfo>,
}

impl ImageInfo {
    pub(crate) fn new(format: Format, virtual_size: u64, actual_size: u64) -> Self {
        Self {
            format,
            virtual_size,
            actual_size,
            cluster_size: None,
            dirty_flag: false,
            encrypted: false,
            backing_filename: None,
            backing_filename_format: None,
            snapshots: Vec::new(),
            format_specific: None,
        }
    }
}

impl ImageInfo {
    /// How the image is encrypted, where that is by LUKS.
    pub fn luks(&self) -> Option<&LuksInfo> {
        match &self.format_specific {
            Some(FormatInfo::Luks(luks)) => Some(luks),
            Some(FormatInfo::Qcow2(Qcow2Info { encrypt: Some(EncryptInfo::Luks(luks)), .. })) => Some(luks),
            _ => None,
        }
    }
}

/// What only one format has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
#[non_exhaustive]
pub enum FormatInfo {
    /// Of qcow2.
    Qcow2(Qcow2Info),
    /// Of LUKS.
    Luks(LuksInfo),
    /// Of VHD.
    Vpc(VhdInfo),
    /// Of VDI.
    Vdi(VdiInfo),
    /// Of VMDK.
    Vmdk(VmdkInfo),
}

/// What only qcow2 has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Qcow2Info {
    /// The version as QEMU names it: `0.10` for version 2, `1.1` for version 3.
    pub compat: &'static str,
    /// `zlib` or `zstd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression_type: Option<&'static str>,
    /// Whether reference counts may be written late, under the dirty flag; `None` in version 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// The width of a reference count.
    pub refcount_bits: u32,
    /// Whether the image is marked as damaged; `None` in version 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<bool>,
    /// Whether clusters are allocated in 32 parts; `None` in version 2.
    #[serde(rename = "extended-l2", skip_serializing_if = "Option::is_none")]
    pub extended_l2: Option<bool>,
    /// The external data file as the image names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// Whether the external data file is a raw image of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file_raw: Option<bool>,
    /// How the content is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypt: Option<EncryptInfo>,
    /// The persistent dirty bitmaps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<BitmapInfo>,
}

/// How the content of a qcow2 image is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "format", rename_all = "lowercase")]
#[non_exhaustive]
pub enum EncryptInfo {
    /// The old way, with the passphrase as the key.
    Aes {},
    /// By LUKS, version 1.
    Luks(Box<LuksInfo>),
}

/// What only LUKS has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct LuksInfo {
    /// How the number of a sector goes into its encryption, such as `plain64`.
    pub ivgen_alg: String,
    /// The hash that is needed for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ivgen_hash_alg: Option<String>,
    /// The hash by which passphrases are stretched.
    pub hash_alg: String,
    /// The cipher with the length of its key in bits, such as `aes-256`.
    pub cipher_alg: String,
    /// How the blocks of a sector hang together, such as `xts`.
    pub cipher_mode: String,
    /// What identifies the disk.
    pub uuid: String,
    /// The key slots.
    pub slots: Vec<LuksSlotInfo>,
    /// Where the content begins, in bytes.
    pub payload_offset: u64,
    /// The iterations of the digest of the volume key.
    pub master_key_iters: u32,
    /// What only version 2 has.
    #[serde(flatten)]
    pub luks2: Option<Luks2Info>,
}

/// What only version 2 of LUKS has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Luks2Info {
    /// The version: 2.
    pub version: u8,
    /// The name that a person gave.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The size of an encrypted sector in bytes.
    pub sector_size: u64,
    /// What a program must know to open the disk, such as a re-encryption under way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<String>,
}

/// One key slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct LuksSlotInfo {
    /// Whether a passphrase opens it.
    pub active: bool,
    /// Its number, in version 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// How its passphrase is stretched, in version 2: `argon2id`, `argon2i` or `pbkdf2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kdf: Option<&'static str>,
    /// The memory in KiB that this takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// How many threads could share that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// The iterations that stretch its passphrase: passes over the memory for Argon2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iters: Option<u32>,
    /// Over how many stripes its key is spread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripes: Option<u32>,
    /// Where its key material begins, in bytes.
    pub key_offset: u64,
}

/// What only VHD has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct VhdInfo {
    /// `fixed`, `dynamic` or `differencing`.
    pub subformat: &'static str,
    /// The mark of the program that made the image.
    pub creator: String,
    /// What says the size of the disk for images of this program: `geometry` or `current-size`.
    pub size_by: &'static str,
    /// The unique id, by which a child knows its parent.
    pub unique_id: String,
    /// Whether the saved state of a machine belongs to the image.
    pub saved_state: bool,
    /// Whether the footer at the end is damaged or missing, so that its copy at the head stands in for it.
    pub footer_lost: bool,
}

/// What only VDI has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct VdiInfo {
    /// `dynamic` or `static`.
    pub subformat: &'static str,
    /// The id of the image.
    pub uuid: String,
    /// How many blocks the disk has.
    pub blocks: u64,
    /// How many of them have a place in the file.
    pub blocks_allocated: u64,
}

/// What only VMDK has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct VmdkInfo {
    /// The content id, which changes with the content; zero where an extent is described without its descriptor.
    pub cid: u32,
    /// The content id of the parent; `0xffffffff` for none.
    pub parent_cid: u32,
    /// The subformat.
    pub create_type: String,
    /// The extents, in the order of the disk.
    pub extents: Vec<VmdkExtentInfo>,
}

/// One extent of a VMDK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct VmdkExtentInfo {
    /// Whether it is compressed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub compressed: bool,
    /// Its length in bytes.
    pub virtual_size: u64,
    /// The file as the descriptor names it.
    pub filename: String,
    /// The length of a grain in bytes; only for sparse extents that are open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// The type as the descriptor writes it; empty for an image of one file.
    pub format: String,
}

/// One internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// The unique id.
    pub id: String,
    /// The name that a person gave.
    pub name: String,
    /// The size of the saved machine state in bytes, zero for none.
    pub vm_state_size: u64,
    /// When it was taken: seconds since 1970.
    pub date_sec: u32,
    /// When it was taken: nanoseconds within the second.
    pub date_nsec: u32,
    /// How long the guest had run: seconds.
    pub vm_clock_sec: u64,
    /// How long the guest had run: nanoseconds within the second.
    pub vm_clock_nsec: u32,
    /// How many instructions the guest had executed, where recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<u64>,
}

/// One persistent dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BitmapInfo {
    /// The name.
    pub name: String,
    /// How many bytes of the disk one bit stands for.
    pub granularity: u64,
    /// The flags `in-use` and `auto`, as far as set.
    pub flags: Vec<&'static str>,
}

/// What a check of an image found; serialises with the names of `qemu-img check --output=json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CheckReport {
    /// Where the last cluster in use ends in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_end_offset: Option<u64>,
    /// How many clusters the disk has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_clusters: Option<u64>,
    /// How many of them are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_clusters: Option<u64>,
    /// How many of these do not follow the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragmented_clusters: Option<u64>,
    /// How many of them are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed_clusters: Option<u64>,
    /// Tables that could not be looked at.
    pub check_errors: u64,
    /// Damages that are left: writing could destroy data.
    #[serde(skip_serializing_if = "is_zero")]
    pub corruptions: u64,
    /// Clusters that are left of which nothing knows: wasted space.
    #[serde(skip_serializing_if = "is_zero")]
    pub leaks: u64,
    /// Damages that were repaired.
    #[serde(skip_serializing_if = "is_zero")]
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    #[serde(skip_serializing_if = "is_zero")]
    pub leaks_fixed: u64,
    /// What was found and where, a line each; the first hundred.
    #[serde(skip)]
    pub findings: Vec<String>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl CheckReport {
    /// Whether nothing is wrong except that space may be wasted.
    pub fn is_safe(&self) -> bool {
        self.corruptions == 0 && self.check_errors == 0
    }

    /// Whether nothing is wrong at all.
    pub fn is_clean(&self) -> bool {
        self.is_safe() && self.leaks == 0
    }
}

/// What a check may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    #[default]
    Nothing,
    /// Give back the space of which nothing knows.
    Leaks,
    /// Everything that can be repaired.
    All,
}
