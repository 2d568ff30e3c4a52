//! Unpacks what kernels, modules and packages are packed with.

use std::io::{self, Read};

use crate::error::Reason;
use crate::{Error, Result};

/// How bytes are packed, told by their first ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Xz,
    Zstd,
    Lz4Legacy,
    Bzip2,
    Lzma,
    Lzo,
}

impl Packing {
    /// Recognises a packing by its magic number.
    pub(crate) fn detect(bytes: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Packing); 7] = [
            (b"\x1f\x8b\x08", Packing::Gzip),
            (b"\xfd7zXZ\0", Packing::Xz),
            (b"\x28\xb5\x2f\xfd", Packing::Zstd),
            (b"\x02\x21\x4c\x18", Packing::Lz4Legacy),
            (b"BZh", Packing::Bzip2),
            (b"\x5d\0\0", Packing::Lzma),
            (b"\x89LZO\0", Packing::Lzo),
        ];
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, packing)| *packing)
    }
}

/// Unpacks `bytes`, which `what` names in errors, into at most `limit` bytes.
pub(crate) fn unpack(bytes: &[u8], packing: Packing, what: &'static str, limit: usize) -> Result<Vec<u8>> {
    match packing {
        Packing::Lz4Legacy => unpack_lz4_legacy(bytes, what, limit),
        packing => read_bounded(reader(bytes, packing, what)?, what, limit),
    }
}

/// Unpacks `bytes` piece by piece.
pub(crate) fn reader<'a>(
    bytes: &'a [u8],
    packing: Packing,
    what: &'static str,
) -> Result<Box<dyn Read + 'a>> {
    match packing {
        Packing::Gzip => Ok(Box::new(flate2::read::GzDecoder::new(bytes))),
        Packing::Xz => Ok(Box::new(lzma_rust2::XzReader::new(bytes, false))),
        Packing::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(bytes);
            let decoder =
                decoder.map_err(|source| Reason::Unpack { what, source: io::Error::other(source) })?;
            Ok(Box::new(decoder))
        }
        Packing::Lz4Legacy => Err(unsupported(what, "LZ4 compression")),
        Packing::Bzip2 => Err(unsupported(what, "bzip2 compression")),
        Packing::Lzma => Err(unsupported(what, "bare LZMA compression")),
        Packing::Lzo => Err(unsupported(what, "LZO compression")),
    }
}

fn unsupported(what: &'static str, feature: &str) -> Error {
    Reason::Unsupported { what, feature: feature.to_owned() }.into()
}

fn read_bounded(reader: impl Read, what: &'static str, limit: usize) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let read = reader.take(limit as u64 + 1).read_to_end(&mut unpacked);
    read.map_err(|source| Reason::Unpack { what, source })?;
    match unpacked.len() > limit {
        true => Err(Reason::TooLarge { what, limit }.into()),
        false => Ok(unpacked),
    }
}

/// Unpacks the legacy LZ4 frame, which kernels are packed with: a magic number, then blocks of at most 8 MiB,
/// each behind its packed length. What is too short to be another block ends it: the kernel's build appends the
/// unpacked length there.
fn unpack_lz4_legacy(bytes: &[u8], what: &'static str, limit: usize) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut unpacked = Vec::new();
    let mut block = vec![0; BLOCK];
    let mut at = 4;
    while bytes.len().saturating_sub(at) > 4 {
        let length = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let start = at + 4;
        let packed = start.checked_add(length).and_then(|end| bytes.get(start..end));
        let packed = packed.ok_or_else(|| Error::corrupt(what, at, "an LZ4 block reaches past the end"))?;
        let count = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|_| Error::corrupt(what, start, "an LZ4 block does not unpack"))?;
        if unpacked.len() + count > limit {
            return Err(Reason::TooLarge { what, limit }.into());
        }
        unpacked.extend_from_slice(&block[..count]);
        at = start + length;
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_vfs::ErrorKind;

    #[test]
    fn a_bomb_stops_at_the_limit() {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&[0; 100_000]).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(unpack(&packed, Packing::Gzip, "it", 100_000).unwrap().len(), 100_000);
        assert_eq!(unpack(&packed, Packing::Gzip, "it", 99_999).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn legacy_lz4_ends_before_the_appended_length() {
        let block = lz4_flex::block::compress(b"hello hello hello hello hello");
        let mut packed = b"\x02\x21\x4c\x18".to_vec();
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(&block);
        packed.extend(29u32.to_le_bytes());
        let unpacked = unpack(&packed, Packing::Lz4Legacy, "it", 100).unwrap();
        assert_eq!(unpacked, b"hello hello hello hello hello");
        packed[4] = 0xff;
        let error = unpack(&packed, Packing::Lz4Legacy, "it", 100).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
