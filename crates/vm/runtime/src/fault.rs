//! Points at which a test lets a process die, as if somebody had sent it SIGKILL just then.

/// The names of all points, in the order in which a VM's life passes them.
#[cfg(feature = "test-util")]
pub const POINTS: &[&str] = &[
    "create.recorded",
    "create.directory",
    "create.disk",
    "create.done",
    "start.intended",
    "start.locked",
    "start.launch-written",
    "start.spawned",
    "shim.noted",
    "shim.listening",
    "shim.launched",
    "shim.recorded",
    "shim.answered",
    "start.ready",
    "start.done",
    "stop.intended",
    "shim.stopping",
    "shim.ended",
    "shim.exit-written",
    "shim.sockets-removed",
    "shim.cleaned",
    "stop.stopped",
    "stop.done",
    "delete.intended",
    "delete.locked",
    "delete.directory",
    "delete.done",
];

/// The variable that names the point at which to die.
#[cfg(feature = "test-util")]
pub const VARIABLE: &str = "VMWRIGHT_FAULT";

/// Dies here, if a test wants it to. Without the feature `test-util` there is nothing here.
#[inline]
pub(crate) fn point(name: &'static str) {
    #[cfg(feature = "test-util")]
    {
        debug_assert!(POINTS.contains(&name), "{name}");
        if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == name) {
            // It does not return where it succeeds, and it cannot fail for the caller itself.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
    let _ = name;
}
