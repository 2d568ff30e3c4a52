//! What SIGINT, SIGTERM and SIGHUP do to long work: it ends in order.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A flag that the first signal sets; the second ends the program at once.
pub(crate) fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let fail = "cannot wait for signals";
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, flag.clone()).context(fail)?;
        signal_hook::flag::register(signal, flag.clone()).context(fail)?;
    }
    Ok(flag)
}

/// Calls `stop` from another thread on every signal.
pub(crate) fn on_each(stop: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot wait for signals")?;
    std::thread::spawn(move || signals.forever().for_each(|_| stop()));
    Ok(())
}
