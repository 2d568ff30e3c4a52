//! Kernel and initramfs for a VM's next start, out of its own disk.
//!
//! What was found on a disk is kept for as long as the disk's files stay as they were: a VM that has not
//! written yet boots from what its base image gave to the VM before it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use vmwright_boot::{Bus, Request, RootDevice, Source, Then};
use vmwright_guest::{Guest, OpenOptions};
use vmwright_vmm::{Boot, Profile};

use crate::base::FileIdentity;
use crate::config::{AgentMode, BackendChoice, DiskMode, VmConfig};
use crate::layout::{self, VmDir};
use crate::lock::FileLock;
use crate::runtime::Runtime;
use crate::{Error, Result, disks, record};

/// The serial number by which the guest finds its root disk.
pub(crate) const ROOT_SERIAL: &str = "root";
/// The version of what is remembered, and of what the answer depends on.
const VERSION: u32 = 1;
/// How many files are kept; a kernel and an initramfs take some tens of megabytes.
const KEPT: usize = 32;
/// How long to wait for others who are looking for theirs.
const PATIENCE: Duration = Duration::from_secs(120);
/// A file younger than this may be somebody's who is about to use it.
const YOUNG: Duration = Duration::from_secs(3600);

/// What a machine boots from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootFiles {
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
}

