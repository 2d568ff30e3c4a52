//! Gates, benchmarks and test images of this repository.

fn main() {}
