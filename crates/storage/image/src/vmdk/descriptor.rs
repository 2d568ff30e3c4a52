//! The descriptor: a text that says which extents make up the disk and what lies beneath it.
//!
//! It is read as tolerantly as VMware's programs read it, and changed byte by byte where it must be, so that all that
//! is not understood stays as it is.

use std::ops::Range;

use super::layout::SECTOR;
use crate::error::Reason;
use crate::{Error, Result};

/// The longest descriptor.
pub(super) const MAX_LEN: u64 = 1 << 20;
/// The most extents of a disk: 64 TiB in parts of 2 GiB.
const MAX_EXTENTS: usize = 1 << 15;
/// The CID of "no parent".
pub(super) const NO_PARENT: u32 = u32::MAX;

/// What a descriptor says.
#[derive(Debug, Clone, Default)]
pub(super) struct Descriptor {
    /// The text as it stands in the file, without padding.
    pub(super) text: Vec<u8>,
    /// The CID, and where its digits stand in the text.
    pub(super) cid: Option<(u32, Range<usize>)>,
    /// The CID of the parent, and where its digits stand in the text.
    pub(super) parent_cid: Option<(u32, Range<usize>)>,
    pub(super) create_type: Option<String>,
    /// The name of the parent as it stands.
    pub(super) hint: Option<String>,
    pub(super) extents: Vec<ExtentLine>,
    /// Whether a file of changed blocks belongs to the image.
    pub(super) tracks_changes: bool,
}

/// What may be done to an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
    None,
}

/// How an extent is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Flat,
    Vmfs,
    Sparse,
    VmfsSparse,
    SeSparse,
    Zero,
    /// A disk of the host behind VMFS.
    Device,
}

impl Kind {
    /// The name in a descriptor.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Flat => "FLAT",
            Self::Vmfs => "VMFS",
            Self::Sparse => "SPARSE",
            Self::VmfsSparse => "VMFSSPARSE",
            Self::SeSparse => "SESPARSE",
            Self::Zero => "ZERO",
            Self::Device => "VMFSRDM",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let all = [Self::Flat, Self::Vmfs, Self::Sparse, Self::VmfsSparse, Self::SeSparse, Self::Zero];
        let devices = ["VMFSRDM", "VMFSRDMP", "VMFSRAW", "VMFSPASSTHROUGHRAWDEVICEMAP"];
        match all.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name)) {
            None if devices.iter().any(|device| device.eq_ignore_ascii_case(name)) => Some(Self::Device),
            found => found,
        }
    }
}

/// The line of one extent.
#[derive(Debug, Clone)]
pub(super) struct ExtentLine {
    pub(super) access: Access,
    pub(super) sectors: u64,
    /// Where the number of sectors stands in the text.
    pub(super) sectors_at: Range<usize>,
    pub(super) kind: Kind,
    /// The file, where there is one.
    pub(super) name: Option<String>,
    /// Where the extent begins in its file, in sectors.
    pub(super) offset: u64,
}

impl ExtentLine {
    /// Whether a file has to be opened for it.
    pub(super) fn has_file(&self) -> bool {
        self.access != Access::None && self.kind != Kind::Zero
    }

    /// The name for the host, with `/` between folders.
    pub(super) fn host_name(&self) -> String {
        let name = self.name.as_deref().unwrap_or_default();
        let name = if name.contains('/') { name.to_owned() } else { name.replace('\\', "/") };
        match name.split('/').next().unwrap_or_default() {
            // Otherwise the part before the colon would be taken for a protocol.
            first if first.contains(':') && !is_drive(first) => format!("./{name}"),
            _ => name,
        }
    }
}

/// Whether this begins an absolute name of Windows.
fn is_drive(first: &str) -> bool {
    first.len() == 2 && first.ends_with(':') && first.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Whether these are the first bytes of a descriptor.
pub(super) fn is_descriptor(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    for line in head.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        let Some(comment) = line.strip_prefix(b"#") else {
            if line.is_empty() {
                continue;
            }
            return false;
        };
        if comment.trim_ascii().eq_ignore_ascii_case(b"disk descriptorfile") {
            return true;
        }
    }
    false
}

