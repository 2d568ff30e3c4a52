//! The static program that runs inside a guest.

fn main() {}
