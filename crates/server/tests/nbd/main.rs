//! The NBD server, judged by the clients of others.

mod copying;
mod support;
