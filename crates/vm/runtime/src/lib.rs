//! The life of a virtual machine: state, shim, agent sessions, recovery.
