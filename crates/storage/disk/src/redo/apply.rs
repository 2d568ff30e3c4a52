use super::read::Chunk;
use super::{RecordKind, Redo};
use crate::{Disk, Error, ErrorKind, ExtentKind, HostFile, Result};

/// Writes everything that the redo holds into its files, which are given in its order, and syncs them.
///
/// Repeating this is harmless. Where it fails, the redo stays, and the error says so.
pub(crate) fn apply(redo: &Redo, files: &[&HostFile]) -> Result<()> {
    for (entry, file) in redo.entries.iter().zip(files) {
        if file.len() != entry.new_len {
            file.set_len(entry.new_len).map_err(|error| unfinished(redo, files, error))?;
        }
    }
    redo.for_each_chunk(&mut |chunk| apply_chunk(chunk, files[chunk.file]))
        .and_then(|()| files.iter().try_for_each(|file| file.flush()))
        .map_err(|error| unfinished(redo, files, error))
}

/// Neighbours of one kind that become one call.
#[derive(Clone, Copy)]
struct Batch {
    kind: RecordKind,
    start: u64,
    end: u64,
    /// Where its data begins in the data of the chunk.
    data: usize,
}

fn apply_chunk(chunk: &Chunk, file: &HostFile) -> Result<()> {
    let mut data = 0;
    let mut open: Option<Batch> = None;
    for record in &chunk.records {
        match &mut open {
            // Data of neighbours in the file are neighbours in the chunk.
            Some(batch) if batch.kind == record.kind && batch.end == record.start => batch.end = record.end(),
            _ => {
                let batch = Batch { kind: record.kind, start: record.start, end: record.end(), data };
                finish(open.replace(batch), chunk, file)?;
            }
        }
        data += record.data_len() as usize;
    }
    finish(open, chunk, file)
}

fn finish(batch: Option<Batch>, chunk: &Chunk, file: &HostFile) -> Result<()> {
    let Some(Batch { kind, start, end, data }) = batch else { return Ok(()) };
    match kind {
        RecordKind::Write => file.write_at(&chunk.data()[data..data + (end - start) as usize], start),
        RecordKind::Zero => file.zero_at(start, end - start),
        RecordKind::Cut => Ok(()),
    }
}

/// Says that the change is safe but not in place, and for want of space, how much has to be freed.
fn unfinished(redo: &Redo, files: &[&HostFile], cause: Error) -> Error {
    let to_free = match cause.kind() {
        ErrorKind::NoSpace => missing_space(redo, files).ok(),
        _ => None,
    };
    let path = files.first().map_or(redo.path(), |file| file.path());
    Error::unfinished(path, redo.path(), to_free, cause)
}

/// How many bytes must be freed before the rest of the redo can be applied.
fn missing_space(redo: &Redo, files: &[&HostFile]) -> Result<u64> {
    let mut needed = 0u64;
    redo.for_each_chunk(&mut |chunk| {
        let file = files[chunk.file];
        for record in chunk.records.iter().filter(|record| record.kind == RecordKind::Write) {
            let mut at = record.start;
            while at < record.end() {
                let (hole, end) = match at < file.len() {
                    true => {
                        let extent = file.extent_at(at)?;
                        (extent.kind == ExtentKind::Unallocated, extent.end().min(record.end()))
                    }
                    false => (true, record.end()),
                };
                needed += if hole || file.copies_on_write() { end - at } else { 0 };
                at = end;
            }
        }
        Ok(())
    })?;
    let free = files.first().map_or(0, |file| file.free_space().unwrap_or(0));
    // A block of the host's filesystem at least: it said that there is not enough.
    Ok(needed.saturating_sub(free).max(4096))
}
