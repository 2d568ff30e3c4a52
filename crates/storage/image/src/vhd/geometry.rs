//! Cylinders, heads and sectors, and which of two sizes is the size of the disk.

use super::layout::{Footer, MAX_SIZE};
use crate::{Error, Result};

/// The geometry of a disk as the footer says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) cylinders: u16,
    pub(super) heads: u8,
    pub(super) sectors: u8,
}

impl Geometry {
    /// The largest that there is; a disk that has it may be larger.
    pub(super) const MAX: Self = Self { cylinders: 65535, heads: 16, sectors: 255 };

    /// The size that it makes, in bytes.
    pub(super) fn size(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors) * 512
    }

    /// The geometry for a size as the appendix of the specification computes it; makes at most that size.
    pub(super) fn of(size: u64) -> Self {
        let total = (size / 512).min(65535 * 16 * 255);
        let (heads, sectors, cylinders_by_heads);
        if total >= 65535 * 16 * 63 {
            (heads, sectors, cylinders_by_heads) = (16, 255, total / 255);
        } else {
            let by_17 = total / 17;
            let few = by_17.div_ceil(1024).max(4);
            if by_17 < few * 1024 && few <= 16 {
                (heads, sectors, cylinders_by_heads) = (few, 17, by_17);
            } else if total / 31 < 16 * 1024 {
                (heads, sectors, cylinders_by_heads) = (16, 31, total / 31);
            } else {
                (heads, sectors, cylinders_by_heads) = (16, 63, total / 63);
            }
        }
        let cylinders = (cylinders_by_heads / heads).min(65535) as u16;
        Self { cylinders, heads: heads as u8, sectors: sectors as u8 }
    }

    /// The smallest geometry of that kind that makes at least this size, if there is one.
    pub(super) fn covering(size: u64) -> Option<Self> {
        if size > Self::MAX.size() {
            return None;
        }
        let mut asked = size;
        // A geometry leaves out less than one cylinder, so a few steps are enough.
        while asked <= size.saturating_add(2 * 16 * 255 * 512) {
            let geometry = Self::of(asked);
            if geometry.size() >= size {
                return Some(geometry);
            }
            asked += 512;
        }
        Some(Self::MAX)
    }
}

/// Which field says the size of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SizeBy {
    /// The geometry, as Virtual PC counts.
    Geometry,
    /// The field for the current size.
    Field,
}

impl SizeBy {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Geometry => "geometry",
            Self::Field => "current-size",
        }
    }
}

/// The programs for which the geometry is the size.
const BY_GEOMETRY: [&[u8; 4]; 3] = [b"vpc ", b"vs  ", b"qemu"];

/// Whether the geometry is the size for this program.
pub(super) fn is_by_geometry(creator: [u8; 4]) -> bool {
    BY_GEOMETRY.iter().any(|known| **known == creator)
}

/// The size of the disk in bytes, and which field said so.
pub(super) fn size(footer: &Footer) -> Result<(u64, SizeBy)> {
    let geometry = footer.geometry();
    let by = match is_by_geometry(footer.creator()) {
        true if geometry != Geometry::MAX && geometry.size() > 0 => SizeBy::Geometry,
        _ => SizeBy::Field,
    };
    let size = match by {
        SizeBy::Geometry => geometry.size(),
        // What is no whole sector cannot be read as one.
        SizeBy::Field => footer.current_size() / 512 * 512,
    };
    match size > MAX_SIZE {
        true => Err(Error::corrupt("the size of the disk", 48, "at most 2040 GiB", size)),
        false => Ok((size, by)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_geometry_is_that_of_the_specification() {
        // As qemu-img makes them for 1 GiB and for 130 GiB.
        assert_eq!(Geometry::of(1 << 30), Geometry { cylinders: 2080, heads: 16, sectors: 63 });
        assert_eq!(Geometry::of(130 << 30), Geometry::MAX);
        assert!(Geometry::of(0).size() == 0);
    }

    #[test]
    fn a_covering_geometry_is_never_too_small() {
        for size in (0..2000u64).map(|n| n * n * 512).chain([1 << 30, 33 << 30, 127 << 30]) {
            if let Some(geometry) = Geometry::covering(size) {
                assert!(geometry.size() >= size, "{size}: {geometry:?}");
                assert!(geometry.size() <= size + 2 * 16 * 255 * 512, "{size}: {geometry:?}");
            }
        }
        assert_eq!(Geometry::covering(Geometry::MAX.size() + 1), None);
    }
}
