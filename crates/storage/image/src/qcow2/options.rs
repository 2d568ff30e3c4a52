//! What can be chosen about a new image.

use super::layout::{
    COMPATIBLE_LAZY_REFCOUNTS, Compression, Header, INCOMPATIBLE_EXTENDED_L2, MAX_BACKING_NAME, MAX_L1_BYTES,
    Version,
};
use crate::create::{CreateOptions, bad_value, no_option, parse_bytes, parse_switch};
use crate::{Error, Format, LuksOptions, Result};

/// How a new qcow2 image is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Options {
    /// The unit of allocation: a power of two from 512 bytes to 2 MiB; 64 KiB by default.
    pub cluster_size: u32,
    /// The version; 1.1 by default.
    pub compat: Compat,
    /// The width of a reference count: a power of two from 1 to 64 bits; 16 by default.
    pub refcount_bits: u32,
    /// Whether other programs may write reference counts late, under the dirty flag.
    pub lazy_refcounts: bool,
    /// What is allocated at once.
    pub preallocation: Preallocation,
    /// How clusters are compressed, if they are.
    pub compression_type: Compression,
    /// Whether clusters are allocated in 32 parts, so that little is copied out of a backing file; needs clusters of
    /// at least 16 KiB.
    pub extended_l2: bool,
    /// The name of a file that holds the data, relative to the folder of the image; it is made, too.
    pub data_file: Option<String>,
    /// Whether the data file shows the disk without the image, as a raw image.
    pub data_file_raw: bool,
    /// How the content is encrypted: by LUKS version 1, with the defaults where there is a secret and nothing here.
    pub encrypt: Option<LuksOptions>,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            cluster_size: 65536,
            compat: Compat::V1_1,
            refcount_bits: 16,
            lazy_refcounts: false,
            preallocation: Preallocation::Off,
            compression_type: Compression::Deflate,
            extended_l2: false,
            data_file: None,
            data_file_raw: false,
            encrypt: None,
        }
    }
}

