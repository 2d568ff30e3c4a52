//! Kernels, modules and initramfs out of a guest's own disk.
#![forbid(unsafe_code)]
