//! Disks and hosts that fail, for tests; with feature `test-util`.
//!
//! - [`FaultDisk`] fails, tears or drops the n-th change of any disk.
//! - [`VolatileDisk`] forgets what was not flushed, as a medium with a write cache does when power is lost.

mod disk;
mod loss;
mod volatile;

pub use disk::{Fault, FaultDisk};
pub use loss::Loss;
pub use volatile::VolatileDisk;
