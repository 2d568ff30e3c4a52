//! Names in directories that fold their case (feature `casefold`): which of them are the same.
//!
//! A name is folded to what both its spellings have in common: its characters decomposed canonically, their case
//! folded in full, those that are ignorable left out, combining marks put in order. All of that by Unicode 12.1,
//! the only version that volumes name; characters that it had not assigned stand for themselves. Hashes are made
//! of folded names.

use caseless::Caseless;
use unicode_normalization::char::{canonical_combining_class, decompose_canonical};

mod assigned;

/// `s_encoding` of the only encoding there is: UTF-8 as of Unicode 12.1.
pub(crate) const UTF8_12_1: u16 = 1;

/// The bit of `s_encoding_flags` that refuses names which are not UTF-8.
pub(crate) const STRICT: u16 = 1;

/// Characters that are left out: `Default_Ignorable_Code_Point` of Unicode 12.1, unassigned ones among them.
const IGNORABLE: [(u32, u32); 19] = [
    (0xad, 0xad),
    (0x34f, 0x34f),
    (0x61c, 0x61c),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180e),
    (0x200b, 0x200f),
    (0x202a, 0x202e),
    (0x2060, 0x206f),
    (0x3164, 0x3164),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfff8),
    (0x1bca0, 0x1bca3),
    (0x1d173, 0x1d17a),
    (0xe0000, 0xe00ff),
    (0xe0100, 0xe01ef),
    (0xe01f0, 0xe0fff),
];

/// A mapping of a mapping ends after so many rounds; two are the most that there are.
const ROUNDS: usize = 8;

/// Folds a name; `None` where it is not UTF-8, so that only the same bytes are the same name.
pub(crate) fn fold(name: &[u8]) -> Option<Vec<u8>> {
    if name.is_ascii() {
        return Some(name.to_ascii_lowercase());
    }
    let mut parts = Vec::new();
    for character in std::str::from_utf8(name).ok()?.chars() {
        map(character, &mut parts);
    }
    // Marks are ordered between characters that are none; one that is left out ends such a run too.
    for run in parts.split_mut(|part| part.class == 0) {
        run.sort_by_key(|part| part.class);
    }
    let folded: String = parts.into_iter().filter_map(|part| part.character).collect();
    Some(folded.into_bytes())
}

/// Whether a name can be kept in a folding directory of a volume that is strict.
pub(crate) fn is_valid(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok()
}

/// A character of a folded name, or where one was left out.
struct Part {
    character: Option<char>,
    /// Its canonical combining class.
    class: u8,
}

fn map(character: char, parts: &mut Vec<Part>) {
    let code = u32::from(character);
    if IGNORABLE.iter().any(|&(first, last)| (first..=last).contains(&code)) {
        return parts.push(Part { character: None, class: 0 });
    }
    if !is_assigned(code) {
        return parts.push(Part { character: Some(character), class: 0 });
    }
    let mut mapped = vec![character];
    for _ in 0..ROUNDS {
        let mut next = Vec::new();
        for folded in mapped.iter().copied().default_case_fold() {
            decompose_canonical(folded, |part| next.push(part));
        }
        if next == mapped {
            break;
        }
        mapped = next;
    }
    let class =
        |character| if is_assigned(u32::from(character)) { canonical_combining_class(character) } else { 0 };
    parts.extend(
        mapped.into_iter().map(|character| Part { character: Some(character), class: class(character) }),
    );
}

fn is_assigned(code: u32) -> bool {
    assigned::ASSIGNED.partition_point(|&turn| turn <= code) % 2 == 1
}

/// A name that is looked for in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    name: &'a [u8],
    /// Where the directory folds names and this one can be.
    folded: Option<Vec<u8>>,
}

impl<'a> Wanted<'a> {
    /// Prepares a name for a directory that folds names or does not.
    pub(crate) fn new(name: &'a [u8], folding: bool) -> Self {
        Self { name, folded: if folding { fold(name) } else { None } }
    }

