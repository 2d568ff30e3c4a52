//! The parent locator: where the parent of a differencing image is, and which content it must have.

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{Guid, LOCATOR_VHDX, RawLocator, RawLocatorEntry};
use crate::{Error, Result};

/// More bytes than this no locator needs: five paths of 32,767 characters.
const MAX_LEN: usize = 512 << 10;

/// What a parent locator says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Locator {
    /// The data write GUID that the parent must have.
    pub(super) linkage: Guid,
    /// Another that it may have instead.
    pub(super) linkage2: Option<Guid>,
    /// Where the text of the first stands in the file, and its length in bytes.
    pub(super) linkage_at: (u64, usize),
    relative: Option<String>,
    volume: Option<String>,
    absolute: Option<String>,
}

impl Locator {
    /// The locator of a new image.
    pub(super) fn new(linkage: Guid, name: &str) -> Self {
        let windows = name.replace('/', "\\");
        let (relative, absolute) = match name.starts_with('/') {
            true => (None, Some(windows)),
            false if name.starts_with("./") || name.starts_with("../") => (Some(windows), None),
            false => (Some(format!(".\\{windows}")), None),
        };
        Self { linkage, linkage2: None, linkage_at: (0, 0), relative, volume: None, absolute }
    }

    /// Reads a locator, which is at `at` in the file.
    pub(super) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let what = "the parent locator";
        let len = bytes.len() as u64;
        let Ok((head, rest)) = RawLocator::read_from_prefix(bytes) else {
            return Err(Error::corrupt(what, at, "a longer item", len));
        };
        if head.locator_type != LOCATOR_VHDX {
            return Err(Error::unsupported("a parent locator of another type than VHDX"));
        }
        if bytes.len() > MAX_LEN {
            return Err(Error::corrupt(what, at, "at most 512 KiB", len));
        }
        let mut found = Found::default();
        let mut linkage_at = (0, 0);
        let mut rest = rest;
        for index in 0..head.key_value_count.get() {
            let entry_at = at + 20 + u64::from(index) * 12;
            let Ok((entry, next)) = RawLocatorEntry::read_from_prefix(rest) else {
                return Err(Error::corrupt(what, entry_at, "as many entries as it counts", index.into()));
            };
            rest = next;
            let key = text(bytes, entry.key_offset.get(), entry.key_length.get(), entry_at)?;
            // Names are not read unless their key is known, so a locator of many entries costs little.
            if key == "parent_linkage" {
                linkage_at =
                    (at + u64::from(entry.value_offset.get()), usize::from(entry.value_length.get()));
            }
            if let Some(place) = found.place(&key) {
                let value = text(bytes, entry.value_offset.get(), entry.value_length.get(), entry_at + 4)?;
                if place.replace(value).is_some() {
                    return Err(Error::corrupt(what, entry_at, "each key once", index.into()));
                }
            }
        }
        let missing =
            || Error::corrupt(what, at, "the key parent_linkage", head.key_value_count.get().into());
        let linkage = guid(&found.linkage.ok_or_else(missing)?, at)?;
        let linkage2 = found.linkage2.map(|text| guid(&text, at)).transpose()?;
        let Found { relative, volume, absolute, .. } = found;
        Ok(Self { linkage, linkage2, linkage_at, relative, volume, absolute })
    }

    /// The bytes of the item.
    pub(super) fn encode(&self) -> Vec<u8> {
        let linkage = braced(self.linkage);
        let linkage2 = self.linkage2.map(braced);
        let pairs: Vec<(&str, String)> = [
            ("parent_linkage", Some(linkage)),
            ("parent_linkage2", linkage2),
            ("relative_path", self.relative.clone()),
            ("volume_path", self.volume.clone()),
            ("absolute_win32_path", self.absolute.clone()),
        ]
        .into_iter()
        .filter_map(|(key, value)| value.map(|value| (key, value)))
        .collect();
        let head = RawLocator {
            locator_type: LOCATOR_VHDX,
            reserved: 0.into(),
            key_value_count: (pairs.len() as u16).into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        let mut strings: Vec<u8> = Vec::new();
        let base = bytes.len() + pairs.len() * size_of::<RawLocatorEntry>();
        for (key, value) in pairs {
            let (key, value) = (utf16(key), utf16(&value));
            let key_offset = base + strings.len();
            let entry = RawLocatorEntry {
                key_offset: (key_offset as u32).into(),
                value_offset: ((key_offset + key.len()) as u32).into(),
                key_length: (key.len() as u16).into(),
                value_length: (value.len() as u16).into(),
            };
            bytes.extend(entry.as_bytes());
            strings.extend(key);
            strings.extend(value);
        }
        bytes.extend(strings);
        bytes
    }

    /// Where the parent may be, best first, with `/` between folders.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut bases = Vec::new();
        for (name, is_relative) in [(&self.relative, true), (&self.absolute, false), (&self.volume, false)] {
            let Some(name) = name else { continue };
            let name = name.trim_start_matches("\\\\?\\").replace('\\', "/");
            let name = match name.strip_prefix("./") {
                Some(rest) if is_relative => rest.to_owned(),
                _ => name,
            };
            if let Some(base) = name.rsplit('/').next().filter(|base| !base.is_empty()) {
                bases.push(base.to_owned());
            }
            names.push(name);
        }
        names.extend(bases);
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| !name.is_empty() && !name.contains('\0') && seen.insert(name.clone()));
        names
    }
}

