//! The checksums of the journal: CRC-32C of versions 2 and 3, and the big-endian CRC-32 of version 1.

use crate::checksum::crc32c;

/// CRC-32 with the most significant bit first and no inversion, as the kernel's `crc32_be`.
pub(crate) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    bytes.iter().fold(seed, |crc, &byte| (crc << 8) ^ TABLE[usize::from((crc >> 24) as u8 ^ byte)])
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc << 1) ^ if crc & 0x8000_0000 != 0 { 0x04c1_1db7 } else { 0 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

/// The CRC-32C over a block whose own checksum, the four bytes at `at`, counts as zeros.
pub(crate) fn crc32c_without(seed: u32, block: &[u8], at: usize) -> u32 {
    crc32c(crc32c(crc32c(seed, &block[..at]), &[0; 4]), &block[at + 4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_1_checksum_matches_its_published_check_value() {
        // CRC-32/MPEG-2 in the catalogue.
        assert_eq!(crc32_be(!0, b"123456789"), 0x0376_e6e7);
    }

    #[test]
    fn a_checksum_does_not_depend_on_itself() {
        let (a, b) = ([1, 2, 3, 4, 9, 9, 9, 9, 5], [1, 2, 3, 4, 0, 0, 0, 0, 5]);
        assert_eq!(crc32c_without(7, &a, 4), crc32c(7, &b));
    }
}
