use std::sync::Arc;

use super::{RecordKind, Redo};
use crate::runs::{Runs, Source};
use crate::{HostFile, Overlay, Result};

/// File number `index` of the redo as it will be once the redo is applied, to be read only.
pub(crate) fn view(redo: &Redo, index: usize, file: Arc<HostFile>) -> Result<Overlay> {
    let mut runs = Runs::default();
    redo.for_each_chunk(&mut |chunk| {
        for item in chunk.items().filter(|_| chunk.file == index) {
            let (start, end) = (item.record.start, item.record.end());
            match item.record.kind {
                RecordKind::Write => runs.insert(start, end, Source::Stored(item.data_position)),
                RecordKind::Zero => runs.insert(start, end, Source::Zero),
                RecordKind::Cut => {}
            }
        }
        Ok(())
    })?;
    Ok(Overlay::view(file, redo.entries[index].new_len, runs, redo.handle()))
}
