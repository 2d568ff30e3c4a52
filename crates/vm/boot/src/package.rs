//! A kernel out of a Debian package.
//!
//! A `.deb` is an ar(5) archive; the member `data.tar`, packed or not, holds the files (deb(5)). It has no
//! `modules.dep`: that is made at installation, so here it is made of what the modules say they need.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::path::Path;

use crate::folder::Folder;
use crate::modules::{FILE_LIMIT, Modules, name_of, unpacked};
use crate::tar;
use crate::unpack::{Packing, reader};
use crate::{Error, Result, modinfo};

const WHAT: &str = "the kernel package";
const AR_MAGIC: &[u8] = b"!<arch>\n";
const AR_HEADER: usize = 60;
/// The largest package, and the most that it may unpack to.
const PACKAGE_LIMIT: u64 = 1 << 30;
const UNPACKED_LIMIT: u64 = 8 << 30;

/// The parts of a package that a boot needs.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) release: String,
    pub(crate) image: Vec<u8>,
    pub(crate) folder: PackageFolder,
}

/// Modules and indices, by their path below `/lib/modules/RELEASE`.
#[derive(Debug, Default)]
pub(crate) struct PackageFolder(BTreeMap<String, Vec<u8>>);

impl Folder for PackageFolder {
    fn read(&self, path: &str, _limit: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(path).cloned())
    }
}

impl Package {
    /// Reads a package, with those modules that `names` need.
    pub(crate) fn read(path: &Path, names: &[&str]) -> Result<Self> {
        let bytes = std::fs::metadata(path).and_then(|metadata| match metadata.len() > PACKAGE_LIMIT {
            true => Err(std::io::ErrorKind::FileTooLarge.into()),
            false => std::fs::read(path),
        });
        let bytes = bytes.map_err(Error::host(path))?;
        Self::parse(&bytes, names)
    }

    fn parse(bytes: &[u8], names: &[&str]) -> Result<Self> {
        let (release, image, mut folder, needs) = survey(data_member(bytes)?)?;
        folder.0.insert("modules.dep".into(), dep_file(&needs).into_bytes());
        let modules = Modules::read(&folder, &release)?;
        let wanted: HashSet<String> = modules.closure(names)?.into_iter().collect();
        collect(data_member(bytes)?, &wanted, &mut folder)?;
        Ok(Self { release, image, folder })
    }
}

/// By path: what a module says it needs, by name.
type Needs = BTreeMap<String, Vec<String>>;

/// Goes through the package once: everything but the modules themselves.
fn survey(data: Box<dyn Read + '_>) -> Result<(String, Vec<u8>, PackageFolder, Needs)> {
    let (mut image, mut folder, mut needs) = (None, PackageFolder::default(), Needs::new());
    tar::each(data, WHAT, &mut |path, size, content| {
        if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
            image = Some((release.to_owned(), tar::content(content, size, WHAT, FILE_LIMIT)?));
        } else if let Some(name) = below_modules(path) {
            if name.starts_with("modules.") {
                folder.0.insert(name.to_owned(), tar::content(content, size, WHAT, FILE_LIMIT)?);
            } else if is_module(name) {
                let object = unpacked(tar::content(content, size, WHAT, FILE_LIMIT)?)?;
                needs.insert(name.to_owned(), modinfo::depends(&object)?);
            }
        }
        Ok(())
    })?;
    let (release, image) = image.ok_or_else(|| Error::corrupt(WHAT, 0, "it holds no boot/vmlinuz-*"))?;
    Ok((release, image, folder, needs))
}

/// Goes through the package a second time, for the modules that turned out to be needed.
fn collect(data: Box<dyn Read + '_>, wanted: &HashSet<String>, folder: &mut PackageFolder) -> Result<()> {
    tar::each(data, WHAT, &mut |path, size, content| {
        if let Some(name) = below_modules(path).filter(|name| wanted.contains(*name)) {
            folder.0.insert(name.to_owned(), tar::content(content, size, WHAT, FILE_LIMIT)?);
        }
        Ok(())
    })
}

fn below_modules(path: &str) -> Option<&str> {
    let path = path.strip_prefix("usr/").unwrap_or(path);
    let (_release, name) = path.strip_prefix("lib/modules/")?.split_once('/')?;
    Some(name)
}

fn is_module(name: &str) -> bool {
    [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|end| name.ends_with(end))
}

