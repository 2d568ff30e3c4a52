//! Names of the parent: as Windows and macOS write them, and what they are here.

use vmwright_disk::Disk;

use super::layout::{Header, Locator};
use crate::{Error, Result};

/// The longest name that is read, in bytes.
const MAX_NAME: u32 = 64 << 10;

/// Where the parent may be, best first; with `/` between folders, relative or absolute.
pub(super) fn names(file: &dyn Disk, header: &Header) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: String| {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    };
    let locators: Vec<Locator> = header.locators().collect();
    let find = |code: &[u8; 4]| locators.iter().find(|locator| locator.code == *code);
    let mut last = Vec::new();
    for code in [b"W2ru", b"Wi2r", b"MacX", b"W2ku", b"Wi2k"] {
        let Some(locator) = find(code) else { continue };
        let text = read(file, locator)?;
        let name = match code {
            b"MacX" => from_url(&text),
            _ => from_windows(&text),
        };
        if let Some(base) = name.rsplit('/').next() {
            last.push(base.to_owned());
        }
        // A drive of Windows is nowhere here; only the file's own name may be.
        if !name.split('/').next().unwrap_or_default().contains(':') {
            add(name);
        }
    }
    let name = from_windows(&header.parent_name());
    last.push(name.rsplit('/').next().unwrap_or_default().to_owned());
    // Beside the image, if it is in none of these places.
    last.into_iter().filter(|name| !name.contains(':')).for_each(&mut add);
    if names.is_empty() {
        return Err(Error::corrupt("the names of the parent", 512, "at least one name", 0));
    }
    Ok(names)
}

fn read(file: &dyn Disk, locator: &Locator) -> Result<String> {
    let Locator { code, len, offset, .. } = *locator;
    if len > MAX_NAME {
        return Err(Error::corrupt("a name of the parent", offset, "at most 64 KiB", len.into()));
    }
    if offset.checked_add(len.into()).is_none_or(|end| end > file.len()) {
        return Err(Error::corrupt("a name of the parent", offset, "a name within the file", len.into()));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, offset)?;
    let text = match &code {
        b"W2ru" | b"W2ku" => {
            let units: Vec<u16> =
                bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
            String::from_utf16_lossy(&units)
        }
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    };
    // Some programs count the end mark, some do not write one.
    Ok(text.split('\0').next().unwrap_or_default().to_owned())
}

/// A path as Windows writes it.
fn from_windows(text: &str) -> String {
    text.replace('\\', "/")
}

/// The path in a `file:` URL.
fn from_url(text: &str) -> String {
    let path =
        text.strip_prefix("file://").map_or(text, |rest| rest.strip_prefix("localhost").unwrap_or(rest));
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        let escaped = (first == b'%').then(|| more.get(..2)).flatten();
        let digits = escaped.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The locators for a parent of this name, each with its bytes.
pub(super) fn for_name(name: &str) -> Result<Vec<([u8; 4], Vec<u8>)>> {
    if name.contains('\\') || name.contains('\0') {
        return Err(Error::invalid(
            "the name of the parent",
            "a VHD cannot name files with \\ in their names",
        ));
    }
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let windows = name.replace('/', "\\");
    if name.starts_with('/') {
        let escaped: String = name.bytes().map(escape).collect();
        return Ok(vec![(*b"MacX", format!("file://{escaped}").into_bytes()), (*b"W2ku", utf16(&windows))]);
    }
    let relative =
        if name.starts_with("./") || name.starts_with("../") { windows } else { format!(".\\{windows}") };
    Ok(vec![(*b"W2ru", utf16(&relative))])
}

fn escape(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
            (byte as char).to_string()
        }
        _ => format!("%{byte:02X}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::MemDisk;

    /// The names that an image with these locators and this name in its header gives.
    fn names_of(locators: &[([u8; 4], Vec<u8>)], name: &str) -> Vec<String> {
        let file = MemDisk::new(0);
        let mut header = Header::new(1536, 1, 2 << 20);
        header.set_parent([1; 16], 0, name);
        let mut placed = Vec::new();
        for (code, bytes) in locators {
            let offset = file.len();
            file.set_len(offset + bytes.len() as u64).unwrap();
            file.write_at(bytes, offset).unwrap();
            placed.push(Locator { code: *code, space: 512, len: bytes.len() as u32, offset });
        }
        header.set_locators(&placed);
        names(&file, &header).unwrap()
    }

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(names_of(&for_name("base.vhd").unwrap(), "base.vhd"), ["./base.vhd", "base.vhd"]);
        assert_eq!(names_of(&for_name("../a b/bäse.vhd").unwrap(), "x.vhd")[0], "../a b/bäse.vhd");
        assert_eq!(names_of(&for_name("/srv/a b/bä%se.vhd").unwrap(), "b")[0], "/srv/a b/bä%se.vhd");
        assert!(for_name("a\\b").is_err());
    }

    #[test]
    fn a_drive_of_windows_leaves_the_name_of_the_file() {
        let locators = [(*b"W2ku", utf16("C:\\disks\\base.vhd")), (*b"W2ru", utf16("..\\base.vhd\0"))];
        assert_eq!(names_of(&locators, "C:\\disks\\base.vhd"), ["../base.vhd", "base.vhd"]);
        assert_eq!(names_of(&[], "D:\\vm\\parent.vhd"), ["parent.vhd"]);
    }

    #[test]
    fn a_locator_past_the_end_is_corrupt() {
        let mut header = Header::new(1536, 1, 2 << 20);
        header.set_locators(&[Locator { code: *b"W2ru", space: 512, len: 20, offset: u64::MAX - 5 }]);
        let error = names(&MemDisk::new(100), &header).unwrap_err();
        assert_eq!(error.kind(), vmwright_disk::ErrorKind::Corrupt);
    }
}
