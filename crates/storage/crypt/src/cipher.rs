//! Encryption of whole sectors.

use aes::cipher::generic_array::GenericArray;
use aes::cipher::inout::InOutBuf;
use aes::cipher::typenum::U16;
use aes::cipher::{BlockCipher, BlockDecrypt, BlockEncrypt, BlockSizeUser, KeyInit};
use aes::{Aes128, Aes192, Aes256};

use crate::{Error, Hash, Result};

type Block = GenericArray<u8, U16>;

/// The unit in which sectors are counted, whatever their size.
pub const SECTOR: u64 = 512;

/// How many sectors are treated together.
const BATCH: usize = 8;

/// How a sector is encrypted with AES; the number of a sector counts units of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// XTS (IEEE 1619); the tweak is the number of the sector, 64 bits wide.
    XtsPlain64,
    /// XTS; the tweak is the low 32 bits of the number of the sector.
    XtsPlain,
    /// CBC; the initial vector is the number of the sector encrypted with the SHA-256 of the key.
    CbcEssivSha256,
    /// CBC; the initial vector is the number of the sector, 64 bits wide.
    CbcPlain64,
    /// CBC; the initial vector is the low 32 bits of the number of the sector.
    CbcPlain,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 5] =
        [Self::XtsPlain64, Self::XtsPlain, Self::CbcEssivSha256, Self::CbcPlain64, Self::CbcPlain];

    /// The name as it stands in LUKS1 headers, such as `xts-plain64`.
    pub fn name(self) -> &'static str {
        match self {
            Self::XtsPlain64 => "xts-plain64",
            Self::XtsPlain => "xts-plain",
            Self::CbcEssivSha256 => "cbc-essiv:sha256",
            Self::CbcPlain64 => "cbc-plain64",
            Self::CbcPlain => "cbc-plain",
        }
    }

    /// Finds the mode of a cipher and a mode as LUKS1 names them: `aes` and `xts-plain64`.
    pub fn parse(cipher: &str, mode: &str) -> Result<Self> {
        if cipher != "aes" {
            return Err(Error::unknown("cipher", cipher));
        }
        let found = Self::ALL.into_iter().find(|known| known.name() == mode);
        found.ok_or_else(|| Error::unknown("cipher mode", mode))
    }

    /// The lengths in bytes that a key may have.
    pub fn key_sizes(self) -> &'static [usize] {
        match self {
            Self::XtsPlain64 | Self::XtsPlain => &[32, 64],
            Self::CbcEssivSha256 | Self::CbcPlain64 | Self::CbcPlain => &[16, 24, 32],
        }
    }

    /// The number of a sector as a block of bytes.
    fn number(self, sector: u64) -> [u8; 16] {
        let number = match self {
            Self::XtsPlain | Self::CbcPlain => sector & 0xffff_ffff,
            Self::XtsPlain64 | Self::CbcPlain64 | Self::CbcEssivSha256 => sector,
        };
        u128::from(number).to_le_bytes()
    }
}

/// A key, ready to encrypt sectors; its memory is overwritten when it is dropped.
pub struct Cipher {
    mode: Mode,
    sector_size: usize,
    keys: Box<Keys>,
}