    /// Whether an entry bears this name.
    pub(crate) fn is(&self, entry: &[u8]) -> bool {
        if entry == self.name {
            return true;
        }
        self.folded.as_ref().is_some_and(|folded| fold(entry).is_some_and(|entry| entry == *folded))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::hash::{HashConfig, HashVersion};
    use vmwright_judges::{need, run};

    fn same(a: &str, b: &str) -> bool {
        Wanted::new(a.as_bytes(), true).is(b.as_bytes())
    }

    #[test]
    fn spellings_that_unicode_calls_caseless_matches_are_the_same() {
        let pairs = [
            ("foo", "FOO"),
            ("Straße", "STRASSE"),
            ("ﬀ", "FF"),
            ("\u{e9}tude", "E\u{301}TUDE"),
            ("\u{1e9b}\u{323}", "\u{1e69}"),
            ("Ω", "ω"),
            ("Σίσυφος", "σίσυφοσ"),
            ("한글", "\u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}"),
            ("soft\u{ad}hyphen", "softhyphen"),
            ("a\u{301}\u{334}", "a\u{334}\u{301}"),
        ];
        for (a, b) in pairs {
            assert!(same(a, b) && same(b, a), "{a} {b}");
        }
        assert!(!same("i", "ı") && !same("foo", "bar") && !same("ﬁ", "f"));
        assert!(!same("a\u{301}\u{200d}\u{334}", "a\u{334}\u{301}"), "what is left out keeps marks apart");
    }

    #[test]
    fn what_is_not_utf8_is_the_same_as_itself_alone() {
        assert_eq!(fold(b"F\xff"), None);
        assert!(Wanted::new(b"F\xff", true).is(b"F\xff"));
        assert!(!Wanted::new(b"F\xff", true).is(b"f\xff"));
        assert!(!Wanted::new(b"F", true).is(b"F\xff"));
        assert!(!Wanted::new(b"F", false).is(b"f"));
        for bad in [&b"\xc0\xaf"[..], b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82"] {
            assert!(!is_valid(bad));
        }
    }

    #[test]
    fn characters_that_came_after_12_1_stand_for_themselves() {
        // A capital letter of 13.0, a combining mark of 14.0, a letter with marks of 16.0, and one of no version.
        for code in [0xa7c7, 0x1acb, 0x11383, 0x377ff] {
            let name = char::from_u32(code).unwrap().to_string();
            assert_eq!(fold(name.as_bytes()).unwrap(), name.as_bytes(), "{code:x}");
        }
        assert!(!is_assigned(0xa7c7) && is_assigned(0x32ff), "the era of 12.1 itself is known");
    }

    /// What debugfs says of the hashes of many folded names.
    fn told(names: &[String]) -> Vec<u32> {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        let line = |name: &String| format!("dx_hash -c -e utf8 -h half_md4 \"{name}\"\n");
        std::fs::write(&script, names.iter().map(line).collect::<String>()).unwrap();
        let told = run("debugfs", ["-f".as_ref(), script.as_os_str()]);
        let hashes = told.lines().filter(|line| line.starts_with("Hash of ")).map(|line| {
            let (_, hash) = line.rsplit_once(" is 0x").unwrap();
            u32::from_str_radix(hash.split(' ').next().unwrap(), 16).unwrap()
        });
        hashes.collect()
    }

    fn agree(names: &[String]) {
        let config = HashConfig { version: 1, unsigned: false, seed: [0; 4], folding: true };
        let told = told(names);
        assert_eq!(told.len(), names.len());
        let wrong = names
            .iter()
            .zip(told)
            .filter(|(name, told)| config.hash(HashVersion::HalfMd4, name.as_bytes()) != *told);
        let wrong: Vec<_> = wrong.map(|(name, _)| name.escape_unicode().to_string()).take(20).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    fn characters() -> impl Iterator<Item = char> {
        let all = (0x21..=0x0010_ffff_u32).filter_map(char::from_u32).filter(|c| !matches!(c, '"' | '\x7f'));
        let torture = std::env::var_os("VMWRIGHT_TORTURE").is_some();
        // Nothing was ever assigned between these planes; a few stand for all there.
        all.filter(move |c| torture || !matches!(u32::from(*c), 0x2_0000.. if u32::from(*c) % 61 != 0))
    }

    #[test]
    fn every_character_hashes_as_debugfs_says() {
        need!("debugfs");
        agree(&characters().map(String::from).collect::<Vec<_>>());
    }

    #[test]
    fn marks_are_ordered_as_debugfs_says() {
        need!("debugfs");
        let marks = characters().filter(|&c| {
            canonical_combining_class(c) != 0 || fold(c.to_string().as_bytes()) == Some(Vec::new())
        });
        let names = marks.flat_map(|c| {
            ['\u{334}', '\u{5b0}', '\u{f71}', '\u{327}', '\u{301}', '\u{345}']
                .into_iter()
                .flat_map(move |mark| [format!("a{c}{mark}B"), format!("é{mark}{c}\u{200d}{mark}")])
        });
        agree(&names.collect::<Vec<_>>());
    }
}
