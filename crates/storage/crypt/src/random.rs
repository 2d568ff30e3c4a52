use zeroize::Zeroizing;

use crate::Result;
use crate::error::Reason;

/// Fills a buffer with numbers that nobody can guess.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| Reason::NoRandomness(error).into())
}

/// An array that nobody can guess.
pub(crate) fn array<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// A secret that nobody can guess.
pub(crate) fn secret(len: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; len]);
    fill(&mut bytes)?;
    Ok(bytes)
}

/// A random UUID as text.
pub(crate) fn uuid() -> Result<String> {
    let mut bytes: [u8; 16] = array()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}
