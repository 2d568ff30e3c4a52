//! Which kernel modules a machine needs, and in which order.
//!
//! `modules.dep` and `modules.builtin` as depmod(8) writes them.

use std::collections::{HashMap, HashSet};

use vmwright_vfs::{ErrorKind, Root};

use crate::error::Reason;
use crate::kernel::Kernel;
use crate::unpack::{Packing, unpack};
use crate::{Error, Result};

/// The largest index and the largest module that are read.
const FILE_LIMIT: u64 = 64 << 20;

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    folder: Vec<u8>,
    version: String,
    /// By name: the path below the folder, and the paths of what it needs.
    loadable: HashMap<String, (String, Vec<String>)>,
    builtin: HashSet<String>,
}

/// A module ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores: `virtio_blk`.
    pub name: String,
    /// The object file, unpacked.
    pub object: Vec<u8>,
}

impl Modules {
    /// Reads the indices of a kernel's modules; a kernel without modules has everything built in.
    pub fn read(root: &Root, kernel: &Kernel) -> Result<Self> {
        let mut modules = Self {
            folder: kernel.modules.clone().unwrap_or_default(),
            version: kernel.version.clone(),
            loadable: HashMap::new(),
            builtin: HashSet::new(),
        };
        if kernel.modules.is_some() {
            modules.parse_dep(&modules.read_index(root, "modules.dep")?);
            let builtin = modules.read_index(root, "modules.builtin")?;
            modules.builtin.extend(builtin.lines().map(name_of));
        }
        Ok(modules)
    }

    /// Whether the kernel has `name` built in, as far as it says.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(&normalise(name))
    }

    /// Reads the modules that `names` stand for and all that these need, each after what it needs.
    ///
    /// A name that is neither built in nor there is an error of kind `NotFound`, unless the kernel has no
    /// modules at all: then it must do without them, and says itself what it lacks.
    pub fn load(&self, root: &Root, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in names.iter().map(|name| normalise(name)) {
            if !self.folder.is_empty() && !self.builtin.contains(&name) && !self.loadable.contains_key(&name)
            {
                return Err(Reason::NoModule { version: self.version.clone(), module: name }.into());
            }
            self.visit(name, &mut seen, &mut order);
        }
        order.iter().map(|path| self.read_module(root, path)).collect()
    }

    /// Appends a module to `order`, after everything it needs.
    ///
    /// `modules.dep` lists everything that a module needs, with what each of them needs further to the right,
    /// so that loading a line from its end to its beginning is a valid order, with nothing to follow.
    fn visit(&self, name: String, seen: &mut HashSet<String>, order: &mut Vec<String>) {
        let Some((path, needs)) = self.loadable.get(&name) else { return };
        for path in needs.iter().rev().chain([path]) {
            if seen.insert(path.clone()) {
                order.push(path.clone());
            }
        }
    }

    fn read_index(&self, root: &Root, name: &str) -> Result<String> {
        let path = [&self.folder, b"/".as_slice(), name.as_bytes()].concat();
        match root.read_file(&path, FILE_LIMIT) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(Error::guest(&path)(error)),
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

    fn read_module(&self, root: &Root, path: &str) -> Result<Module> {
        let full = [&self.folder, b"/".as_slice(), path.as_bytes()].concat();
        let bytes = root.read_file(&full, FILE_LIMIT).map_err(Error::guest(&full))?;
        let object = match Packing::detect(&bytes) {
            Some(packing) => unpack(&bytes, packing, "a kernel module", FILE_LIMIT as usize)?,
            None => bytes,
        };
        Ok(Module { name: name_of(path), object })
    }
}

/// The name of the module at a path: `kernel/fs/fuse/virtiofs.ko.xz` is `virtiofs`.
fn name_of(path: &str) -> String {
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
        let mut modules = Modules {
            folder: b"/m".to_vec(),
            version: "1".into(),
            loadable: HashMap::new(),
            builtin: HashSet::from(["ext4".to_owned()]),
        };
        modules.parse_dep(dep);
        modules
    }

    fn order(modules: &Modules, names: &[&str]) -> Vec<String> {
        let (mut seen, mut order) = (HashSet::new(), Vec::new());
        for name in names {
            modules.visit(normalise(name), &mut seen, &mut order);
        }
        order.iter().map(|path| name_of(path)).collect()
    }

    #[test]
    fn a_module_comes_after_all_that_it_needs() {
        let modules = modules("k/c-c.ko.xz: k/b.ko k/a.ko\nk/b.ko: k/a.ko\nk/a.ko:\n");
        assert_eq!(order(&modules, &["c_c", "b"]), ["a", "b", "c_c"]);
    }

    #[test]
    fn modules_that_need_each_other_end() {
        let modules = modules("a.ko: b.ko\nb.ko: a.ko\n");
        assert_eq!(order(&modules, &["a", "b"]), ["b", "a"]);
    }

    #[test]
    fn what_is_built_in_needs_no_module() {
        assert!(modules("").is_builtin("ext4"));
        assert!(order(&modules(""), &["ext4"]).is_empty());
    }
}
