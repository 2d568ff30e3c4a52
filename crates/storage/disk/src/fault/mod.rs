//! Disks and hosts that fail, for tests; with feature `test-util`.
//!
//! - [`FaultDisk`] fails, tears or drops the n-th change of any disk.
//! - [`SimHost`] is a host filesystem in memory beneath transactions, with crashes and failing calls.
//! - [`VolatileDisk`] forgets what was not flushed, as a medium with a write cache does when power is lost.

mod disk;
mod loss;
mod redo;
mod sim;
mod volatile;

pub use disk::{Fault, FaultDisk};
pub use loss::Loss;
pub use redo::check_redo;
pub use sim::{SimFault, SimHost};
pub use volatile::VolatileDisk;
