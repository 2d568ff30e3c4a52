//! Answering reads: the map says which ranges are zeros and need not travel.

use vmwright_disk::Disk;

use crate::buffers::Buffers;
use crate::command::Request;
use crate::layout::CMD_FLAG_DF;
use crate::perform::Outcome;
use crate::reply::Outbox;

/// The most data in one chunk of an answer, so that long reads need little memory.
const CHUNK: u64 = 2 << 20;
/// Zeros shorter than this travel as data: a chunk of their own would cost more.
const SHORTEST_HOLE: u64 = 4 << 10;

/// Carries a read out and answers it.
pub(crate) fn answer(disk: &dyn Disk, request: &Request, out: &Outbox<'_>, buffers: &Buffers) -> Outcome {
    let (cookie, start) = (request.cookie, request.offset);
    let end = start + u64::from(request.len);
    if out.is_structured() && !request.has(CMD_FLAG_DF) {
        return in_chunks(disk, cookie, start, end, out, buffers);
    }
    let mut buffer = buffers.take(request.len as usize);
    fill(disk, &mut buffer, start)?;
    match (out.is_structured(), buffer.is_empty()) {
        (false, _) => out.simple_data(cookie, &buffer)?,
        (true, true) => out.none(cookie)?,
        (true, false) => out.data(cookie, start, &buffer, true)?,
    }
    Ok(())
}

fn in_chunks(
    disk: &dyn Disk,
    cookie: u64,
    start: u64,
    end: u64,
    out: &Outbox<'_>,
    buffers: &Buffers,
) -> Outcome {
    if start == end {
        out.none(cookie)?;
    }
    let mut at = start;
    while at < end {
        let run = next_run(disk, at, end);
        let last = run.end == end;
        match run.zero {
            // A run lies within the request, whose length has 32 bits.
            true => out.hole(cookie, at, (run.end - at) as u32, last)?,
            false => {
                let mut buffer = buffers.take((run.end - at) as usize);
                fill(disk, &mut buffer, at)?;
                out.data(cookie, at, &buffer, last)?;
            }
        }
        at = run.end;
    }
    Ok(())
}

struct Run {
    end: u64,
    zero: bool,
}

/// The longest run from `at` on that is zeros, or that travels as data.
fn next_run(disk: &dyn Disk, at: u64, end: u64) -> Run {
    let mut run = Run { end: at, zero: true };
    // The end of the data so far, and of the zeros behind it that may yet turn out too short to matter.
    let mut data_end = at;
    while run.end < end && (run.zero || run.end - at < CHUNK) {
        let Ok(extent) = disk.extent_at(run.end) else {
            // Where there is no map, reading says whether there are bytes.
            return match run.end > at {
                true => run,
                false => Run { end: end.min(at + CHUNK), zero: false },
            };
        };
        let extent_end = extent.end().min(end).max(run.end + 1);
        if !extent.is_zero() {
            if run.zero && run.end - at >= SHORTEST_HOLE {
                return run;
            }
            run.zero = false;
            data_end = extent_end;
        } else if !run.zero && extent_end - data_end >= SHORTEST_HOLE {
            return Run { end: data_end, zero: false };
        }
        run.end = extent_end;
    }
    // A chunk that is not the last one ends where whole sectors do.
    if !run.zero && run.end - at > CHUNK {
        run.end = (at + CHUNK) & !511;
    }
    run
}

/// Reads a range; there may be nothing to read at the very end.
fn fill(disk: &dyn Disk, buffer: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
    match buffer.is_empty() {
        true => Ok(()),
        false => disk.read_at(buffer, offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::MemDisk;

    #[test]
    fn memory_travels_as_data_in_bounded_chunks() {
        let disk = MemDisk::new(5 << 20);
        disk.write_at(&vec![1; 5 << 20], 0).unwrap();
        let first = next_run(&disk, 100, 5 << 20);
        assert_eq!((first.end, first.zero), (2 << 20, false));
        let last = next_run(&disk, 4 << 20, 5 << 20);
        assert_eq!(last.end, 5 << 20);
    }
}