impl Qcow2Options {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[
        ("cluster_size", "512 to 2M"),
        ("compat", "0.10 or 1.1"),
        ("compression_type", "zlib or zstd"),
        ("data_file", "the name of a file that holds the data"),
        ("data_file_raw", "on or off"),
        ("encrypt.cipher-alg", "aes-128, aes-192 or aes-256"),
        ("encrypt.cipher-mode", "xts or cbc"),
        ("encrypt.format", "luks"),
        ("encrypt.hash-alg", "sha1, sha224, sha256, sha384 or sha512"),
        ("encrypt.iter-time", "how long one try of a passphrase takes, in milliseconds"),
        ("encrypt.ivgen-alg", "plain, plain64 or essiv"),
        ("encrypt.ivgen-hash-alg", "sha256"),
        ("extended_l2", "on or off"),
        ("lazy_refcounts", "on or off"),
        ("preallocation", "off, metadata, falloc or full"),
        ("refcount_bits", "1 to 64"),
    ];

    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "cluster_size" => {
                let bytes = parse_bytes("cluster_size", value)?;
                self.cluster_size =
                    u32::try_from(bytes).map_err(|_| bad_value("cluster_size", value, "512 to 2M"))?;
            }
            "refcount_bits" => {
                self.refcount_bits = value
                    .parse()
                    .map_err(|_| bad_value("refcount_bits", value, "1, 2, 4, 8, 16, 32 or 64"))?;
            }
            "compat" => {
                self.compat = match value {
                    "0.10" | "v2" => Compat::V0_10,
                    "1.1" | "v3" => Compat::V1_1,
                    _ => return Err(bad_value("compat", value, "0.10 or 1.1")),
                }
            }
            "compression_type" => {
                self.compression_type = match value {
                    "zlib" => Compression::Deflate,
                    "zstd" => Compression::Zstd,
                    _ => return Err(bad_value("compression_type", value, "zlib or zstd")),
                }
            }
            "data_file" => self.data_file = Some(value.to_owned()),
            "data_file_raw" => self.data_file_raw = parse_switch("data_file_raw", value)?,
            "encrypt.format" if value == "luks" => {
                self.encrypt.get_or_insert_default();
            }
            "encrypt.format" => return Err(bad_value("encrypt.format", value, "luks")),
            "encrypt.cipher-alg"
            | "encrypt.cipher-mode"
            | "encrypt.hash-alg"
            | "encrypt.iter-time"
            | "encrypt.ivgen-alg"
            | "encrypt.ivgen-hash-alg" => {
                let key = key.trim_start_matches("encrypt.");
                self.encrypt.get_or_insert_default().set(key, value)?;
            }
            "extended_l2" => self.extended_l2 = parse_switch("extended_l2", value)?,
            "lazy_refcounts" => self.lazy_refcounts = parse_switch("lazy_refcounts", value)?,
            "preallocation" => {
                self.preallocation = match value {
                    "off" => Preallocation::Off,
                    "metadata" => Preallocation::Metadata,
                    "falloc" => Preallocation::Falloc,
                    "full" => Preallocation::Full,
                    _ => return Err(bad_value("preallocation", value, "off, metadata, falloc or full")),
                }
            }
            _ => return Err(no_option(Format::Qcow2, key)),
        }
        Ok(())
    }

    /// The options that make another image like the one with this header, in one file.
    pub(super) fn of(header: &Header) -> Self {
        Self {
            cluster_size: 1 << header.cluster_bits,
            compat: if header.version == Version::V3 { Compat::V1_1 } else { Compat::V0_10 },
            refcount_bits: 1 << header.refcount_order,
            lazy_refcounts: header.compatible & COMPATIBLE_LAZY_REFCOUNTS != 0,
            compression_type: header.compression,
            extended_l2: header.has(INCOMPATIBLE_EXTENDED_L2),
            ..Self::default()
        }
    }

    /// How many bytes of the disk an L2 table maps.
    pub(super) fn l2_coverage(&self) -> u64 {
        let entry_size = if self.extended_l2 { 16 } else { 8 };
        u64::from(self.cluster_size) * u64::from(self.cluster_size / entry_size)
    }

    /// Refuses what no image can have, or none that QEMU opens.
    pub(super) fn check(&self, options: &CreateOptions, size: u64) -> Result<()> {
        let what = "the options of a new qcow2 image";
        let no = |why| Err(Error::invalid(what, why));
        let (cluster_size, bits) = (self.cluster_size, self.refcount_bits);
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            return no("the cluster size must be a power of two from 512 to 2 MiB");
        }
        if !bits.is_power_of_two() || bits > 64 {
            return no("refcount bits must be a power of two from 1 to 64");
        }
        if self.compat == Compat::V0_10 && (bits != 16 || self.lazy_refcounts) {
            return no("compat 0.10 has 16 refcount bits and no lazy refcounts");
        }
        if self.compat == Compat::V0_10 && self.needs_v3() {
            return no("compat 0.10 has no zstd compression, extended L2 entries or data file");
        }
        if self.extended_l2 && cluster_size < 16 << 10 {
            return no("extended L2 entries need clusters of at least 16 KiB");
        }
        if size > i64::MAX as u64 || size.div_ceil(self.l2_coverage()) > MAX_L1_BYTES / 8 {
            return no("the size needs larger clusters");
        }
        let names = [options.backing.as_ref().map(|backing| &backing.name), self.data_file.as_ref()];
        if names.into_iter().flatten().any(|name| name.is_empty() || name.len() > MAX_BACKING_NAME) {
            return no("the name of a backing file or a data file must have 1 to 1023 bytes");
        }
        if options.backing.is_some() && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return no("preallocated clusters would hide the backing file, except with extended L2 entries");
        }
        if self.data_file_raw && self.data_file.is_none() {
            return no("a raw data file needs a name");
        }
        let encrypted = self.encrypt.is_some() || options.secret.is_some();
        if encrypted && self.data_file.is_some() {
            return no("encrypted images have no data file");
        }
        if encrypted && self.preallocation != Preallocation::Off && self.compat == Compat::V0_10 {
            return no("encrypted clusters of compat 0.10 cannot be preallocated: they would not be zeros");
        }
        if self.data_file_raw && options.backing.is_some() {
            return no("a raw data file cannot show a backing file");
        }
        Ok(())
    }

    fn needs_v3(&self) -> bool {
        self.extended_l2 || self.data_file.is_some() || self.compression_type != Compression::Deflate
    }
}

/// The version of qcow2, by the first QEMU release that understood it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compat {
    /// Version 2: no zero clusters, 16-bit reference counts.
    V0_10,
    /// Version 3.
    V1_1,
}

/// What a new image allocates at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    Off,
    /// A place for every cluster, without writing the clusters.
    Metadata,
    /// A place for every cluster, with space of the host.
    Falloc,
    /// A place for every cluster, filled with zeros.
    Full,
}
