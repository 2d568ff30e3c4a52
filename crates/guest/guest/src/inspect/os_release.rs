use serde::{Deserialize, Serialize};

use super::{Reader, assignments};

/// What an operating system calls itself, by `os-release(5)` or, before that existed, by its own release file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OsRelease {
    /// The distribution in lower case: `debian`, `ubuntu`, `fedora` …; empty where unknown.
    pub id: String,
    /// The distributions that it derives from, nearest first.
    pub id_like: Vec<String>,
    /// Its name, without version.
    pub name: String,
    /// The version as its makers write it, such as `12 (bookworm)`.
    pub version: Option<String>,
    /// The version for machines, such as `12`.
    pub version_id: Option<String>,
    /// The code name of the version, such as `bookworm`.
    pub codename: Option<String>,
    /// Its name with version, for people.
    pub pretty_name: String,
    /// The edition, such as `server`.
    pub variant_id: Option<String>,
}

pub(super) fn read(reader: &mut Reader<'_>) -> OsRelease {
    let text = reader.text("/etc/os-release").or_else(|| reader.text("/usr/lib/os-release"));
    match text {
        Some(text) => parse(&text),
        None => legacy(reader).unwrap_or_default(),
    }
}

fn parse(text: &str) -> OsRelease {
    let mut os = OsRelease { name: "Linux".to_owned(), ..OsRelease::default() };
    for (name, value) in assignments(text) {
        match name {
            "ID" => os.id = value,
            "ID_LIKE" => os.id_like = value.split_whitespace().map(str::to_owned).collect(),
            "NAME" => os.name = value,
            "VERSION" => os.version = Some(value),
            "VERSION_ID" => os.version_id = Some(value),
            "VERSION_CODENAME" => os.codename = Some(value),
            "PRETTY_NAME" => os.pretty_name = value,
            "VARIANT_ID" => os.variant_id = Some(value),
            _ => {}
        }
    }
    if os.pretty_name.is_empty() {
        os.pretty_name =
            [Some(os.name.clone()), os.version.clone()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    }
    os
}

/// Systems from before os-release: a line such as `CentOS release 6.10 (Final)`, or Debian's bare version.
fn legacy(reader: &mut Reader<'_>) -> Option<OsRelease> {
    let of = |id: &str, name: &str, version: &str, pretty: &str| OsRelease {
        id: id.to_owned(),
        name: name.to_owned(),
        version_id: Some(version.to_owned()).filter(|version| !version.is_empty()),
        version: Some(version.to_owned()).filter(|version| !version.is_empty()),
        pretty_name: pretty.to_owned(),
        ..OsRelease::default()
    };
    if let Some(text) = reader.text("/etc/debian_version") {
        let version = text.trim();
        return Some(of("debian", "Debian GNU/Linux", version, &format!("Debian GNU/Linux {version}")));
    }
    let text = reader.text("/etc/redhat-release")?;
    let line = text.lines().next()?.trim();
    let (name, rest) = line.split_once(" release ")?;
    let id = match name.split_whitespace().next()? {
        "Red" => "rhel",
        "CentOS" => "centos",
        "Fedora" => "fedora",
        "Scientific" => "scientific",
        _ => "redhat",
    };
    Some(of(id, name, rest.split_whitespace().next().unwrap_or_default(), line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_optional_and_the_pretty_name_has_a_fallback() {
        let os = parse("NAME=\"Test OS\"\nID=test\nID_LIKE='a b'\nVERSION=\"1 \\\"one\\\"\"\n# ID=no\n");
        assert_eq!((os.id.as_str(), os.id_like.len()), ("test", 2));
        assert_eq!(os.pretty_name, "Test OS 1 \"one\"");
    }
}