impl Descriptor {
    /// Reads a text; what follows the first zero byte is padding.
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let len = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        let mut parsed = Self { text: text[..len].to_vec(), ..Self::default() };
        let mut encoding = None;
        let mut at = if text.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let mut extents = Vec::new();
        while at < len {
            let end = text[at..len].iter().position(|byte| *byte == b'\n').map_or(len, |found| at + found);
            let line = trim(text, at..end);
            if is_extent(&text[line.clone()]) {
                if extents.len() >= MAX_EXTENTS {
                    return Err(Error::unsupported("a VMDK of more than 32768 extents"));
                }
                extents.push(line);
            } else if text.get(line.start) != Some(&b'#') {
                parsed.key_line(text, line, &mut encoding)?;
            }
            at = end + 1;
        }
        for line in extents {
            // An extent of no sectors holds nothing.
            parsed
                .extents
                .extend(extent_line(text, line, encoding.as_deref())?.filter(|line| line.sectors > 0));
        }
        let total = parsed.extents.iter().try_fold(0u64, |sum, line| sum.checked_add(line.sectors));
        match total.filter(|sum| *sum <= i64::MAX as u64 / SECTOR) {
            Some(_) => Ok(parsed),
            None => Err(Error::corrupt("the sum of the extents", 0, "at most 2^63 bytes", u64::MAX)),
        }
    }

    /// Takes `key = value`; the first of each key counts.
    fn key_line(&mut self, text: &[u8], line: Range<usize>, encoding: &mut Option<String>) -> Result<()> {
        let Some(equals) = text[line.clone()].iter().position(|byte| *byte == b'=') else { return Ok(()) };
        let key = trim(text, line.start..line.start + equals);
        let mut value = trim(text, line.start + equals + 1..line.end);
        if value.len() >= 2 && text[value.start] == b'"' && text[value.end - 1] == b'"' {
            value = value.start + 1..value.end - 1;
        }
        let bytes = &text[value.clone()];
        match text[key].to_ascii_lowercase().as_slice() {
            b"version" => {
                let version = number(bytes, 10).unwrap_or(0);
                if !(1..=3).contains(&version) {
                    return Err(Reason::Version { what: "a VMDK descriptor", version }.into());
                }
            }
            b"encoding" => {
                encoding.get_or_insert_with(|| String::from_utf8_lossy(bytes).into_owned());
            }
            b"cid" if self.cid.is_none() => self.cid = Some((hex(bytes, value.start)?, value)),
            b"parentcid" if self.parent_cid.is_none() => {
                self.parent_cid = Some((hex(bytes, value.start)?, value));
            }
            b"createtype" => {
                self.create_type.get_or_insert_with(|| String::from_utf8_lossy(bytes).into_owned());
            }
            b"parentfilenamehint" if self.hint.is_none() && !bytes.is_empty() => {
                self.hint = Some(decode(bytes, encoding.as_deref())?);
            }
            b"changetrackpath" => self.tracks_changes |= !bytes.is_empty(),
            _ => {}
        }
        Ok(())
    }

    /// The lines of the disk database, keys in small letters.
    pub(super) fn database(&self) -> Vec<(String, String)> {
        let text = String::from_utf8_lossy(&self.text);
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let lines = lines
            .map(|(key, value)| (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned()));
        lines.filter(|(key, _)| key.starts_with("ddb.")).collect()
    }

    /// The CID, which every image has.
    pub(super) fn cid(&self) -> Option<u32> {
        self.cid.as_ref().map(|(cid, _)| *cid)
    }

    /// The CID of the parent.
    pub(super) fn parent_cid(&self) -> Option<u32> {
        self.parent_cid.as_ref().map(|(cid, _)| *cid)
    }

    /// Whether the image shows another where it holds nothing.
    pub(super) fn has_parent(&self) -> bool {
        self.hint.is_some() || self.parent_cid().is_some_and(|cid| cid != NO_PARENT)
    }

    /// Where the parent may be, best first.
    pub(super) fn parent_names(&self) -> Vec<String> {
        let Some(hint) = &self.hint else { return Vec::new() };
        // A name with both has been written where `\` is a letter like any other.
        let name = if hint.contains('/') { hint.clone() } else { hint.replace('\\', "/") };
        let base = name.rsplit('/').next().unwrap_or_default().to_owned();
        let mut names = vec![name];
        if !base.is_empty() && names[0] != base {
            names.push(base);
        }
        names
    }

    /// The bytes that change the CID to `cid`, and where in the text; as many as there were, so that a write of them
    /// leaves every other byte alone.
    pub(super) fn new_cid(&self, cid: u32) -> Option<(u32, usize, Vec<u8>)> {
        let (old, digits) = self.cid.as_ref()?;
        let width = digits.len().min(8);
        let mask = u32::MAX.checked_shr(32 - 4 * width as u32).unwrap_or(0);
        let mut cid = cid & mask;
        // 0xffffffff is "no parent", and 0xfffffffe is taken by VMware for "see the long one".
        while cid == *old || cid >= NO_PARENT - 1 {
            cid = cid.wrapping_add(1) & mask;
        }
        let text = format!("{cid:0width$x}", width = digits.len());
        Some((cid, digits.start, text.into_bytes()))
    }

    /// The text with another number of sectors in the line of an extent.
    pub(super) fn with_sectors(&self, index: usize, sectors: u64) -> Option<Vec<u8>> {
        let at = self.extents.get(index)?.sectors_at.clone();
        let mut text = self.text.clone();
        text.splice(at, sectors.to_string().into_bytes());
        Some(text)
    }

    /// The length of the whole disk in bytes, by the lines.
    pub(super) fn disk_len(&self) -> u64 {
        self.extents.iter().fold(0, |sum: u64, line| sum.saturating_add(line.sectors)).saturating_mul(SECTOR)
    }
}

