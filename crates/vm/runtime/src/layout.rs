//! Where everything lies on the host.
//!
//! ```text
//! HOME/                    0700, ours alone
//!   vmwright.db            the store
//!   cache/boot/KEY/        kernel and initramfs out of a disk
//!   vms/NAME/              one directory per VM
//!     lock                 held by the starting command, then by the shim
//!     disk.qcow2           the isolated disk
//!     boot/                this run's kernel and initramfs
//!     launch.json          what the shim is to run
//!     state.json exit.json what the shim says of itself
//!     console.log console.log.1 shim.log
//!   run/SHORT/             sockets of a running VM; `run` may lead elsewhere to keep names short
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::name::fnv1a;
use crate::{Error, Result, VmName};

/// What a socket address holds, less its terminating zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// The longest name of a socket in a VM's socket directory, with its slash.
const MAX_SOCKET_NAME: usize = 16;

/// The directory that holds all state.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Takes a directory as it is; touches nothing.
    pub fn at(root: &Path) -> Result<Self> {
        // Other processes must find the same sockets, whatever directory they were started in.
        let root = std::path::absolute(root).map_err(|source| Error::host("find", root, source))?;
        Ok(Self { root })
    }

    /// Makes the directories that are missing, readable to their owner alone.
    pub fn prepare(&self) -> Result<()> {
        private_dir(&self.root)?;
        private_dir(&self.vms())?;
        private_dir(&self.root.join("cache"))?;
        private_dir(&self.boot_cache())?;
        self.prepare_run()
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The store's file.
    pub fn database(&self) -> PathBuf {
        self.root.join("vmwright.db")
    }

    /// Where boot files are kept for the next start.
    pub fn boot_cache(&self) -> PathBuf {
        self.root.join("cache/boot")
    }

    /// The directory of all VMs.
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// What belongs to one VM.
    pub fn vm(&self, name: &VmName) -> VmDir {
        VmDir { dir: self.vms().join(name.as_str()), sockets: self.run().join(name.short()) }
    }

    /// The names that have a directory.
    pub fn names(&self) -> Result<Vec<VmName>> {
        let dir = self.vms();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::host("list", &dir, source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| Error::host("list", &dir, source))?;
            names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        names.sort();
        Ok(names)
    }

    /// The directory of all sockets' directories, by a path short enough.
    pub(crate) fn run(&self) -> PathBuf {
        let direct = self.root.join("run");
        if fits(&direct) {
            return direct;
        }
        // Kept in the home, not computed from the environment: every process must come to the same answer.
        fs::read_link(&direct).unwrap_or(direct)
    }

    fn prepare_run(&self) -> Result<()> {
        let direct = self.root.join("run");
        if fits(&direct) {
            return private_dir(&direct);
        }
        if let Ok(target) = fs::read_link(&direct) {
            // The host may have emptied it when it restarted.
            return private_dir(&target);
        }
        let target = short_run_dir(&self.root)?;
        private_dir(&target)?;
        match std::os::unix::fs::symlink(&target, &direct) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::host("link", &direct, error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the sockets of a VM in `run` have addresses short enough.
fn fits(run: &Path) -> bool {
    run.as_os_str().len() + "/0123456789ab".len() + MAX_SOCKET_NAME <= MAX_SOCKET_PATH
}

/// A directory for the sockets of a home whose own path is too long.
fn short_run_dir(root: &Path) -> Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let user_dir = PathBuf::from(format!("/run/user/{uid}"));
    let base = if user_dir.is_dir() { user_dir } else { PathBuf::from("/tmp") };
    let hash = fnv1a(root.as_os_str().as_encoded_bytes());
    Ok(base.join(format!("vmwright-{uid}-{hash:016x}")))
}

/// Makes a directory that only its owner can enter, or makes sure that an existing one is such.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().recursive(false).mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|source| Error::host("create", parent, source))?;
            }
            return private_dir_in_place(path);
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::host("create", path, error));
        }
        Err(_) => {}
    }
    let metadata = fs::symlink_metadata(path).map_err(|source| Error::host("stat", path, source))?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::not_private(path));
    }
    if metadata.mode() & 0o077 != 0 {
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(path, private).map_err(|source| Error::host("protect", path, source))?;
    }
    Ok(())
}

fn private_dir_in_place(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::host("create", path, error)),
        _ => Ok(()),
    }
}

/// What belongs to one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDir {
    dir: PathBuf,
    sockets: PathBuf,
}

impl VmDir {
    /// The directory that stays as long as the VM.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The directory that stays as long as the VM runs.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// Where the shim listens.
    pub fn shim_socket(&self) -> PathBuf {
        self.sockets.join("shim.sock")
    }

    /// The guest's console output.
    pub fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What the shim has to say.
    pub fn shim_log(&self) -> PathBuf {
        self.dir.join("shim.log")
    }

    /// The isolated disk.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub(crate) fn boot(&self) -> PathBuf {
        self.dir.join("boot")
    }

    pub(crate) fn launch(&self) -> PathBuf {
        self.dir.join("launch.json")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    pub(crate) fn exit(&self) -> PathBuf {
        self.dir.join("exit.json")
    }
}

/// Removes a file; that it is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    gone_is_fine(fs::remove_file(path)).map_err(|source| Error::host("remove", path, source))
}

/// Removes a directory with all in it; that it is gone already is no error.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    gone_is_fine(fs::remove_dir_all(path)).map_err(|source| Error::host("remove", path, source))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn every_directory_is_private_even_one_that_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("home");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let home = Home::at(&root).unwrap();
        home.prepare().unwrap();
        home.prepare().unwrap();
        for path in [home.root(), &home.vms(), &home.boot_cache(), &home.run()] {
            assert_eq!(mode(path), 0o700, "{}", path.display());
        }
    }

    #[test]
    fn socket_addresses_stay_short_however_long_the_home_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("x".repeat(120));
        let home = Home::at(&root).unwrap();
        home.prepare().unwrap();
        let name = "n".repeat(63).parse().unwrap();
        let socket = home.vm(&name).shim_socket();
        assert!(socket.as_os_str().len() <= MAX_SOCKET_PATH, "{}", socket.display());
        assert_eq!(mode(&home.run()), 0o700);
        // The host empties its temporary directories when it restarts.
        fs::remove_dir(home.run()).unwrap();
        home.prepare().unwrap();
        assert!(home.run().is_dir());
        fs::remove_dir(home.run()).unwrap();
    }

    #[test]
    fn somebody_elses_link_in_place_of_a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("home");
        std::os::unix::fs::symlink("/tmp", &root).unwrap();
        assert!(Home::at(&root).unwrap().prepare().is_err());
    }
}
