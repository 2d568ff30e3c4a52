//! The NBD server, judged by the clients of others.

#[path = "../../../storage/nbd/tests/client/mod.rs"]
mod client;
mod copying;
mod information;
mod lifetime;
mod requests;
mod strangers;
mod support;
mod tls;
