//! Making ranges zero.

use vmwright_disk::Disk;

use crate::Export;
use crate::command::{Errno, Refusal, Request};
use crate::layout::{CMD_FLAG_FAST_ZERO, CMD_FLAG_NO_HOLE};
use crate::perform::Failure;

/// How many extents are looked at to find out whether a range is zeros already.
const EXTENTS: usize = 64;

static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

/// Carries out a request for zeros.
pub(crate) fn zero(export: &Export, request: &Request) -> Result<(), Failure> {
    let disk = &**export.disk();
    let (offset, len) = (request.offset, u64::from(request.len));
    if request.has(CMD_FLAG_FAST_ZERO) && (request.has(CMD_FLAG_NO_HOLE) || !export.zeroes_fast()) {
        return match !request.has(CMD_FLAG_NO_HOLE) && is_zero(disk, offset, len)? {
            true => Ok(()),
            false => Err(Refusal::new(Errno::NotSup, "zeroing that range may be slow").into()),
        };
    }
    match request.has(CMD_FLAG_NO_HOLE) {
        false => disk.zero_at(offset, len)?,
        true => write_zeroes(disk, offset, len)?,
    }
    Ok(())
}

/// Writes zeros as bytes, so that there is space for whatever comes next.
fn write_zeroes(disk: &dyn Disk, offset: u64, len: u64) -> vmwright_disk::Result<()> {
    let mut at = 0;
    while at < len {
        let count = (len - at).min(ZEROES.len() as u64);
        disk.write_at(&ZEROES[..count as usize], offset + at)?;
        at += count;
    }
    Ok(())
}

/// Whether a range is known to be zeros, as far as that is quickly found out.
fn is_zero(disk: &dyn Disk, offset: u64, len: u64) -> vmwright_disk::Result<bool> {
    let end = offset + len;
    let mut at = offset;
    for _ in 0..EXTENTS {
        if at >= end {
            return Ok(true);
        }
        let extent = disk.extent_at(at)?;
        if !extent.is_zero() {
            return Ok(false);
        }
        at = extent.end().max(at + 1);
    }
    Ok(at >= end)
}
