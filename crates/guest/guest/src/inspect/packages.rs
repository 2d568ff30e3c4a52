use serde::{Deserialize, Serialize};

use super::Reader;

/// The installed packages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Packages {
    /// Who manages them: `dpkg`, `apk`, `pacman` or `rpm`; none where nothing is recognised.
    pub manager: Option<String>,
    /// How the database is kept, where it cannot be read here: `sqlite`, `ndb` or `bdb` of rpm.
    pub unread_format: Option<String>,
    /// The packages in the order of their names.
    pub installed: Vec<Package>,
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// The name.
    pub name: String,
    /// The version as its manager writes it.
    pub version: String,
    /// The processor that it is for, as its manager names it.
    pub architecture: String,
}

const DPKG: &str = "/var/lib/dpkg/status";
const APK: &str = "/lib/apk/db/installed";
const PACMAN: &str = "/var/lib/pacman/local";

pub(super) fn read(reader: &mut Reader<'_>) -> Packages {
    let (manager, mut installed) = if let Some(text) = reader.text(DPKG) {
        ("dpkg", dpkg(&text))
    } else if let Some(text) = reader.text(APK) {
        ("apk", apk(&text))
    } else if reader.exists(PACMAN) {
        ("pacman", pacman(reader))
    } else if let Some(format) = rpm_format(reader) {
        let unread_format = Some(format.to_owned());
        return Packages { manager: Some("rpm".to_owned()), unread_format, installed: Vec::new() };
    } else {
        return Packages::default();
    };
    installed.sort_unstable_by(|a, b| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
    Packages { manager: Some(manager.to_owned()), unread_format: None, installed }
}

/// Paragraphs of `Field: value` lines; a package counts as installed by the third word of its status.
fn dpkg(text: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    let (mut name, mut version, mut architecture, mut installed) = ("", "", "", false);
    for line in text.lines().chain([""]) {
        if line.is_empty() {
            if installed && !name.is_empty() {
                packages.push(package(name, version, architecture));
            }
            (name, version, architecture, installed) = ("", "", "", false);
        } else if line.starts_with(' ') {
            // The rest of a field of many lines: skipped before anything is compared.
        } else if let Some(value) = line.strip_prefix("Package: ") {
            name = value;
        } else if let Some(value) = line.strip_prefix("Status: ") {
            installed = value.ends_with(" installed");
        } else if let Some(value) = line.strip_prefix("Architecture: ") {
            architecture = value;
        } else if let Some(value) = line.strip_prefix("Version: ") {
            version = value;
        }
    }
    packages
}

fn package(name: &str, version: &str, architecture: &str) -> Package {
    Package { name: name.to_owned(), version: version.to_owned(), architecture: architecture.to_owned() }
}

/// Paragraphs of `X:value` lines.
fn apk(text: &str) -> Vec<Package> {
    let paragraphs = text.split("\n\n").filter_map(|paragraph| {
        let field = |key: &str| paragraph.lines().find_map(|line| line.strip_prefix(key));
        Some(package(field("P:")?, field("V:")?, field("A:").unwrap_or_default()))
    });
    paragraphs.collect()
}

/// A directory for each package, with a file of `%FIELD%` headings, each followed by its lines.
fn pacman(reader: &mut Reader<'_>) -> Vec<Package> {
    let mut packages = Vec::new();
    for name in reader.names(PACMAN) {
        let Some(text) = reader.text(format!("{PACMAN}/{name}/desc")) else { continue };
        let field = |heading: &str| text.lines().skip_while(|line| *line != heading).nth(1);
        if let (Some(name), Some(version)) = (field("%NAME%"), field("%VERSION%")) {
            packages.push(package(name, version, field("%ARCH%").unwrap_or_default()));
        }
    }
    packages
}

fn rpm_format(reader: &Reader<'_>) -> Option<&'static str> {
    let files = [("rpmdb.sqlite", "sqlite"), ("Packages.db", "ndb"), ("Packages", "bdb")];
    let dirs = ["/usr/lib/sysimage/rpm", "/var/lib/rpm"];
    let mut found = dirs.iter().flat_map(|dir| files.map(|(file, format)| (format!("{dir}/{file}"), format)));
    found.find(|(path, _)| reader.exists(path)).map(|(_, format)| format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_counts_only_what_is_installed() {
        let text = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2-3\n\
                    Description: x\n Package: no\n\nPackage: b\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                    Package: c\nStatus: hold ok installed\nArchitecture: all\nVersion: 4";
        assert_eq!(dpkg(text), [package("a", "1:2-3", "amd64"), package("c", "4", "all")]);
    }

    #[test]
    fn apk_paragraphs_are_packages() {
        let text = "C:Q1x\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\n\nP:busybox\nV:1.36\nA:x86_64\n\n";
        assert_eq!(apk(text), [package("musl", "1.2.5-r0", "x86_64"), package("busybox", "1.36", "x86_64")]);
    }
}
