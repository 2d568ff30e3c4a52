use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use vmwright_agent_proto::{BootConfig, RootDevice, Then};
use vmwright_vfs::Root;

use crate::bzimage::{extract_elf, has_pvh_entry};
use crate::folder::{Folder, GuestFolder, HostFolder};
use crate::kernel::Kernel;
use crate::modules::{Module, Modules};
use crate::package::Package;
use crate::{AGENT, Error, Result, initramfs};

/// The largest kernel image that is read.
const IMAGE_LIMIT: u64 = 256 << 20;

/// How every kernel is started: it says only what is wrong, and does not test its ciphers at each boot, which
/// takes an emulated machine a quarter of a second. A kernel without that switch ignores it.
const CMDLINE: &str = "quiet cryptomgr.notests";

/// Where a kernel comes from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// The guest's own disk.
    Guest {
        /// What is mounted there.
        root: &'a Root,
        /// The release, as in `6.1.0-18-amd64`; the newest where absent.
        release: Option<&'a str>,
    },
    /// A Debian package (`.deb`) that holds a kernel and its modules.
    Package(&'a Path),
    /// A kernel image: bzImage or ELF.
    Files {
        /// The image.
        image: &'a Path,
        /// The folder with `modules.dep`; where absent, the kernel must have everything built in.
        modules: Option<&'a Path>,
    },
}

/// How the machine attaches its virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// Memory-mapped, as on QEMU's microvm and on Firecracker.
    Mmio,
    /// PCI, as on q35 and Cloud Hypervisor.
    Pci,
}

/// What is to be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// How the root disk and the agent's channel are attached.
    pub bus: Bus,
    /// The device that holds the guest's root.
    pub root: RootDevice,
    /// Its filesystem, as mount(8) names it.
    pub fs_type: String,
    /// Mount options that the filesystem itself understands, separated by commas.
    pub options: String,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Whether the agent stays process 1 or hands over to the guest's init.
    pub then: Then,
    /// What is appended to the kernel's command line.
    pub cmdline: String,
}

/// Everything that a monitor needs to boot a guest directly, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel's release, where the source tells it.
    pub release: Option<String>,
    /// The kernel.
    pub kernel: Image,
    /// The initramfs.
    pub initramfs: Vec<u8>,
    /// The kernel's command line, without what the machine adds (`console=` and the like).
    pub cmdline: String,
}

/// A kernel's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The bytes as they were found: a bzImage or an ELF.
    pub found: Vec<u8>,
}

/// [`BootFiles`] as files of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPaths {
    /// The kernel's release, where the source tells it.
    pub release: Option<String>,
    /// The kernel, an ELF wherever it can be had.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The kernel's command line, without what the machine adds (`console=` and the like).
    pub cmdline: String,
}

/// Finds the kernel, and makes an initramfs with the agent and just the modules that this boot needs.
///
/// # Errors
///
/// Kind `NotFound` where there is no kernel or a module is missing, `Corrupt` and `Unsupported` where the
/// source contradicts its format or uses what is not handled.
pub fn prepare(source: Source<'_>, request: &Request) -> Result<BootFiles> {
    let names = module_names(request);
    let (release, found, modules) = match source {
        Source::Guest { root, release } => from_guest(root, release, &names)?,
        Source::Package(path) => {
            let package = Package::read(path, &names)?;
            let modules = load(&package.folder, &package.release, &names)?;
            (Some(package.release), package.image, modules)
        }
        Source::Files { image, modules } => {
            let found = read_host(image)?;
            let modules = match modules {
                Some(path) => load(&HostFolder(path.to_owned()), &path.display().to_string(), &names)?,
                None => Vec::new(),
            };
            (None, found, modules)
        }
    };
    let config = BootConfig {
        modules: Vec::new(),
        root: request.root.clone(),
        fs_type: request.fs_type.clone(),
        options: request.options.clone(),
        read_only: request.read_only,
        then: request.then.clone(),
    };
    let cmdline = [CMDLINE, &request.cmdline].join(" ").trim_end().to_owned();
    let initramfs = initramfs::build(AGENT, &modules, config);
    Ok(BootFiles { release, kernel: Image { found }, initramfs, cmdline })
}

/// Does what [`prepare()`] does, and keeps the results in a folder of the host under names made of their content.
///
/// What is there already is not made again: taking the ELF out of a kernel is by far the longest part.
///
/// # Errors
///
/// Those of [`prepare()`], and what writing to the folder brings.
pub fn prepare_in(cache: &Path, source: Source<'_>, request: &Request) -> Result<BootPaths> {
    let BootFiles { release, kernel, initramfs, cmdline } = prepare(source, request)?;
    std::fs::create_dir_all(cache).map_err(Error::host(cache))?;
    let kernel_path = cache.join(format!("kernel-{}", key(&kernel.found)));
    if !kernel_path.exists() {
        publish(&kernel_path, &kernel.into_fastest()?)?;
    }
    let initramfs_path = cache.join(format!("initramfs-{}", key(&initramfs)));
    if !initramfs_path.exists() {
        publish(&initramfs_path, &initramfs)?;
    }
    Ok(BootPaths { release, kernel: kernel_path, initramfs: initramfs_path, cmdline })
}

