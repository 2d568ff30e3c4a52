//! Archives that are compressed, told by their first bytes.

use std::io::{self, Read};

use crate::{Error, Result};

/// The most memory that unpacking may take for a window.
const WINDOW: u32 = 128 << 20;

/// A reader with the bytes that were looked at put back before it.
type Whole<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// Unpacks gzip, zstd and xz; anything else is read as it is.
pub(super) fn unpacked<'a, R: Read + 'a>(mut reader: R) -> Result<Box<dyn Read + 'a>> {
    let mut head = Vec::with_capacity(6);
    reader.by_ref().take(6).read_to_end(&mut head).map_err(Error::read)?;
    let kind = head.clone();
    let whole: Whole<R> = io::Cursor::new(head).chain(reader);
    Ok(match kind.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::new(whole).map_err(Error::read)?;
            decoder.window_log_max(WINDOW.ilog2()).map_err(Error::read)?;
            Box::new(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(lzma_rust2::XzReader::new(whole, true)),
        [b'B', b'Z', b'h', ..] => {
            return Err(Error::unsupported(0, "bzip2 compression: unpack it first, as with bzcat"));
        }
        _ => Box::new(whole),
    })
}