fn trim(text: &[u8], range: Range<usize>) -> Range<usize> {
    let bytes = &text[range.clone()];
    let start =
        range.start + bytes.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(bytes.len());
    let end = range.end - bytes.iter().rev().take_while(|byte| byte.is_ascii_whitespace()).count();
    start..end.max(start)
}

fn number(bytes: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    u64::from_str_radix(text, radix).ok().filter(|_| !text.starts_with('+'))
}

fn hex(bytes: &[u8], at: usize) -> Result<u32> {
    let value = number(bytes, 16).and_then(|value| u32::try_from(value).ok());
    value.ok_or_else(|| Error::corrupt("a CID in the descriptor", at as u64, "up to 8 hexadecimal digits", 0))
}

/// Whether a line begins as that of an extent.
fn is_extent(line: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.next().and_then(access).is_some()
        && words.next().is_some_and(|word| word.first().is_some_and(u8::is_ascii_digit))
}

fn access(word: &[u8]) -> Option<Access> {
    match word.to_ascii_uppercase().as_slice() {
        b"RW" => Some(Access::ReadWrite),
        b"RDONLY" => Some(Access::ReadOnly),
        b"NOACCESS" => Some(Access::None),
        _ => None,
    }
}

/// Reads `RW 4192256 SPARSE "name" offset …`.
fn extent_line(text: &[u8], line: Range<usize>, encoding: Option<&str>) -> Result<Option<ExtentLine>> {
    let wrong = |expected| Error::corrupt("an extent in the descriptor", line.start as u64, expected, 0);
    let mut at = line.start;
    let mut word = || {
        let start = trim(text, at..line.end).start;
        let len = text[start..line.end].iter().take_while(|byte| !byte.is_ascii_whitespace()).count();
        at = start + len;
        start..at
    };
    let (access_at, sectors_at, kind_at) = (word(), word(), word());
    let Some(access) = access(&text[access_at]) else { return Ok(None) };
    let sectors = number(&text[sectors_at.clone()], 10).ok_or_else(|| wrong("a number of sectors"))?;
    let kind = String::from_utf8_lossy(&text[kind_at]);
    let kind = match Kind::parse(&kind) {
        Some(kind) => kind,
        // Nobody looks into it.
        None if access == Access::None => Kind::Zero,
        None => return Err(Error::unsupported("a VMDK extent of this type")),
    };
    let mut found = ExtentLine { access, sectors, sectors_at, kind, name: None, offset: 0 };
    if !found.has_file() {
        return Ok(Some(found));
    }
    let rest = &text[trim(text, at..line.end)];
    let quoted = rest.strip_prefix(b"\"").ok_or_else(|| wrong("the name of a file in quotes"))?;
    let close = quoted.iter().position(|byte| *byte == b'"').filter(|len| *len > 0);
    let close = close.ok_or_else(|| wrong("the name of a file in quotes"))?;
    found.name = Some(decode(&quoted[..close], encoding)?);
    let offset = quoted[close + 1..].split(u8::is_ascii_whitespace).find(|word| !word.is_empty());
    if let Some(offset) = offset {
        let offset = number(offset, 10).filter(|offset| *offset <= i64::MAX as u64 / SECTOR);
        found.offset = offset.ok_or_else(|| wrong("where the extent begins in its file"))?;
    }
    Ok(Some(found))
}

