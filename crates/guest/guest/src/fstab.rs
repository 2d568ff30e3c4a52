use serde::{Deserialize, Serialize};

/// One line of `/etc/fstab`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FstabEntry {
    /// What is mounted, as written: a device, `UUID=…`, a remote path.
    pub source: String,
    /// Where, or `none` for swap.
    pub target: String,
    /// The type of the filesystem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The options.
    pub options: Vec<String>,
    /// Whether `dump` keeps it.
    pub dump: u32,
    /// When it is checked at boot; zero is never.
    pub pass: u32,
}

/// Reads an fstab; lines that make no sense are left out.
pub(crate) fn parse(text: &str) -> Vec<FstabEntry> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<FstabEntry> {
    let mut fields = line.split_ascii_whitespace().take_while(|field| !field.starts_with('#'));
    let (source, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
    let options = fields.next().unwrap_or("defaults");
    let mut number = || fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
    Some(FstabEntry {
        source: unescaped(source),
        target: unescaped(target),
        kind: kind.to_owned(),
        options: options.split(',').map(str::to_owned).collect(),
        dump: number(),
        pass: number(),
    })
}

/// Undoes the octal escapes that stand for blanks, as `\040`.
fn unescaped(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code =
            tail.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_their_defaults_and_escapes() {
        let entries = parse(
            "# comment\n\nUUID=a / ext4 errors=remount-ro,noatime 0 1 # root\n\
             /dev/sda2\tnone swap\n LABEL=my\\040disk /mnt/my\\040disk ext4 defaults 0 2\nbroken\n",
        );
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0].options, ["errors=remount-ro", "noatime"]);
        assert_eq!((entries[0].dump, entries[0].pass), (0, 1));
        assert_eq!((entries[1].kind.as_str(), entries[1].options[0].as_str()), ("swap", "defaults"));
        assert_eq!(
            (entries[2].source.as_str(), entries[2].target.as_str()),
            ("LABEL=my disk", "/mnt/my disk")
        );
    }
}