/// The member of the package that holds the files.
fn data_member(bytes: &[u8]) -> Result<Box<dyn Read + '_>> {
    let mut at = AR_MAGIC.len();
    if !bytes.starts_with(AR_MAGIC) {
        return Err(Error::corrupt(WHAT, 0, "it is no .deb"));
    }
    while let Some(header) = bytes.get(at..).and_then(|rest| rest.get(..AR_HEADER)) {
        let text = |range: std::ops::Range<usize>| std::str::from_utf8(&header[range]).map(str::trim);
        let size = text(48..58).ok().and_then(|size| size.parse::<usize>().ok());
        let size = size.ok_or_else(|| Error::corrupt(WHAT, at + 48, "a size is no number"))?;
        let start = at + AR_HEADER;
        let content = bytes.get(start..).and_then(|rest| rest.get(..size));
        let content = content.ok_or_else(|| Error::corrupt(WHAT, at, "a member reaches past the end"))?;
        if text(0..16).is_ok_and(|name| name.starts_with("data.tar")) {
            let data = match Packing::detect(content) {
                Some(packing) => reader(content, packing, WHAT)?,
                None => Box::new(content),
            };
            return Ok(Box::new(data.take(UNPACKED_LIMIT)));
        }
        at = start + size.next_multiple_of(2);
    }
    Err(Error::corrupt(WHAT, at, "it has no data.tar"))
}

/// Writes what depmod(8) would: everything a module needs, what is needed by others further to the right.
fn dep_file(needs: &Needs) -> String {
    let by_name: HashMap<String, &str> = needs.keys().map(|path| (name_of(path), path.as_str())).collect();
    let mut text = String::new();
    for path in needs.keys() {
        let mut order = Vec::new();
        let mut seen = HashSet::from([path.as_str()]);
        // Depth first with a stack of its own: modules may claim to need one another in any way.
        let mut stack = vec![(path.as_str(), 0)];
        while let Some((path, next)) = stack.pop() {
            let name = needs.get(path).and_then(|names| names.get(next));
            match name {
                None => order.push(path),
                Some(name) => {
                    stack.push((path, next + 1));
                    if let Some(path) = by_name.get(&name.replace('-', "_"))
                        && seen.insert(path)
                    {
                        stack.push((path, 0));
                    }
                }
            }
        }
        // The module itself came last.
        order.pop();
        let needed: String = order.iter().rev().map(|path| format!(" {path}")).collect();
        text.push_str(&format!("{path}:{needed}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_vfs::ErrorKind;

    fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = AR_MAGIC.to_vec();
        for (name, content) in members {
            bytes.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 644, content.len()).bytes(),
            );
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(2), b'\n');
        }
        bytes
    }

    #[test]
    fn what_depmod_would_write_is_written() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let needs = Needs::from([
            ("k/virtio.ko".into(), names(&["virtio-ring"])),
            ("k/virtio_blk.ko".into(), names(&["virtio", "virtio_ring"])),
            ("k/virtio_ring.ko".into(), names(&[])),
        ]);
        let text = dep_file(&needs);
        let expected = "k/virtio.ko: k/virtio_ring.ko\nk/virtio_blk.ko: k/virtio.ko k/virtio_ring.ko\nk/virtio_ring.ko:\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_package_gives_its_kernel_and_the_modules_needed() {
        let file = |path, content: &[u8]| tar::tests::entry(path, b'0', content);
        let object = |depends: &str| modinfo::tests::object(&[&format!("depends={depends}"), "license=GPL"]);
        let tar = [
            file("./boot/vmlinuz-6.1", b"the kernel"),
            file("./usr/lib/modules/6.1/modules.builtin", b"kernel/fs/ext4/ext4.ko\n"),
            file("./usr/lib/modules/6.1/kernel/b.ko", &object("a")),
            file("./usr/lib/modules/6.1/kernel/a.ko", &object("")),
            file("./usr/lib/modules/6.1/kernel/c.ko", &object("")),
            vec![0; 1024],
        ];
        let deb = ar(&[("debian-binary", b"2.0\n"), ("control.tar", b"x"), ("data.tar", &tar.concat())]);
        let package = Package::parse(&deb, &["b", "ext4"]).unwrap();
        assert_eq!((package.release.as_str(), package.image.as_slice()), ("6.1", &b"the kernel"[..]));
        let modules = Modules::read(&package.folder, "6.1").unwrap().load(&package.folder, &["b"]).unwrap();
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(!package.folder.0.contains_key("kernel/c.ko"));
        for at in 0..deb.len() {
            let mut damaged = deb.clone();
            damaged[at] ^= 0x81;
            // Whatever is still read is of the shape it has to be; everything else says that it is damaged.
            match Package::parse(&damaged, &["b", "ext4"]) {
                Ok(package) => assert!(package.folder.0.keys().all(|name| !name.is_empty())),
                Err(error) => assert_ne!(error.kind(), ErrorKind::Io, "{at}: {error}"),
            }
        }
        for len in 0..deb.len() - 1024 {
            assert_eq!(Package::parse(&deb[..len], &["b"]).unwrap_err().kind(), ErrorKind::Corrupt, "{len}");
        }
    }
}
