//! Comparing the copies of the footer, and looking over the table.

use vmwright_disk::Disk;

use super::layout::{FOOTER, Footer};
use super::open::{self, Ends};
use crate::Result;
use crate::blocks::scan;
use crate::info::{CheckReport, Repair};

/// Checks an image of fixed size.
pub(super) fn fixed(file: &dyn Disk, repair: bool) -> Result<CheckReport> {
    let ends = open::read_ends(file, true)?;
    let mut report = CheckReport { image_end_offset: Some(file.len()), ..CheckReport::default() };
    if ends.end_is_lost() {
        report.findings.push("the checksum of the footer is wrong".into());
        match repair {
            true => {
                file.write_at(&ends.footer.encode(), ends.end_at)?;
                report.corruptions_fixed += 1;
            }
            false => report.corruptions += 1,
        }
    }
    if ends.size < ends.end_at {
        let bytes = ends.end_at - ends.size;
        report.findings.push(format!("{bytes} bytes between the end of the disk and the footer"));
    }
    Ok(report)
}

/// Checks a dynamic or differencing image as it stands in the file.
pub(super) fn dynamic(file: &dyn Disk, lenient: bool, repair: Repair) -> Result<CheckReport> {
    let ends = open::read_ends(file, lenient)?;
    let header = open::read_header(file, &ends.footer, lenient)?;
    let shape = open::shape(&header);
    let map = open::read_map(file, &ends.footer, &header, ends.size)?;
    let found = scan(file, &shape, &map);
    let mut report = CheckReport {
        image_end_offset: Some(map.end + FOOTER),
        total_clusters: Some(ends.size.div_ceil(shape.block_size)),
        allocated_clusters: Some(found.allocated),
        fragmented_clusters: Some(found.fragmented),
        corruptions: found.damages,
        findings: found.findings,
        ..CheckReport::default()
    };
    let safe = found.damages == 0;
    if !header.is_sound() {
        let at = ends.footer.data_offset();
        let repaired = repair == Repair::All && safe;
        if repaired {
            file.write_at(&header.encode(), at)?;
        }
        report.note("the checksum of the dynamic header is wrong".into(), repaired);
    }
    footers(file, &ends, &mut report, repair == Repair::All && safe)?;
    // A copy of the footer that is lost leaves the other; and a crash may leave places that no block has.
    let extra = file.len().saturating_sub(map.end + FOOTER);
    if ends.end_is_lost() || extra > 0 {
        report.findings.push(match ends.end_is_lost() {
            true => "the footer at the end is damaged or missing; its copy at the head counts".into(),
            false => format!("{extra} bytes at the end belong to no block"),
        });
        let lost = extra.div_ceil(shape.stride()).max(1);
        if repair == Repair::Nothing || !safe {
            report.leaks += lost;
        } else {
            file.write_at(&ends.footer.encode(), map.end)?;
            file.flush()?;
            file.set_len(map.end + FOOTER)?;
            report.leaks_fixed += lost;
        }
    }
    Ok(report)
}

/// The copies must be sound and say the same.
fn footers(file: &dyn Disk, ends: &Ends, report: &mut CheckReport, repair: bool) -> Result<()> {
    let sound = |found: &Result<Footer>| found.as_ref().ok().filter(|footer| footer.is_sound()).cloned();
    let (head, end) = (ends.head.as_ref().and_then(sound), sound(&ends.end));
    if head.is_none() {
        if repair {
            file.write_at(&ends.footer.encode(), 0)?;
        }
        report.note("the copy of the footer at the head is damaged".into(), repair);
    }
    if let (Some(head), Some(end)) = (head, end)
        && !head.says_same(&end)
    {
        let text = "the footer at the end says something else than its copy at the head, which counts";
        if repair {
            file.write_at(&ends.footer.encode(), ends.end_at)?;
        }
        report.note(text.into(), repair);
    }
    Ok(())
}

impl CheckReport {
    /// Notes a damage, which may be repaired already.
    fn note(&mut self, finding: String, repaired: bool) {
        self.findings.push(finding);
        match repaired {
            true => self.corruptions_fixed += 1,
            false => self.corruptions += 1,
        }
    }
}
