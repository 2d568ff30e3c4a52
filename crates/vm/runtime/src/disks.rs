//! A VM's disk: what it is made from, and what must hold before it runs.

use std::path::Path;

use vmwright_disk::{HostFile, Recovery, TransactionOptions};
use vmwright_image::chain::{self, AllowAll};
use vmwright_image::{Format, FormatChoice};
use vmwright_vmm::{Backing, Disk, DiskFormat};

use crate::base::{BackingImage, BaseImage, FileIdentity};
use crate::boot_files::ROOT_SERIAL;
use crate::config::{DiskMode, VmConfig};
use crate::layout::VmDir;
use crate::store::ImageUse;
use crate::{Error, Result, VmName};

fn image(error: vmwright_image::Error) -> Error {
    Error::layer(error.kind(), error)
}

fn disk(error: vmwright_disk::Error) -> Error {
    Error::layer(error.kind(), error)
}

fn vmm_format(format: Format) -> Result<DiskFormat> {
    match format {
        Format::Raw => Ok(DiskFormat::Raw),
        Format::Qcow2 => Ok(DiskFormat::Qcow2),
        other => Err(Error::unsupported(format!("no monitor runs from a disk in the format {other}"))),
    }
}

fn image_format(format: DiskFormat) -> Result<Format> {
    match format {
        DiskFormat::Raw => Ok(Format::Raw),
        DiskFormat::Qcow2 => Ok(Format::Qcow2),
        other => Err(Error::unsupported(format!("the format {other}"))),
    }
}

/// Looks at an image and what lies beneath it, after finishing what a crash left half done to them.
pub(crate) fn look(path: &Path) -> Result<BaseImage> {
    let path = canonical(path)?;
    recover(&path)?;
    let (format, mut next) = link(&path, FormatChoice::Probe)?;
    if next.is_some() && !chain::is_named_qcow2(&path) {
        // A guest that ran on it as a raw image could have written these first bytes.
        return Err(Error::unsupported(format!(
            "{} names a backing file, and only its first bytes say that it is a qcow2; rename it to end in .qcow2 \
             if it is one",
            path.display()
        )));
    }
    let identity = FileIdentity::of(&path)?;
    let mut backing = Vec::new();
    let mut above = path.clone();
    while let Some((name, choice)) = next {
        if backing.len() >= chain::MAX_DEPTH {
            return Err(Error::unsupported(format!("more than {} images on one another", chain::MAX_DEPTH)));
        }
        let beneath = canonical(&chain::resolve(&above, &name).map_err(image)?)?;
        recover(&beneath)?;
        let (format, deeper) = link(&beneath, choice)?;
        let identity = FileIdentity::of(&beneath)?;
        above.clone_from(&beneath);
        backing.push(BackingImage { path: beneath, format, identity });
        next = deeper;
    }
    Ok(BaseImage { path, format, identity, backing })
}

fn canonical(path: &Path) -> Result<std::path::PathBuf> {
    path.canonicalize().map_err(|source| Error::host("find", path, source))
}

/// The name of what lies beneath an image, and how its format is decided.
type Beneath = (String, FormatChoice);

/// What an image's header says: its format and what lies beneath it.
fn link(path: &Path, choice: FormatChoice) -> Result<(DiskFormat, Option<Beneath>)> {
    let file = HostFile::open(path, true).map_err(disk)?;
    let info = vmwright_image::describe(&file, choice).map_err(image)?;
    let format = vmm_format(info.format)?;
    let Some(name) = info.backing_filename else { return Ok((format, None)) };
    // The user named the image, and its own header what is beneath it; that no guest can rewrite which file
    // that is while it runs is the monitor's part.
    let choice = match info.backing_filename_format {
        Some(format) => FormatChoice::Exact(format.parse().map_err(image)?),
        None => FormatChoice::Probe,
    };
    Ok((format, Some((name, choice))))
}

/// Finishes an edit of an image that a crash left half done.
pub(crate) fn recover(path: &Path) -> Result<()> {
    if vmwright_disk::pending(path, &TransactionOptions::default()).map_err(disk)?.is_some() {
        vmwright_disk::recover(path, Recovery::Auto, &TransactionOptions::default()).map_err(disk)?;
    }
    Ok(())
}

/// The images that a VM depends on and does not own.
pub(crate) fn uses(base: &BaseImage, mode: DiskMode) -> Vec<ImageUse> {
    let own = |(depth, (path, identity)): (usize, (&Path, &FileIdentity))| ImageUse {
        path: path.to_owned(),
        device: identity.device,
        inode: identity.inode,
        writes: depth == 0 && mode == DiskMode::Shared,
    };
    base.images().enumerate().map(own).collect()
}

/// Makes the overlay of a VM that gets a disk of its own.
pub(crate) fn make_overlay(dir: &VmDir, base: &BaseImage) -> Result<()> {
    let format = image_format(base.format)?;
    chain::create_overlay(&dir.disk(), &base.path, format, None, true).map_err(image)
}

/// Makes sure before a start that the disk holds what the VM last saw.
pub(crate) fn check(vm: &VmName, config: &VmConfig) -> Result<()> {
    for (path, _) in config.base.images() {
        recover(path)?;
    }
    match config.disk_mode {
        DiskMode::Isolated => {
            recover(&config.disk)?;
            config.base.check_unchanged(vm)
        }
        // It is its own base, and changing it is what it is for; what lies beneath must not change.
        DiskMode::Shared => config.base.check_backing_unchanged(vm),
    }
}

/// The disk as the monitor is to open it: every file by name and format, none by what an image says.
pub(crate) fn for_monitor(config: &VmConfig) -> Disk {
    let beneath = config.base.backing.iter();
    let mut backing: Vec<Backing> =
        beneath.map(|image| Backing { path: image.path.clone(), format: image.format }).collect();
    if config.disk_mode == DiskMode::Isolated {
        backing.insert(0, Backing { path: config.base.path.clone(), format: config.base.format });
    }
    let serial = Some(ROOT_SERIAL.to_owned());
    Disk { backing, serial, ..Disk::new(&config.disk, config.disk_format) }
}

/// Lets images name what lies beneath them: which files those are has been checked.
pub(crate) const GATE: AllowAll = AllowAll { probe: true };

/// How the disk is opened by our own drivers.
pub(crate) fn format_choice(config: &VmConfig) -> Result<FormatChoice> {
    image_format(config.disk_format).map(FormatChoice::Exact)
}
