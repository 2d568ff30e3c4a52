//! What the filesystems on a disk do not use.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use vmwright_disk::Disk;
use vmwright_guest::FreeSpace;
use vmwright_image::copy::{self, Fill};

use super::bar::Bar;
use super::source::Editing;
use crate::failure::Failure;
use crate::output::{line, note, size};
use crate::signals;

/// Finds what is free on a disk; an error where nothing is known of any filesystem.
pub(crate) fn find(disk: &Arc<dyn Disk>) -> anyhow::Result<FreeSpace> {
    let space = FreeSpace::of(disk)?;
    tell(&space);
    if space.known.is_empty() {
        return Err(Failure::refused("there is no filesystem on it whose free space is known"));
    }
    Ok(space)
}

/// Says which volumes are left alone, and why.
pub(crate) fn tell(space: &FreeSpace) {
    for unknown in &space.unknown {
        note(format!("{} stays as it is: {}", unknown.volume.device, unknown.reason));
    }
}

/// Overwrites the free space of a disk in place.
pub(crate) fn wipe(image: &Path, zeros: bool, editing: &Editing) -> anyhow::Result<ExitCode> {
    if editing.is_dry_run() {
        let disk: Arc<dyn Disk> = Arc::new(editing.open_to_read(image)?);
        let known =
            find(&disk)?.known.iter().map(|volume| volume.device.clone()).collect::<Vec<_>>().join(", ");
        line(format!("would overwrite the free space of {known}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let cancel = signals::flag()?;
    let disk = editing.open_in_place(image)?;
    let space = find(&disk)?;
    let fill = if zeros { Fill::Zeros } else { Fill::Random };
    let bar = Bar::new();
    let done = copy::wipe(&*disk, &space, fill, Some(&cancel), &|done, total| bar.show(done, total));
    bar.end();
    let done = done?;
    line(format!(
        "{} were free; {} of them were overwritten",
        size(done.bytes_free),
        size(done.bytes_treated)
    ))?;
    Ok(ExitCode::SUCCESS)
}
