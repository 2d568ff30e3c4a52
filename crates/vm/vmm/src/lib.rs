//! One interface over virtual machine monitors.