impl Image {
    /// The form that starts fastest: the ELF, where the kernel is packed in a way that can be unpacked and has
    /// the PVH entry that monitors start an ELF by; otherwise the image as it was found.
    ///
    /// # Errors
    ///
    /// Kind `Corrupt` where the image contradicts its format.
    pub fn into_fastest(self) -> Result<Vec<u8>> {
        match extract_elf(&self.found) {
            Ok(elf) if has_pvh_entry(&elf) => Ok(elf),
            Ok(_) => Ok(self.found),
            Err(error) if error.kind() == vmwright_vfs::ErrorKind::Unsupported => Ok(self.found),
            Err(error) => Err(error),
        }
    }
}

/// The modules that the machine's devices and the root's filesystem need.
fn module_names(request: &Request) -> Vec<&str> {
    let transport = match request.bus {
        Bus::Mmio => "virtio_mmio",
        Bus::Pci => "virtio_pci",
    };
    let filesystem = match request.fs_type.as_str() {
        // One driver serves all three.
        "ext2" | "ext3" => "ext4",
        other => other,
    };
    vec![transport, "virtio_blk", "virtio_console", filesystem]
}

type Found = (Option<String>, Vec<u8>, Vec<Module>);

fn from_guest(root: &Root, release: Option<&str>, names: &[&str]) -> Result<Found> {
    let kernel = Kernel::find(root, release)?;
    let image = root.read_file(&kernel.image, IMAGE_LIMIT).map_err(Error::guest(&kernel.image))?;
    let modules = match &kernel.modules {
        Some(path) => load(&GuestFolder { root, path: path.clone() }, &kernel.version, names)?,
        // It has everything built in, or says on the console what it lacks.
        None => Vec::new(),
    };
    Ok((Some(kernel.version), image, modules))
}

fn load(folder: &dyn Folder, release: &str, names: &[&str]) -> Result<Vec<Module>> {
    Modules::read(folder, release)?.load(folder, names)
}

fn read_host(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::metadata(path).and_then(|metadata| match metadata.len() > IMAGE_LIMIT {
        true => Err(std::io::ErrorKind::FileTooLarge.into()),
        false => std::fs::read(path),
    });
    bytes.map_err(Error::host(path))
}

/// A name for content.
fn key(content: &[u8]) -> String {
    blake3::hash(content).to_hex()[..32].to_owned()
}

/// Writes a file that appears under its name only when it is whole, whoever else writes the same.
fn publish(path: &Path, content: &[u8]) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if let Some(folder) = path.parent() {
        sweep(folder);
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}.{number}.part", std::process::id()));
    let written = std::fs::write(&temporary, content).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        // What could not be written need not stay; the error that counts is the first.
        let _ = std::fs::remove_file(&temporary);
        Error::host(path)(error)
    })
}

/// Removes what processes that are gone have left half-written.
fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let mut parts = name.to_str().unwrap_or_default().rsplit('.');
        if let (Some("part"), Some(_), Some(pid)) = (parts.next(), parts.next(), parts.next())
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fs_type: &str) -> Request {
        Request {
            bus: Bus::Mmio,
            root: RootDevice::Path("/dev/vda".into()),
            fs_type: fs_type.into(),
            options: String::new(),
            read_only: false,
            then: Then::Serve,
            cmdline: String::new(),
        }
    }

    #[test]
    fn a_machine_gets_the_modules_of_its_bus_and_its_filesystem() {
        assert_eq!(module_names(&request("ext3")), ["virtio_mmio", "virtio_blk", "virtio_console", "ext4"]);
        let pci = Request { bus: Bus::Pci, ..request("xfs") };
        assert_eq!(module_names(&pci), ["virtio_pci", "virtio_blk", "virtio_console", "xfs"]);
    }

    #[test]
    fn the_same_boot_gives_the_same_bytes_under_the_same_names() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, b"\x7fELF without an entry").unwrap();
        let source = Source::Files { image: &image, modules: None };
        let cache = dir.path().join("cache");
        std::fs::create_dir(&cache).unwrap();
        // What a process left that was killed while it wrote; no process has this number.
        std::fs::write(cache.join("kernel-0.99999999.0.part"), b"half").unwrap();
        let first = prepare_in(&cache, source, &request("ext4")).unwrap();
        let second = prepare_in(&cache, source, &request("ext4")).unwrap();
        assert_eq!(first, second);
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 2);
        assert_eq!(std::fs::read(&first.kernel).unwrap(), std::fs::read(&image).unwrap());
        let other = prepare_in(&cache, source, &request("xfs")).unwrap();
        assert_ne!(first.initramfs, other.initramfs);
    }

    #[test]
    fn modules_come_out_of_a_folder_of_the_host_packed_or_not() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
        write("modules.dep", b"virtio_mmio.ko:\nvirtio_blk.ko.gz: virtio_mmio.ko\nvirtio_console.ko:\n");
        write("modules.builtin", b"kernel/fs/ext4/ext4.ko\n");
        write("virtio_mmio.ko", b"mmio");
        write("virtio_console.ko", b"console");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"block device").unwrap();
        write("virtio_blk.ko.gz", &gzip.finish().unwrap());
        write("image", b"\x7fELF");
        let source = Source::Files { image: &dir.path().join("image"), modules: Some(dir.path()) };
        let initramfs = prepare(source, &request("ext4")).unwrap().initramfs;
        let at = |text: &[u8]| initramfs.windows(text.len()).position(|window| window == text);
        assert!(at(b"mmio").unwrap() < at(b"block device").unwrap());
        write("modules.dep", b"virtio_mmio.ko: ../../etc/passwd\nvirtio_blk.ko:\nvirtio_console.ko:\n");
        assert_eq!(prepare(source, &request("ext4")).unwrap_err().kind(), vmwright_vfs::ErrorKind::Corrupt);
    }
}
