//! Listeners and TLS for the services of vmwright.
#![forbid(unsafe_code)]
