//! Arrows point down only; crates on one line never see each other.

use anyhow::{Result, ensure};

use crate::workspace::Metadata;

/// The lines of the architecture, lowest first.
const LINES: [&[&str]; 8] = [
    &["vmwright-disk", "vmwright-agent-proto"],
    &["vmwright-crypt", "vmwright-agent"],
    &["vmwright-vfs", "vmwright-image", "vmwright-volume"],
    &["vmwright-ext4", "vmwright-nbd"],
    &["vmwright-guest", "vmwright-boot", "vmwright-rootfs", "vmwright-vmm"],
    &["vmwright-runtime"],
    &["vmwright-server"],
    &["vmwright"],
];

/// Crates outside the product: the test harness, which any test may use, and this program.
const OUTSIDE: [&str; 2] = ["vmwright-judges", "xtask"];

fn line_of(name: &str) -> Option<usize> {
    LINES.iter().position(|line| line.contains(&name))
}

/// Checks every dependency between members, those of tests included.
pub(crate) fn check() -> Result<()> {
    let metadata = Metadata::load()?;
    let mut wrong = Vec::new();
    for package in metadata.members().filter(|package| !OUTSIDE.contains(&package.name.as_str())) {
        let Some(line) = line_of(&package.name) else {
            wrong.push(format!("{} has no line in the architecture", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            let is_test = dependency.kind.as_deref() == Some("dev");
            // A crate's own tests may ask it for the parts that only tests have.
            if is_test && dependency.name == package.name {
                continue;
            }
            match line_of(&dependency.name) {
                Some(beneath) if beneath >= line => {
                    wrong.push(format!(
                        "{} (line {line}) sees {} (line {beneath})",
                        package.name, dependency.name
                    ));
                }
                None if !is_test && OUTSIDE.contains(&dependency.name.as_str()) => {
                    wrong.push(format!("{} needs {} outside its tests", package.name, dependency.name));
                }
                _ => {}
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}