#[derive(Default)]
struct Found {
    linkage: Option<String>,
    linkage2: Option<String>,
    relative: Option<String>,
    volume: Option<String>,
    absolute: Option<String>,
}

impl Found {
    fn place(&mut self, key: &str) -> Option<&mut Option<String>> {
        match key {
            "parent_linkage" => Some(&mut self.linkage),
            "parent_linkage2" => Some(&mut self.linkage2),
            "relative_path" => Some(&mut self.relative),
            "volume_path" => Some(&mut self.volume),
            "absolute_win32_path" => Some(&mut self.absolute),
            _ => None,
        }
    }
}

/// A GUID as locators have it.
fn braced(guid: Guid) -> String {
    format!("{{{}}}", uuid::Uuid::from_bytes_le(guid))
}

/// The text of a GUID as it stands in a locator.
pub(super) fn linkage_text(guid: Guid) -> Vec<u8> {
    utf16(&braced(guid))
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn text(bytes: &[u8], offset: u32, len: u16, at: u64) -> Result<String> {
    let (start, len) = (offset as usize, usize::from(len));
    let place = bytes.get(start..).and_then(|rest| rest.get(..len));
    let Some(place) = place.filter(|place| !place.is_empty() && place.len() % 2 == 0) else {
        let expected = "a text within the parent locator";
        return Err(Error::corrupt("a text of the parent locator", at, expected, offset.into()));
    };
    let units: Vec<u16> = place.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    String::from_utf16(&units)
        .map_err(|_| Error::corrupt("a text of the parent locator", at, "UTF-16", offset.into()))
}

fn guid(text: &str, at: u64) -> Result<Guid> {
    match uuid::Uuid::try_parse(text) {
        Ok(uuid) => Ok(uuid.to_bytes_le()),
        Err(_) => {
            let what = "the linkage of the parent locator";
            Err(Error::corrupt(what, at, "a GUID in braces", text.len() as u64))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locator_survives_being_written_and_read() {
        for name in ["base.vhdx", "../images/base.vhdx", "/srv/images/bäse.vhdx"] {
            let locator = Locator { linkage2: Some([9; 16]), ..Locator::new([7; 16], name) };
            let bytes = locator.encode();
            let read = Locator::parse(&bytes, 0).unwrap();
            let (at, len) = read.linkage_at;
            assert_eq!(bytes[at as usize..at as usize + len], linkage_text([7; 16]));
            assert_eq!(Locator { linkage_at: (0, 0), ..read }, locator);
            assert_eq!(locator.names()[0], name);
        }
    }

    #[test]
    fn names_that_hyper_v_writes_lead_beside_the_child_in_the_end() {
        let mut locator = Locator::new([1; 16], "x");
        locator.relative = Some("..\\disks\\base.vhdx".into());
        locator.absolute = Some("\\\\?\\C:\\vm\\disks\\base.vhdx".into());
        locator.volume = Some("\\\\?\\Volume{26a21bda}\\vm\\disks\\base.vhdx".into());
        let names = [
            "../disks/base.vhdx",
            "C:/vm/disks/base.vhdx",
            "Volume{26a21bda}/vm/disks/base.vhdx",
            "base.vhdx",
        ];
        assert_eq!(locator.names(), names);
    }

    #[test]
    fn texts_outside_of_the_locator_are_corrupt() {
        let good = Locator::new([1; 16], "base.vhdx").encode();
        for (at, value) in [(20, 0xffff_fff0u32), (24, 0x7fff_ffff), (28, 0x0000_ffff), (28, 0x0003_0003)] {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let error = Locator::parse(&bytes, 0).unwrap_err();
            assert_eq!(error.kind(), vmwright_disk::ErrorKind::Corrupt, "{at}");
        }
        for len in 0..good.len() {
            assert!(Locator::parse(&good[..len], 0).is_err(), "{len}");
        }
    }
}
