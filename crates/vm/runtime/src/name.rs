use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The longest name, so that what is made of it fits wherever names are bounded.
const MAX_NAME: usize = 63;

/// The name of a VM: one path component, nothing to be quoted anywhere.
///
/// ```
/// use vmwright_runtime::VmName;
///
/// assert!("web-1".parse::<VmName>().is_ok());
/// assert!("../etc".parse::<VmName>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// Makes up a name that begins with `prefix` and that nobody else makes up.
    pub fn random(prefix: &str) -> Result<Self> {
        let mut bytes = [0; 5];
        crate::sys::random(&mut bytes)?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{prefix}-{hex}").parse()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Twelve characters that stand for the name where space is short.
    pub(crate) fn short(&self) -> String {
        format!("{:012x}", fnv1a(self.0.as_bytes()) & 0xFFFF_FFFF_FFFF)
    }
}

/// The 64-bit hash FNV-1a: the same in every version of this program, which std's hasher does not promise.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3))
}

impl FromStr for VmName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let bytes = name.as_bytes();
        match bytes {
            [first, ..] if !first.is_ascii_alphanumeric() => {
                Err(Error::bad_name(name, "it must begin with a letter or a digit"))
            }
            [] => Err(Error::bad_name(name, "it is empty")),
            _ if bytes.len() > MAX_NAME => Err(Error::bad_name(name, "it is longer than 63 characters")),
            _ if !bytes.iter().copied().all(plain) => {
                Err(Error::bad_name(name, "it may hold letters, digits, `-`, `_` and `.` only"))
            }
            _ => Ok(Self(name.to_owned())),
        }
    }
}

impl TryFrom<String> for VmName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_plain_path_component() {
        for good in ["a", "web-1", "9", "a.b_c", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-x", ".x", "a/b", "a b", "a\0b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_short_form_never_changes_between_versions() {
        assert_eq!(fnv1a(b""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!("a".parse::<VmName>().unwrap().short(), "dc4c8601ec8c");
    }
}
