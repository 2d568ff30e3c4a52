//! The NBD protocol over any transport.
#![forbid(unsafe_code)]