/// Everything that decides what a VM boots from.
#[derive(Serialize)]
struct Question<'a> {
    version: u32,
    agent: String,
    images: Vec<(&'a Path, FileIdentity)>,
    kernel: Option<(&'a Path, FileIdentity)>,
    agent_mode: AgentMode,
    pci: bool,
    cmdline: &'a str,
}

impl BootFiles {
    /// Finds what a VM boots from; nothing where its machine is a fake one and boots nothing.
    pub(crate) fn of(runtime: &Runtime, config: &VmConfig, profile: Profile) -> Result<Option<Self>> {
        if matches!(config.backend, BackendChoice::Fake(_)) {
            return Ok(None);
        }
        let bus = match profile {
            Profile::QemuMicrovm => Bus::Mmio,
            Profile::QemuQ35 => Bus::Pci,
            other => return Err(Error::unsupported(format!("booting a kernel directly on {other}"))),
        };
        let cache = runtime.home().boot_cache();
        let answer = cache.join(format!("{}.json", key(config, bus)?));
        if let Some(known) = Self::known(&answer) {
            return Ok(Some(known));
        }
        // One at a time: several starts from one image would all unpack the same kernel, under the same name.
        let _alone = FileLock::exclusive(&cache.with_extension("lock"), Some(PATIENCE))?;
        if let Some(known) = Self::known(&answer) {
            return Ok(Some(known));
        }
        let found = find(&cache, config, bus)?;
        record::write(&answer, &found)?;
        forget(&cache).map_err(|source| Error::host("tidy up", &cache, source))?;
        Ok(Some(found))
    }

    /// What was found before, where it is still there; what cannot be read is found anew.
    fn known(answer: &Path) -> Option<Self> {
        let known: Self = record::read(answer).ok()??;
        (known.kernel.is_file() && known.initramfs.is_file()).then_some(known)
    }

    /// Puts the files into the VM's directory, where nobody tidies up while it runs.
    pub(crate) fn place(&self, dir: &VmDir, boot: &mut Boot) -> Result<()> {
        let folder = dir.boot();
        layout::remove_dir(&folder)?;
        layout::private_dir(&folder)?;
        boot.kernel = folder.join("kernel");
        let initramfs = folder.join("initramfs");
        link(&self.kernel, &boot.kernel)?;
        link(&self.initramfs, &initramfs)?;
        boot.initramfs = Some(initramfs);
        boot.cmdline.clone_from(&self.cmdline);
        Ok(())
    }
}

/// A name for everything that decides what a VM boots from.
fn key(config: &VmConfig, bus: Bus) -> Result<String> {
    let mut images: Vec<_> = config.base.images().map(|(path, identity)| (path, identity.clone())).collect();
    let disk = FileIdentity::of(&config.disk)?;
    match config.disk_mode {
        // As long as the overlay is empty, the base alone decides.
        DiskMode::Isolated if config.pristine.as_ref() == Some(&disk) => {}
        DiskMode::Isolated => images.push((&config.disk, disk)),
        DiskMode::Shared => images[0].1 = disk,
    }
    let kernel = config.kernel.as_deref().map(|path| Ok((path, FileIdentity::of(path)?)));
    let question = Question {
        version: VERSION,
        agent: blake3::hash(vmwright_boot::AGENT).to_hex().to_string(),
        images,
        kernel: kernel.transpose()?,
        agent_mode: config.agent,
        pci: bus == Bus::Pci,
        cmdline: &config.cmdline_append,
    };
    let question = serde_json::to_vec(&question).map_err(|source| Error::record(&config.disk, source))?;
    Ok(blake3::hash(&question).to_hex()[..32].to_owned())
}

/// Opens the disk and takes out what it boots from.
fn find(cache: &Path, config: &VmConfig, bus: Bus) -> Result<BootFiles> {
    let format = disks::format_choice(config)?;
    let options = OpenOptions { format, gate: &disks::GATE, ..OpenOptions::default() };
    let guest = |error: vmwright_guest::Error| Error::layer(error.kind(), error);
    let guest = Guest::open(&[&config.disk], &options).map_err(guest)?;
    let root = guest.root_volume();
    let fs_type = root.content.as_ref().map(|content| content.kind.clone());
    let then = match config.agent {
        AgentMode::Init => Then::Serve,
        AgentMode::Companion => Then::HandOver { init: String::new() },
    };
    let request = Request {
        bus,
        root: RootDevice::Serial { serial: ROOT_SERIAL.to_owned(), partition: root.partition },
        fs_type: fs_type.ok_or_else(|| Error::unsupported("the root volume holds no known filesystem"))?,
        options: String::new(),
        read_only: false,
        then,
        cmdline: config.cmdline_append.clone(),
    };
    let source = match &config.kernel {
        None => Source::Guest { root: guest.root(), release: None },
        Some(path) if path.extension().is_some_and(|kind| kind == "deb") => Source::Package(path),
        Some(path) => Source::Files { image: path, modules: None },
    };
    let paths = vmwright_boot::prepare_in(cache, source, &request);
    let paths = paths.map_err(|error| Error::layer(error.kind(), error))?;
    Ok(BootFiles { kernel: paths.kernel, initramfs: paths.initramfs, cmdline: paths.cmdline })
}

/// Gives a file another name; copies it where the two names cannot share it.
fn link(from: &Path, to: &Path) -> Result<()> {
    let linked = match fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => fs::copy(from, to).map(drop),
        other => other,
    };
    linked.map_err(|source| Error::host("link", to, source))
}

/// Removes the oldest files beyond [`KEPT`].
fn forget(cache: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        // One that goes while this looks is somebody else's to forget.
        if let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified()) {
            files.push((modified, entry.path()));
        }
    }
    files.sort();
    let now = SystemTime::now();
    let old = files.len().saturating_sub(KEPT);
    for (modified, path) in &files[..old] {
        if now.duration_since(*modified).is_ok_and(|age| age > YOUNG) {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_files_beyond_the_bound_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * YOUNG;
        for index in 0..KEPT + 5 {
            let file = fs::File::create(dir.path().join(format!("{index:03}"))).unwrap();
            let age = if index < 3 { old } else { SystemTime::now() };
            file.set_modified(age + Duration::from_millis(index as u64)).unwrap();
        }
        forget(dir.path()).unwrap();
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, KEPT + 2);
        assert!(!dir.path().join("000").exists() && dir.path().join("003").exists());
    }
}
