//! Answering what is known about a range.

use vmwright_disk::Result;

use crate::Export;
use crate::export::ContextId;
use crate::layout::Descriptor;

/// The most ranges in one answer; the client asks on from where it ends.
const MOST: usize = 32 << 10;
/// The longest range that one descriptor can describe, in whole sectors.
const LONGEST: u64 = u32::MAX as u64 & !511;

/// The statuses of `len` bytes from `offset` on; the last may reach past them, but not past `size`.
pub(crate) fn describe(
    export: &Export,
    context: ContextId,
    (offset, len): (u64, u32),
    one: bool,
    size: u64,
) -> Result<Vec<Descriptor>> {
    let end = offset + u64::from(len);
    let mut found = Vec::new();
    let mut run: Option<(u64, u32)> = None;
    let mut at = offset;
    while at < end && found.len() < MOST {
        let status = match export.status_at(context, at) {
            Ok(status) => status,
            // What is known so far is an answer; asking for the rest will tell.
            Err(_) if run.is_some() => break,
            Err(error) => return Err(error),
        };
        let len = status.len.clamp(1, size.saturating_sub(at).max(1));
        match &mut run {
            Some((run_len, flags)) if *flags == status.flags => *run_len += len,
            Some(_) if one => break,
            _ => {
                push(&mut found, run.replace((len, status.flags)));
            }
        }
        at = at.saturating_add(len);
    }
    if found.len() < MOST {
        push(&mut found, run);
    }
    Ok(fit(found, u64::from(len), one))
}

fn push(found: &mut Vec<(u64, u32)>, run: Option<(u64, u32)>) {
    found.extend(run);
}

/// Cuts ranges to what descriptors can hold, and leaves out those that begin after the range asked for.
fn fit(found: Vec<(u64, u32)>, asked: u64, one: bool) -> Vec<Descriptor> {
    let mut descriptors = Vec::with_capacity(found.len());
    let mut sum = 0;
    for (mut len, flags) in found {
        while len > 0 && sum < asked && descriptors.len() < MOST {
            let part = if one { len.min(asked) } else { len.min(LONGEST) };
            descriptors.push(Descriptor { length: (part as u32).into(), flags: flags.into() });
            if one {
                return descriptors;
            }
            len -= part;
            sum += part;
        }
    }
    descriptors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(found: &[(u64, u32)], asked: u64, one: bool) -> Vec<(u32, u32)> {
        fit(found.to_vec(), asked, one).iter().map(|range| (range.length.get(), range.flags.get())).collect()
    }

    #[test]
    fn a_long_range_is_described_in_parts() {
        let long = 5 << 30;
        assert_eq!(lengths(&[(long, 3)], 1 << 20, false), [(LONGEST as u32, 3)]);
        let rest = (long - LONGEST) as u32;
        assert_eq!(lengths(&[(long, 3)], u64::from(u32::MAX), false), [(LONGEST as u32, 3), (rest, 3)]);
    }

    #[test]
    fn one_range_never_exceeds_what_was_asked() {
        assert_eq!(lengths(&[(5 << 30, 3)], 1000, true), [(1000, 3)]);
        assert_eq!(lengths(&[(512, 0), (512, 3)], 1000, true), [(512, 0)]);
    }

    #[test]
    fn only_the_last_range_reaches_past_what_was_asked() {
        assert_eq!(lengths(&[(512, 0), (4096, 3)], 1000, false), [(512, 0), (4096, 3)]);
        assert_eq!(lengths(&[(512, 0), (4096, 3), (512, 0)], 1000, false), [(512, 0), (4096, 3)]);
    }
}
