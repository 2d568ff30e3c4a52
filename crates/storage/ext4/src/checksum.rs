//! The two checksums of ext4, in the kernel's convention: the caller gives the running value, nothing is
//! inverted at the start or the end.

/// Continues a CRC-32C (Castagnoli) from `seed` over `bytes`, as the kernel's `crc32c` does.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// Continues a CRC-16 (ANSI, reflected, polynomial 0xa001) from `seed` over `bytes`.
pub(crate) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    let step = |crc: u16, _| if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 };
    bytes.iter().fold(seed, |crc, &byte| (0..8).fold(crc ^ u16::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_their_published_check_values() {
        // The catalogue's check values; CRC-32C inverts at both ends there.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
