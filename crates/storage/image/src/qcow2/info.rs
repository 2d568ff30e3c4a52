//! What is known about an image.

use vmwright_disk::Disk;

use super::layout::{
    AUTOCLEAR_RAW_DATA_FILE, COMPATIBLE_LAZY_REFCOUNTS, Compression, ENCRYPTION_LUKS, Header,
    INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY, INCOMPATIBLE_EXTENDED_L2, Version,
};
use super::{crypt, tables};
use crate::info::{EncryptInfo, FormatInfo, ImageInfo, Qcow2Info};
use crate::{Format, Result, allocated, luks};

/// Describes an image by its header and tables, also where its content cannot be read.
pub(crate) fn info(file: &dyn Disk, header: &Header) -> Result<ImageInfo> {
    let mut info = ImageInfo::new(Format::Qcow2, header.size, allocated(file)?);
    info.cluster_size = Some(header.cluster_size());
    info.dirty_flag = header.has(INCOMPATIBLE_DIRTY);
    info.encrypted = header.encryption != 0;
    info.backing_filename = header.backing.as_ref().map(|backing| backing.name.clone());
    info.backing_filename_format = header.backing.as_ref().and_then(|backing| backing.format.clone());
    let snapshots = tables::snapshots(file, header)?;
    info.snapshots = snapshots.into_iter().map(|snapshot| snapshot.info).collect();
    info.format_specific = Some(FormatInfo::Qcow2(specific(file, header)?));
    Ok(info)
}

fn specific(file: &dyn Disk, header: &Header) -> Result<Qcow2Info> {
    let v3 = header.version == Version::V3;
    let bitmaps = tables::bitmaps(file, header)?;
    Ok(Qcow2Info {
        compat: if v3 { "1.1" } else { "0.10" },
        compression_type: Some(match header.compression {
            Compression::Deflate => "zlib",
            Compression::Zstd => "zstd",
        }),
        lazy_refcounts: v3.then_some(header.compatible & COMPATIBLE_LAZY_REFCOUNTS != 0),
        refcount_bits: 1 << header.refcount_order,
        corrupt: v3.then_some(header.has(INCOMPATIBLE_CORRUPT)),
        extended_l2: v3.then_some(header.has(INCOMPATIBLE_EXTENDED_L2)),
        data_file: header.data_file.clone(),
        data_file_raw: header.data_file.as_ref().map(|_| header.autoclear & AUTOCLEAR_RAW_DATA_FILE != 0),
        encrypt: match header.encryption {
            0 => None,
            ENCRYPTION_LUKS => {
                Some(EncryptInfo::Luks(Box::new(luks::luks1(&crypt::describe(file, header)?))))
            }
            _ => Some(EncryptInfo::Aes {}),
        },
        bitmaps: bitmaps.into_iter().map(|bitmap| bitmap.info).collect(),
    })
}