enum Keys {
    Xts128 { data: Aes128, tweak: Aes128 },
    Xts256 { data: Aes256, tweak: Aes256 },
    Cbc128(Aes128, Option<Aes256>),
    Cbc192(Aes192, Option<Aes256>),
    Cbc256(Aes256, Option<Aes256>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// A block cipher of blocks of 16 bytes.
trait Aes: BlockCipher + BlockSizeUser<BlockSize = U16> + BlockEncrypt + BlockDecrypt {}

impl<C: BlockCipher + BlockSizeUser<BlockSize = U16> + BlockEncrypt + BlockDecrypt> Aes for C {}

fn key<C: KeyInit>(bytes: &[u8]) -> Result<C> {
    C::new_from_slice(bytes).map_err(|_| Error::invalid("the key", "its length does not fit the cipher"))
}

impl Cipher {
    /// Takes a key for sectors of `sector_size` bytes: 512, 1024, 2048 or 4096.
    pub fn new(mode: Mode, bytes: &[u8], sector_size: u32) -> Result<Self> {
        if !mode.key_sizes().contains(&bytes.len()) {
            return Err(Error::invalid("the key", "its length does not fit the cipher"));
        }
        if ![512, 1024, 2048, 4096].contains(&sector_size) {
            return Err(Error::invalid("the sector size", "it must be 512, 1024, 2048 or 4096"));
        }
        let essiv = || match mode {
            Mode::CbcEssivSha256 => key(&Hash::Sha256.digest(&[bytes])).map(Some),
            _ => Ok(None),
        };
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let keys = match (mode, bytes.len()) {
            (Mode::XtsPlain64 | Mode::XtsPlain, 32) => {
                Keys::Xts128 { data: key(first)?, tweak: key(second)? }
            }
            (Mode::XtsPlain64 | Mode::XtsPlain, _) => Keys::Xts256 { data: key(first)?, tweak: key(second)? },
            (_, 16) => Keys::Cbc128(key(bytes)?, essiv()?),
            (_, 24) => Keys::Cbc192(key(bytes)?, essiv()?),
            _ => Keys::Cbc256(key(bytes)?, essiv()?),
        };
        Ok(Self { mode, sector_size: sector_size as usize, keys: Box::new(keys) })
    }

    /// The size of a sector in bytes.
    pub fn sector_size(&self) -> u64 {
        self.sector_size as u64
    }

    /// Encrypts whole sectors in place, of which the first is number `sector` in units of 512 bytes.
    pub fn encrypt(&self, sector: u64, data: &mut [u8]) -> Result<()> {
        self.apply(sector, data, Direction::Encrypt)
    }

    /// Decrypts whole sectors in place, of which the first is number `sector` in units of 512 bytes.
    pub fn decrypt(&self, sector: u64, data: &mut [u8]) -> Result<()> {
        self.apply(sector, data, Direction::Decrypt)
    }

    fn apply(&self, sector: u64, data: &mut [u8], direction: Direction) -> Result<()> {
        if !data.len().is_multiple_of(self.sector_size) {
            return Err(Error::invalid("encrypted data", "its length must be whole sectors"));
        }
        let step = self.sector_size as u64 / SECTOR;
        for (index, batch) in data.chunks_mut(self.sector_size * BATCH).enumerate() {
            let first = sector.wrapping_add((index * BATCH) as u64 * step);
            let mut numbers = [Block::default(); BATCH];
            for (index, number) in numbers.iter_mut().enumerate() {
                *number = self.mode.number(first.wrapping_add(index as u64 * step)).into();
            }
            self.batch(&mut numbers, batch, direction);
        }
        Ok(())
    }

    fn batch(&self, numbers: &mut [Block; BATCH], batch: &mut [u8], direction: Direction) {
        let size = self.sector_size;
        match &*self.keys {
            Keys::Xts128 { data, tweak } => xts(data, tweak, numbers, batch, size, direction),
            Keys::Xts256 { data, tweak } => xts(data, tweak, numbers, batch, size, direction),
            Keys::Cbc128(data, essiv) => cbc(data, essiv.as_ref(), numbers, batch, size, direction),
            Keys::Cbc192(data, essiv) => cbc(data, essiv.as_ref(), numbers, batch, size, direction),
            Keys::Cbc256(data, essiv) => cbc(data, essiv.as_ref(), numbers, batch, size, direction),
        }
    }
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cipher")
            .field("mode", &self.mode)
            .field("sector_size", &self.sector_size)
            .finish_non_exhaustive()
    }
}

fn xts<C: Aes>(
    data: &C,
    tweak: &C,
    numbers: &mut [Block; BATCH],
    batch: &mut [u8],
    sector_size: usize,
    direction: Direction,
) {
    tweak.encrypt_blocks(numbers);
    for (sector, number) in batch.chunks_exact_mut(sector_size).zip(numbers) {
        let mut mask = u128::from_le_bytes((*number).into());
        // So many blocks that all of them are in registers or close by.
        for part in sector.chunks_exact_mut(512) {
            let mut masks = [0; 32];
            for each in &mut masks {
                *each = mask;
                mask = double(mask);
            }
            whiten(part, &masks);
            let (blocks, _) = InOutBuf::from(&mut *part).into_chunks::<U16>();
            match direction {
                Direction::Encrypt => data.encrypt_blocks_inout(blocks),
                Direction::Decrypt => data.decrypt_blocks_inout(blocks),
            }
            whiten(part, &masks);
        }
    }
}

/// Multiplies by x in the field that XTS counts in.
fn double(mask: u128) -> u128 {
    let carry = 0u128.wrapping_sub(mask >> 127) & 0x87;
    mask << 1 ^ carry
}

fn whiten(part: &mut [u8], masks: &[u128; 32]) {
    for (block, mask) in part.as_chunks_mut::<16>().0.iter_mut().zip(masks) {
        *block = (u128::from_le_bytes(*block) ^ mask).to_le_bytes();
    }
}

fn cbc<C: Aes>(
    data: &C,
    essiv: Option<&Aes256>,
    numbers: &mut [Block; BATCH],
    batch: &mut [u8],
    sector_size: usize,
    direction: Direction,
) {
    if let Some(essiv) = essiv {
        essiv.encrypt_blocks(numbers);
    }
    match direction {
        Direction::Encrypt => cbc_encrypt(data, numbers, batch, sector_size),
        Direction::Decrypt => {
            for (sector, number) in batch.chunks_exact_mut(sector_size).zip(numbers) {
                cbc_decrypt(data, number, sector);
            }
        }
    }
}

/// Encrypts sectors side by side, since within each a block needs the one before.
fn cbc_encrypt<C: Aes>(data: &C, chain: &mut [Block; BATCH], batch: &mut [u8], sector_size: usize) {
    let sectors = batch.len() / sector_size;
    for at in (0..sector_size).step_by(16) {
        for (index, link) in chain[..sectors].iter_mut().enumerate() {
            let place = index * sector_size + at;
            link.iter_mut().zip(&batch[place..place + 16]).for_each(|(link, byte)| *link ^= byte);
        }
        data.encrypt_blocks(&mut chain[..sectors]);
        for (index, link) in chain[..sectors].iter().enumerate() {
            let place = index * sector_size + at;
            batch[place..place + 16].copy_from_slice(link);
        }
    }
}

fn cbc_decrypt<C: Aes>(data: &C, number: &Block, sector: &mut [u8]) {
    let mut before: [u8; 16] = (*number).into();
    for part in sector.chunks_exact_mut(512) {
        let mut encrypted = [[0; 16]; 32];
        encrypted.as_flattened_mut().copy_from_slice(part);
        let (blocks, _) = InOutBuf::from(&mut *part).into_chunks::<U16>();
        data.decrypt_blocks_inout(blocks);
        for (block, next) in part.as_chunks_mut::<16>().0.iter_mut().zip(encrypted) {
            *block = (u128::from_le_bytes(*block) ^ u128::from_le_bytes(before)).to_le_bytes();
            before = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The keys of vectors 10 to 14, from the digits of e and pi.
    const KEY1: &str = "2718281828459045235360287471352662497757247093699959574966967627";
    const KEY2: &str = "3141592653589793238462643383279502884197169399375105820974944592";

    fn ieee(number: u64, first: &str, last: &str) {
        let cipher = Cipher::new(Mode::XtsPlain64, &hex(&format!("{KEY1}{KEY2}")), 512).unwrap();
        let plain: Vec<u8> = (0..512u32).map(|index| index as u8).collect();
        let mut data = plain.clone();
        cipher.encrypt(number, &mut data).unwrap();
        assert_eq!(data[..16], hex(first), "{number:#x}");
        assert_eq!(data[496..], hex(last), "{number:#x}");
        cipher.decrypt(number, &mut data).unwrap();
        assert_eq!(data, plain);
    }

    #[test]
    fn xts_with_256_bits_is_that_of_ieee_1619() {
        // Vector 10 of annex B.
        ieee(0xff, "1c3b3a102f770386e4836c99e370cf9b", "c4f36ffda9fcea70b9c6e693e148c151");
    }

    #[test]
    fn xts_with_128_bits_is_that_of_ieee_1619() {
        // Vector 4 of annex B: the digits of e and pi, data unit 0.
        let key = hex(&format!("{}{}", &KEY1[..32], &KEY2[..32]));
        let cipher = Cipher::new(Mode::XtsPlain64, &key, 512).unwrap();
        let mut data: Vec<u8> = (0..512u32).map(|index| index as u8).collect();
        cipher.encrypt(0, &mut data).unwrap();
        assert_eq!(data[..16], hex("27a7479befa1d476489f308cd4cfa6e2"));
    }

    /// Mode, length of the key, sector size, and the first digits of the SHA-256 of 19 encrypted sectors from
    /// 0xffff_fffc on, as Python's `cryptography` (OpenSSL) makes them.
    const BY_OPENSSL: &[(&str, usize, u32, &str)] = &[
        ("xts-plain64", 32, 512, "09d6bf217c728482"),
        ("xts-plain64", 32, 4096, "8477baeded00e991"),
        ("xts-plain64", 64, 512, "f9ed4ba54481dda0"),
        ("xts-plain64", 64, 4096, "eb91dbe53c268ef1"),
        ("xts-plain", 32, 512, "482eeee7846d5644"),
        ("xts-plain", 32, 4096, "b4ed965346eb389b"),
        ("xts-plain", 64, 512, "c0f651b77aae49ea"),
        ("xts-plain", 64, 4096, "ce1469d769825f7f"),
        ("cbc-essiv:sha256", 16, 512, "280ddce6a68fffa8"),
        ("cbc-essiv:sha256", 16, 4096, "1a3943d4c3d7cb4b"),
        ("cbc-essiv:sha256", 24, 512, "1a94019c8d8281df"),
        ("cbc-essiv:sha256", 24, 4096, "964623556ff0792e"),
        ("cbc-essiv:sha256", 32, 512, "c715918296a87de4"),
        ("cbc-essiv:sha256", 32, 4096, "2cde6a40afd7b22c"),
        ("cbc-plain64", 16, 512, "e6f829dd67dcbff3"),
        ("cbc-plain64", 16, 4096, "ab07e2d9f2b877ed"),
        ("cbc-plain64", 24, 512, "f9123c0afa47a948"),
        ("cbc-plain64", 24, 4096, "13a3a8ccf8b91045"),
        ("cbc-plain64", 32, 512, "b57f0e78cf215032"),
        ("cbc-plain64", 32, 4096, "94031752177c0169"),
        ("cbc-plain", 16, 512, "c5a064e86e57e663"),
        ("cbc-plain", 16, 4096, "8856fb777067efe5"),
        ("cbc-plain", 24, 512, "320612ffa52a6365"),
        ("cbc-plain", 24, 4096, "f376697419be818c"),
        ("cbc-plain", 32, 512, "79c9b9b88edb4412"),
        ("cbc-plain", 32, 4096, "38af5f698997e190"),
    ];

    #[test]
    fn every_mode_is_that_of_openssl_across_the_32_bit_border() {
        for &(mode, key_len, sector_size, expected) in BY_OPENSSL {
            let key: Vec<u8> = (0..key_len).map(|index| (index * 13 + 1) as u8).collect();
            let len = sector_size as usize * 19;
            let plain: Vec<u8> = (0..len).map(|index| (index * 7 + index / 256) as u8).collect();
            let mut data = plain.clone();
            let cipher = Cipher::new(Mode::parse("aes", mode).unwrap(), &key, sector_size).unwrap();
            cipher.encrypt(0xffff_fffc, &mut data).unwrap();
            assert_eq!(Hash::Sha256.digest(&[&data])[..8], hex(expected), "{mode} {key_len} {sector_size}");
            cipher.decrypt(0xffff_fffc, &mut data).unwrap();
            assert!(data == plain, "{mode} {key_len} {sector_size}");
        }
    }

    #[test]
    fn keys_and_sectors_of_wrong_sizes_are_refused() {
        for (mode, len) in [(Mode::XtsPlain64, 48), (Mode::XtsPlain, 0), (Mode::CbcPlain, 64)] {
            assert!(Cipher::new(mode, &vec![1; len], 512).is_err());
        }
        for size in [0, 256, 513, 8192] {
            assert!(Cipher::new(Mode::XtsPlain64, &[1; 64], size).is_err());
        }
        let cipher = Cipher::new(Mode::XtsPlain64, &[1; 64], 4096).unwrap();
        assert!(cipher.encrypt(0, &mut [0; 512]).is_err());
        assert!(!format!("{cipher:?}").contains("keys"));
    }
}
