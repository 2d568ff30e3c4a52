//! Which kernel modules a machine needs, and in which order.
//!
//! `modules.dep`, `modules.builtin`, `modules.softdep` and `modules.alias` as depmod(8) writes them.

use std::collections::{HashMap, HashSet};

use crate::Result;
use crate::error::Reason;
use crate::folder::Folder;
use crate::unpack::{Packing, unpack};

/// The largest index and the largest module that are read.
pub(crate) const FILE_LIMIT: u64 = 64 << 20;

/// How many soft dependencies of soft dependencies are followed.
const SOFT_DEPTH: usize = 16;

/// The modules of one kernel.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    release: String,
    /// By name: the path below the folder, and the paths of what it needs.
    loadable: HashMap<String, (String, Vec<String>)>,
    builtin: HashSet<String>,
    /// By name: what is to be loaded before it although it does not refer to it.
    soft: HashMap<String, Vec<String>>,
    /// The modules behind a name that is none, such as `crypto-crc32c`.
    aliases: HashMap<String, Vec<String>>,
}

/// A module ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name, with underscores: `virtio_blk`.
    pub(crate) name: String,
    /// The object file, unpacked.
    pub(crate) object: Vec<u8>,
}

impl Modules {
    /// Reads the indices of a kernel's modules.
    pub(crate) fn read(folder: &dyn Folder, release: &str) -> Result<Self> {
        let index = |name: &str| -> Result<String> {
            let bytes = folder.read(name, FILE_LIMIT)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let mut modules = Self { release: release.to_owned(), ..Self::default() };
        modules.parse_dep(&index("modules.dep")?);
        modules.builtin.extend(index("modules.builtin")?.lines().map(name_of));
        modules.parse_softdep(&index("modules.softdep")?);
        modules.parse_alias(&index("modules.alias")?);
        Ok(modules)
    }

    /// Answers where the modules are that `names` stand for and all that these need, each after what it needs.
    ///
    /// A name that is neither built in nor there is an error of kind `NotFound`.
    pub(crate) fn closure(&self, names: &[&str]) -> Result<Vec<String>> {
        let mut order = Order::default();
        for name in names.iter().map(|name| normalise(name)) {
            if !self.builtin.contains(&name) && !self.loadable.contains_key(&name) {
                return Err(Reason::NoModule { version: self.release.clone(), module: name }.into());
            }
            self.visit(&name, &mut order, SOFT_DEPTH);
        }
        Ok(order.paths)
    }

    /// Reads the modules that [`Modules::closure`] lists.
    pub(crate) fn load(&self, folder: &dyn Folder, names: &[&str]) -> Result<Vec<Module>> {
        self.closure(names)?.iter().map(|path| self.read_module(folder, path)).collect()
    }

    /// Appends a module to `order`, after everything it needs.
    ///
    /// `modules.dep` lists everything that a module needs, with what each of them needs further to the right,
    /// so that loading a line from its end to its beginning is a valid order. Only soft dependencies have to
    /// be followed, to a depth that real ones do not reach, and each name only once.
    fn visit(&self, name: &str, order: &mut Order, depth: usize) {
        let Some((path, needs)) = self.loadable.get(name) else { return };
        let Some(deeper) = depth.checked_sub(1) else { return };
        if !order.visited.insert(name.to_owned()) {
            return;
        }
        for path in needs.iter().rev().chain([path]) {
            for soft in self.soft.get(&name_of(path)).into_iter().flatten() {
                // What is neither there nor an alias of something is built in, or can be done without.
                match self.aliases.get(soft) {
                    Some(names) => names.iter().for_each(|name| self.visit(name, order, deeper)),
                    None => self.visit(soft, order, deeper),
                }
            }
            if order.seen.insert(path.clone()) {
                order.paths.push(path.clone());
            }
        }
    }

    fn parse_dep(&mut self, text: &str) {
        for line in text.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                self.loadable.insert(name_of(path), (path.to_owned(), needs));
            }
        }
    }

    /// Lines such as `softdep libcrc32c pre: crc32c post: other`.
    fn parse_softdep(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { continue };
            let before = words.skip_while(|word| *word != "pre:").skip(1);
            let before = before.take_while(|word| !word.ends_with(':')).map(normalise);
            self.soft.entry(normalise(name)).or_default().extend(before);
        }
    }

    /// Lines such as `alias crc32c crc32c_generic`. Patterns for hardware are of no use here.
    fn parse_alias(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some("alias"), Some(alias), Some(name)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            if !alias.contains(['*', '?', '[', ':']) {
                self.aliases.entry(normalise(alias)).or_default().push(normalise(name));
            }
        }
    }

    fn read_module(&self, folder: &dyn Folder, path: &str) -> Result<Module> {
        let missing = || Reason::NoModule { version: self.release.clone(), module: name_of(path) };
        let bytes = folder.read(path, FILE_LIMIT)?.ok_or_else(missing)?;
        Ok(Module { name: name_of(path), object: unpacked(bytes)? })
    }
}

