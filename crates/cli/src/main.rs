//! Opens any virtual-machine disk, rewrites what is inside it, and runs it.

#![forbid(unsafe_code)]
fn main() {}