/// Makes a name of the host of a name in a descriptor.
fn decode(bytes: &[u8], encoding: Option<&str>) -> Result<String> {
    if let Ok(name) = std::str::from_utf8(bytes) {
        return Ok(name.to_owned());
    }
    let encoding = encoding.unwrap_or_default().to_ascii_lowercase();
    if !["windows-1252", "iso-8859-1", "latin1"].contains(&encoding.as_str()) {
        return Err(Error::unsupported("a name in the encoding of this VMDK"));
    }
    Ok(bytes.iter().map(|byte| windows_1252(*byte)).collect())
}

fn windows_1252(byte: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9f => HIGH[usize::from(byte) - 0x80],
        byte => char::from(byte),
    }
}

/// What a new descriptor says.
pub(super) struct New<'a> {
    pub(super) cid: u32,
    pub(super) parent_cid: u32,
    pub(super) create_type: &'a str,
    pub(super) hint: Option<&'a str>,
    /// The lines of the extents.
    pub(super) extents: &'a str,
    pub(super) hardware: &'a str,
    pub(super) tools: &'a str,
    pub(super) adapter: &'a str,
    /// The length of the disk in sectors.
    pub(super) sectors: u64,
}

impl New<'_> {
    /// The text. The CIDs follow one another, since QEMU replaces what is between them.
    pub(super) fn compose(&self) -> String {
        let heads = if self.adapter == "ide" { 16 } else { 255 };
        let cylinders = self.sectors / (63 * heads);
        let hint = self.hint.map(|hint| format!("parentFileNameHint=\"{hint}\"\n")).unwrap_or_default();
        let Self { cid, parent_cid, create_type, extents, hardware, tools, adapter, .. } = self;
        format!(
            "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID={cid:08x}\nparentCID={parent_cid:08x}\n\
             createType=\"{create_type}\"\n{hint}\n# Extent description\n{extents}\n# The Disk Data Base\n#DDB\n\n\
             ddb.virtualHWVersion = \"{hardware}\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"{adapter}\"\n\
             ddb.toolsVersion = \"{tools}\"\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::ErrorKind;

    const ODD: &[u8] =
        b"\r\n# comment\r\n# disk descriptorFILE\r\nVersion = 2\r\nencoding=\"windows-1252\"\r\n\
        cid= 0089E8f4 \r\nPARENTCID=\"12\"\r\ncreatetype = \"VMFSSPARSE\"\r\n\
        parentFileNameHint=\"C:\\machines\\b\xe4se.vmdk\"\r\nunknown.key = \"kept\"\r\n\
        rw 2048 flat \"a b.vmdk\" 63 uuid\r\nRDONLY\t4096   SPARSE \"c-s001.vmdk\"\r\nRW 8 ZERO\r\n\
        NOACCESS 16 ODDITY\r\nddb.x = \"=\"\r\n\0\0garbage CID=1";

    #[test]
    fn a_descriptor_is_read_as_tolerantly_as_vmware_reads_it() {
        let parsed = Descriptor::parse(ODD).unwrap();
        assert_eq!(parsed.cid(), Some(0x89e8f4));
        assert_eq!((parsed.parent_cid(), parsed.create_type.as_deref()), (Some(0x12), Some("VMFSSPARSE")));
        assert_eq!(parsed.parent_names(), ["C:/machines/bäse.vmdk", "bäse.vmdk"]);
        let kinds: Vec<_> =
            parsed.extents.iter().map(|line| (line.access, line.sectors, line.kind)).collect();
        let expected = [
            (Access::ReadWrite, 2048, Kind::Flat),
            (Access::ReadOnly, 4096, Kind::Sparse),
            (Access::ReadWrite, 8, Kind::Zero),
            (Access::None, 16, Kind::Zero),
        ];
        assert_eq!(kinds, expected);
        assert_eq!((parsed.extents[0].name.as_deref(), parsed.extents[0].offset), (Some("a b.vmdk"), 63));
        assert!(is_descriptor(ODD));
    }

    #[test]
    fn a_new_cid_changes_its_digits_and_nothing_else() {
        let parsed = Descriptor::parse(ODD).unwrap();
        let (cid, at, digits) = parsed.new_cid(0xffff_ffff).unwrap();
        let mut text = parsed.text.clone();
        text[at..at + digits.len()].copy_from_slice(&digits);
        let again = Descriptor::parse(&text).unwrap();
        assert_eq!((again.cid(), text.len()), (Some(cid), parsed.text.len()));
        assert!(cid < NO_PARENT - 1 && cid != 0x89e8f4);
        let short = Descriptor::parse(b"CID=7\n").unwrap();
        let (cid, _, digits) = short.new_cid(7).unwrap();
        assert_eq!((cid, digits.as_slice()), (8, b"8".as_slice()));
    }

    #[test]
    fn another_size_keeps_every_other_byte() {
        let parsed = Descriptor::parse(ODD).unwrap();
        let text = parsed.with_sectors(1, 1 << 30).unwrap();
        let again = Descriptor::parse(&text).unwrap();
        assert_eq!(again.extents[1].sectors, 1 << 30);
        let expected = String::from_utf8_lossy(&parsed.text).replace("4096", "1073741824");
        assert_eq!(String::from_utf8_lossy(&text), expected);
    }

    #[test]
    fn what_is_wrong_is_called_corrupt_and_what_is_unknown_unsupported() {
        let corrupt: [&[u8]; 5] = [
            b"RW 10 FLAT noquotes 0",
            b"RW 10 FLAT \"open 0",
            b"RW 99999999999999999999 FLAT \"a\" 0",
            b"CID=123456789\n",
            b"RW 9223372036854775807 ZERO\nRW 9223372036854775807 ZERO",
        ];
        for text in corrupt {
            let error = Descriptor::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", String::from_utf8_lossy(text));
        }
        for text in [b"version=4\n".as_slice(), b"RW 10 TAPE \"a\"", b"RW 10 FLAT \"\xff\""] {
            let error = Descriptor::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn other_texts_are_not_descriptors() {
        assert!(!is_descriptor(b"#!/bin/sh\n# Disk Descriptor\n"));
        assert!(!is_descriptor(b"x # Disk DescriptorFile"));
        assert!(!is_descriptor(b""));
    }

    #[test]
    fn a_name_with_a_colon_is_not_taken_for_a_protocol() {
        let parsed = Descriptor::parse(b"RW 1 FLAT \"a:b-flat.vmdk\" 0\nRW 1 FLAT \"x\\y.vmdk\" 0").unwrap();
        assert_eq!(parsed.extents[0].host_name(), "./a:b-flat.vmdk");
        assert_eq!(parsed.extents[1].host_name(), "x/y.vmdk");
    }
}
