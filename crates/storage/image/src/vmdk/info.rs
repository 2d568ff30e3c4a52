//! What is known of an image, as `qemu-img info` says it.

use std::sync::atomic::Ordering;

use vmwright_disk::Disk;

use super::descriptor::{Descriptor, NO_PARENT};
use super::layout::SECTOR;
use super::open::Main;
use super::{Extent, Vmdk};
use crate::info::{FormatInfo, ImageInfo, VmdkExtentInfo, VmdkInfo};
use crate::{Format, Result, allocated};

/// Describes an image of which only the first file is at hand.
pub(super) fn describe(file: &dyn Disk, main: &Main) -> Result<ImageInfo> {
    let empty = Descriptor::default();
    let descriptor = main.descriptor().unwrap_or(&empty);
    let whole = |sectors: u64, grain: u64, compressed: bool| {
        let filename = descriptor.extents.first().and_then(|line| line.name.clone()).unwrap_or_default();
        let virtual_size = sectors * SECTOR;
        let cluster_size = Some(grain * SECTOR);
        let extent =
            VmdkExtentInfo { compressed, virtual_size, filename, cluster_size, format: String::new() };
        (virtual_size, vec![extent])
    };
    let (mut unclean, mut create_type) = (false, descriptor.create_type.clone().unwrap_or_default());
    let (virtual_size, extents) = match main {
        Main::Text { descriptor, .. } => {
            let extent = |line: &super::descriptor::ExtentLine| VmdkExtentInfo {
                compressed: false,
                virtual_size: line.sectors * SECTOR,
                filename: line.name.clone().unwrap_or_default(),
                cluster_size: None,
                format: line.kind.name().to_owned(),
            };
            (descriptor.disk_len(), descriptor.extents.iter().map(extent).collect())
        }
        Main::Hosted { header, .. } => {
            unclean = header.unclean;
            // As QEMU: the header decides, not what the text says.
            create_type = if header.compressed { "streamOptimized" } else { "monolithicSparse" }.to_owned();
            whole(header.capacity, header.grain, header.compressed)
        }
        Main::Cowd(header) => {
            unclean = header.unclean;
            whole(header.capacity, header.grain, false)
        }
    };
    let mut info = ImageInfo::new(Format::Vmdk, virtual_size, allocated(file)?);
    info.cluster_size = common_grain(extents.iter().map(|extent| extent.cluster_size));
    info.dirty_flag = unclean;
    if descriptor.has_parent() {
        info.backing_filename = descriptor.hint.clone();
        info.backing_filename_format = Some("vmdk".to_owned());
    }
    info.format_specific = Some(FormatInfo::Vmdk(VmdkInfo {
        cid: descriptor.cid().unwrap_or(0),
        parent_cid: descriptor.parent_cid().unwrap_or(NO_PARENT),
        create_type,
        extents,
    }));
    Ok(info)
}

/// The length of a grain, where all extents are sparse and agree.
pub(super) fn common_grain(mut grains: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    let first = grains.next()??;
    grains.all(|grain| grain == Some(first)).then_some(first)
}

impl Vmdk {
    /// Describes the image with all its files.
    pub(super) fn describe(&self) -> Result<ImageInfo> {
        let mut info = describe(&*self.file, &super::open::read_main(&*self.file)?)?;
        let Some(FormatInfo::Vmdk(specific)) = &mut info.format_specific else { return Ok(info) };
        let mut end = self.len.load(Ordering::Acquire);
        for (extent, known) in self.extents.iter().zip(&mut specific.extents).rev() {
            known.cluster_size = extent.sparse().map(|sparse| sparse.grain);
            known.compressed = extent.sparse().is_some_and(|sparse| sparse.packed.is_some());
            known.virtual_size = end - extent.start;
            end = extent.start;
            if let Some(sparse) = extent.sparse() {
                info.dirty_flag |= sparse.read_state().header.is_some_and(|header| header.unclean);
            }
        }
        let grains = self.extents.iter().map(|extent| extent.sparse().map(|sparse| sparse.grain));
        info.cluster_size = common_grain(grains);
        let others = self.extents.iter().filter_map(Extent::file);
        for file in others.filter(|file| !std::sync::Arc::ptr_eq(file, &self.file)) {
            info.actual_size += allocated(&**file)?;
        }
        Ok(info)
    }
}
