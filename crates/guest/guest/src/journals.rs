//! Filesystems whose journal is on another disk.

use std::sync::Arc;

use vmwright_disk::{Disk, Overlay};
use vmwright_ext4::{Ext4, Options, journal_held, journal_wanted};

use crate::guest::{JournalDisk, Mode, OpenOptions};
use crate::volume::{OpenVolume, volumes_of, wanted};
use crate::{Error, ErrorKind, Result};

/// The volume of an image that holds a journal.
pub(crate) fn find(image: &Arc<dyn Disk>, named: &JournalDisk<'_>) -> Result<Arc<dyn Disk>> {
    let (_, volumes) = volumes_of(0, image)?;
    let holds = |open: &&OpenVolume| match named.part.map(|part| (part, part.parse::<u32>())) {
        None => journal_held(&*open.disk).is_some(),
        Some((_, Ok(number))) => open.volume.partition == Some(number),
        Some((name, Err(_))) => open.volume.answers_to(&wanted(name)),
    };
    let found: Vec<_> = volumes.iter().filter(holds).collect();
    match found.as_slice() {
        [open] if journal_held(&*open.disk).is_some() => Ok(open.disk.clone()),
        found => {
            let path = named.image.display().to_string();
            let problem = match found.len() {
                0 | 1 => "it holds no journal of another disk's filesystem",
                _ => "it holds several journals: name the partition, as IMG:2",
            };
            Err(Error::plain(ErrorKind::NotFound, path, problem))
        }
    }
}

/// Replays the journals that are on other disks than their filesystems: the one that is named, and those that are
/// found among the volumes. Read-only volumes are replayed in memory.
pub(crate) fn settle_all(
    volumes: &mut [OpenVolume],
    journal: Option<Arc<dyn Disk>>,
    options: &OpenOptions<'_>,
) -> Result<()> {
    let named = journal.is_some();
    let mut journals: Vec<_> = journal.into_iter().collect();
    journals
        .extend(volumes.iter().filter(|open| journal_held(&*open.disk).is_some()).map(|o| o.disk.clone()));
    let mut used = false;
    for open in volumes.iter_mut() {
        let Some(wanted) = journal_wanted(&*open.disk) else { continue };
        let found = journals.iter().position(|journal| journal_held(&**journal) == Some(wanted.uuid));
        let Some(index) = found else { continue };
        used |= index == 0;
        settle(open, &journals[index], options)?;
    }
    if named && !used {
        let problem = "no filesystem here has its journal on the disk that was named for it";
        return Err(Error::plain(ErrorKind::NotFound, "the journal", problem));
    }
    Ok(())
}

/// Replays a volume's journal where there is anything to replay, so that nothing has to know of it any more.
pub(crate) fn settle(
    open: &mut OpenVolume,
    journal: &Arc<dyn Disk>,
    options: &OpenOptions<'_>,
) -> Result<()> {
    if !is_pending(open) {
        return Ok(());
    }
    let mut journal = journal.clone();
    let in_memory = options.mode != Mode::Edit;
    if in_memory {
        open.disk = Arc::new(Overlay::new(open.disk.clone()));
        journal = Arc::new(Overlay::new(journal));
    }
    let how = Options { ignore_mmp: in_memory || options.ignore_mmp, ..Options::writable() };
    let opened = Ext4::open_with_journal(open.disk.clone(), journal, how).map(drop);
    match opened {
        // What else is wrong with it is said by whoever opens it.
        Err(error) if is_pending(open) => {
            Err(Error::volume("replay the journal of", &open.volume.device, error.kind(), error))
        }
        _ => open.identify(),
    }
}

fn is_pending(open: &OpenVolume) -> bool {
    journal_wanted(&*open.disk).is_some_and(|journal| journal.pending)
}
