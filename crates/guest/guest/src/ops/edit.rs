use regex::bytes::{Captures, Regex, RegexBuilder};
use vmwright_vfs::Root;

use crate::{Error, ErrorKind, Result};

/// The longest file that is edited; longer ones are hardly text.
const FILE_MAX: u64 = 256 << 20;

/// Replaces the content of a file by what `change` makes of it; answers whether that is something else.
///
/// The file keeps everything but content and times; where nothing changes nothing is written.
pub fn edit(root: &mut Root, path: &[u8], change: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<bool> {
    let old = root.read_file(path, FILE_MAX)?;
    let new = change(&old)?;
    let changed = new != old;
    if changed {
        root.write_file(path, &new)?;
    }
    Ok(changed)
}

/// Applies substitutions, one after the other, to every line of a file; answers whether anything changed.
pub fn substitute(root: &mut Root, path: &[u8], substitutions: &[Substitution]) -> Result<bool> {
    edit(root, path, |old| Ok(substitutions.iter().fold(old.to_vec(), |text, one| one.apply(&text))))
}

/// A substitution as `sed` writes it: `s/EXPRESSION/REPLACEMENT/FLAGS`.
///
/// Any character may stand for the slash. Expressions are those of the `regex` crate, line by line; in the
/// replacement `&` is the whole match, `\1` to `\9` are groups and `\n` is a new line. The flag `g` replaces
/// every match of a line, `i` ignores case.
#[derive(Debug, Clone)]
pub struct Substitution {
    expression: Regex,
    replacement: Vec<Part>,
    global: bool,
}

/// A piece of a replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Group(usize),
}

impl Substitution {
    /// Reads a substitution.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |detail| Error::plain(ErrorKind::InvalidInput, text, detail);
        let mut characters = text.strip_prefix('s').unwrap_or_default().chars();
        let delimiter =
            characters.next().filter(|&c| !c.is_alphanumeric() && c != '\\' && !c.is_whitespace());
        let delimiter = delimiter.ok_or_else(|| invalid("not of the form s/EXPRESSION/REPLACEMENT/FLAGS"))?;
        let fields = split(characters.as_str(), delimiter);
        let [expression, replacement, flags] = fields.as_slice() else {
            return Err(invalid("not of the form s/EXPRESSION/REPLACEMENT/FLAGS"));
        };
        if let Some(_unknown) = flags.chars().find(|flag| !matches!(flag, 'g' | 'i' | 'I')) {
            return Err(invalid("the only flags are g and i"));
        }
        let built = RegexBuilder::new(expression).case_insensitive(flags.contains(['i', 'I'])).build();
        let expression = built.map_err(Error::expression)?;
        let replacement = parts(replacement);
        let groups = expression.captures_len();
        if replacement.iter().any(|part| matches!(part, Part::Group(group) if *group >= groups)) {
            return Err(invalid("the replacement names a group that the expression does not have"));
        }
        Ok(Self { expression, replacement, global: flags.contains('g') })
    }

    /// Applies it to every line of a text; line ends stay as they are.
    pub fn apply(&self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let content = line.strip_suffix(b"\n").unwrap_or(line);
            let limit = if self.global { 0 } else { 1 };
            out.extend_from_slice(
                &self.expression.replacen(content, limit, |found: &Captures<'_>| self.expand(found)),
            );
            out.extend_from_slice(&line[content.len()..]);
        }
        out
    }

    fn expand(&self, found: &Captures<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        for part in &self.replacement {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Group(group) => {
                    out.extend_from_slice(found.get(*group).map_or(b"", |group| group.as_bytes()))
                }
            }
        }
        out
    }
}

/// Splits at delimiters; one behind a backslash is a plain character.
fn split(text: &str, delimiter: char) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let Some(field) = fields.last_mut() else { break };
        match character {
            '\\' => match characters.next() {
                Some(next) if next == delimiter => field.push(next),
                next => {
                    field.push('\\');
                    field.extend(next);
                }
            },
            _ if character == delimiter => fields.push(String::new()),
            _ => field.push(character),
        }
    }
    fields
}

fn parts(replacement: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut characters = replacement.chars();
    while let Some(character) = characters.next() {
        let group = match character {
            '&' => Some(0),
            '\\' => match characters.next() {
                Some(digit @ '0'..='9') => digit.to_digit(10),
                Some('n') => {
                    text.push('\n');
                    None
                }
                Some('t') => {
                    text.push('\t');
                    None
                }
                other => {
                    text.extend(other);
                    None
                }
            },
            _ => {
                text.push(character);
                None
            }
        };
        if let Some(group) = group {
            parts.push(Part::Text(std::mem::take(&mut text).into_bytes()));
            parts.push(Part::Group(group as usize));
        }
    }
    parts.push(Part::Text(text.into_bytes()));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(expression: &str, text: &str) -> String {
        String::from_utf8(Substitution::parse(expression).unwrap().apply(text.as_bytes())).unwrap()
    }

    #[test]
    fn substitutions_work_line_by_line_as_in_sed() {
        assert_eq!(apply("s/a/b/", "aa\naa\n"), "ba\nba\n");
        assert_eq!(apply("s/a/b/g", "aa\nca"), "bb\ncb");
        assert_eq!(apply("s|/dev/sda(\\d)|/dev/vda\\1|", "/dev/sda2 /\n"), "/dev/vda2 /\n");
        assert_eq!(apply("s/errors=/noatime,&/", "x errors=ro\n"), "x noatime,errors=ro\n");
        assert_eq!(apply("s/^#?(Port) .*$/\\1 22\\nX \\& \\//", "#Port 1\n"), "Port 22\nX & /\n");
        assert_eq!(apply("s,A,b,gi", "aA\r\n"), "bb\r\n");
        assert_eq!(apply("s/x//", ""), "");
    }

    #[test]
    fn bytes_that_are_not_utf8_survive() {
        let one = Substitution::parse("s/b/c/").unwrap();
        assert_eq!(one.apply(b"\xffb\xfe\n"), b"\xffc\xfe\n");
    }

    #[test]
    fn what_is_no_substitution_is_refused() {
        for text in ["", "s", "x/a/b/", "s/a/b", "s/a/b/c/d", "s/a/b/x", "s/(/b/", "s/a/\\1/", "saxbx"] {
            assert_eq!(Substitution::parse(text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
    }
}
