use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name in bytes.
const MAX: usize = 63;

/// What a machine is called: letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
///
/// It becomes a file name and an argument of the monitor, so nothing else is let in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It has no bytes or too many.
    #[error("a name has 1 to {MAX} characters, not {len}")]
    Length {
        /// How many it has.
        len: usize,
    },
    /// It has a character that is not allowed there.
    #[error(
        "a name cannot have {character:?} at {position}: letters, digits, '-', '_', '.', first a letter or digit"
    )]
    Character {
        /// The character.
        character: char,
        /// Where, in bytes from 0.
        position: usize,
    },
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > MAX {
            return Err(NameError::Length { len: text.len() });
        }
        let wrong = |(position, character): &(usize, char)| {
            let inner = *position > 0 && matches!(character, '-' | '_' | '.');
            !character.is_ascii_alphanumeric() && !inner
        };
        match text.char_indices().find(wrong) {
            Some((position, character)) => Err(NameError::Character { character, position }),
            None => Ok(Self(text)),
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.to_owned().try_into()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
