//! Everything linked must be under a permissive licence.

use anyhow::{Result, ensure};

use crate::workspace::Metadata;

const ALLOWED: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that are refused whatever their manifest says: copyleft beneath, or known to corrupt volumes.
const BANNED: [&str; 4] = ["ext4-lwext4", "lwext4_rust", "nt-hive", "rustables"];

/// Checks every package that any target or feature can bring in.
pub(crate) fn check() -> Result<()> {
    let metadata = Metadata::load()?;
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let named = format!("{} {}", package.name, package.version);
        if BANNED.contains(&package.name.as_str()) {
            wrong.push(format!("{named} is banned"));
        }
        match &package.license {
            None => wrong.push(format!("{named} states no licence")),
            Some(licence) if !allows(licence) => wrong.push(format!("{named} is under {licence}")),
            Some(_) => {}
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Whether an SPDX expression can be met by allowed licences alone.
fn allows(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    if let Some(parts) = split_outside_parentheses(expression, " OR ") {
        return parts.iter().any(|part| allows(part));
    }
    if let Some(parts) = split_outside_parentheses(expression, " AND ") {
        return parts.iter().all(|part| allows(part));
    }
    match expression.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => allows(inner),
        None => ALLOWED.contains(&expression),
    }
}

/// Splits at a separator that stands outside all parentheses; nothing where it does not occur there.
fn split_outside_parentheses<'a>(expression: &'a str, separator: &str) -> Option<Vec<&'a str>> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, character) in expression.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && expression[at..].starts_with(separator) => {
                parts.push(&expression[start..at]);
                start = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(&expression[start..]);
    (parts.len() > 1).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::allows;

    #[test]
    fn one_allowed_choice_is_enough() {
        assert!(allows("GPL-2.0 OR MIT"));
        assert!(allows("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(allows("MIT/Apache-2.0"));
    }

    #[test]
    fn every_part_of_a_conjunction_must_be_allowed() {
        assert!(!allows("MIT AND GPL-2.0"));
        assert!(!allows("(MIT OR Apache-2.0) AND LGPL-2.1"));
    }
}