/// Unpacks a module file, if it is packed.
pub(crate) fn unpacked(bytes: Vec<u8>) -> Result<Vec<u8>> {
    match Packing::detect(&bytes) {
        Some(packing) => unpack(&bytes, packing, "a kernel module", FILE_LIMIT as usize),
        None => Ok(bytes),
    }
}

#[derive(Default)]
struct Order {
    visited: HashSet<String>,
    seen: HashSet<String>,
    paths: Vec<String>,
}

/// The name of the module at a path: `kernel/fs/fuse/virtiofs.ko.xz` is `virtiofs`.
pub(crate) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normalise(file.split(".ko").next().unwrap_or(file))
}

/// Module names treat `-` and `_` alike.
fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(dep: &str) -> Modules {
        let builtin = HashSet::from(["ext4".to_owned()]);
        let mut modules = Modules { builtin, ..Modules::default() };
        modules.parse_dep(dep);
        modules
    }

    fn order(modules: &Modules, names: &[&str]) -> Vec<String> {
        modules.closure(names).unwrap().iter().map(|path| name_of(path)).collect()
    }

    #[test]
    fn a_module_comes_after_all_that_it_needs() {
        let modules = modules("k/c-c.ko.xz: k/b.ko k/a.ko\nk/b.ko: k/a.ko\nk/a.ko:\n");
        assert_eq!(order(&modules, &["c_c", "b"]), ["a", "b", "c_c"]);
    }

    #[test]
    fn modules_that_need_each_other_end() {
        let mut modules = modules("a.ko: b.ko\nb.ko: a.ko\n");
        modules.parse_softdep("softdep a pre: b\nsoftdep b pre: a\n");
        assert_eq!(order(&modules, &["a", "b"]), ["b", "a"]);
    }

    #[test]
    fn soft_dependencies_come_first_also_by_another_name() {
        let mut modules = modules("k/xfs.ko: k/libcrc32c.ko\nk/libcrc32c.ko:\nk/crc32c_generic.ko:\n");
        modules.parse_softdep("# comment\nsoftdep libcrc32c pre: crc32c absent post: xfs\n");
        modules.parse_alias("alias crc32c crc32c-generic\nalias pci:v*d* xfs\n");
        assert_eq!(order(&modules, &["xfs"]), ["crc32c_generic", "libcrc32c", "xfs"]);
    }

    #[test]
    fn what_is_built_in_needs_no_module() {
        assert!(order(&modules(""), &["ext4"]).is_empty());
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let error = modules("").closure(&["virtio_blk"]).unwrap_err();
        assert_eq!(error.kind(), vmwright_vfs::ErrorKind::NotFound);
        assert!(error.to_string().contains("virtio_blk"), "{error}");
    }
}
