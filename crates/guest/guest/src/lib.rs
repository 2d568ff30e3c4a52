//! Opens the operating system on a disk, inspects it and edits it.
#![forbid(unsafe_code)]
