//! Builds the agent as a static program and puts it where the library embeds it from.

#![allow(clippy::print_stdout, clippy::panic, reason = "how a build script talks to cargo")]

use std::path::{Path, PathBuf};
use std::process::Command;

const MUSL: &str = "x86_64-unknown-linux-musl";
const GLIBC: &str = "x86_64-unknown-linux-gnu";
/// A static program needs no relocation of its own either, which makes it smaller.
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";
const PROFILE: &str = "agent";
/// What the outer build may have set for itself; clippy and coverage tools come in by these.
const FOREIGN: [&str; 6] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
];

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    for path in ["../agent/src", "../agent/Cargo.toml", "../agent-proto/src", "../agent-proto/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", here.join(path).display());
    }
    println!("cargo::rerun-if-changed={}", here.join("../../../Cargo.lock").display());
    println!("cargo::rerun-if-changed=build.rs");

    let target = if is_installed(MUSL) { MUSL } else { GLIBC };
    let folder = out.join("agent-target");
    // What the outer build needed is here already; only a build of this crate alone may have to fetch more.
    let built = build(&here, &folder, target, true) || build(&here, &folder, target, false);
    assert!(built, "the agent does not build; it needs libc.a (Debian: libc6-dev) or the target {MUSL}");
    let program = folder.join(target).join(PROFILE).join("vmwright-agent");
    std::fs::copy(&program, out.join("vmwright-agent"))
        .unwrap_or_else(|error| panic!("cannot copy {}: {error}", program.display()));
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn is_installed(target: &str) -> bool {
    let rustc =
        Command::new(variable("RUSTC")).args(["--print", "target-libdir", "--target", target]).output();
    rustc.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

fn build(here: &Path, folder: &Path, target: &str, offline: bool) -> bool {
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--quiet", "--bin", "vmwright-agent", "--profile", PROFILE, "--target", target]);
    cargo.arg("--manifest-path").arg(here.join("../agent/Cargo.toml"));
    cargo.arg("--target-dir").arg(folder);
    if offline {
        cargo.arg("--offline");
    }
    for name in FOREIGN {
        cargo.env_remove(name);
    }
    cargo.env("RUSTFLAGS", FLAGS);
    cargo.status().is_ok_and(|status| status.success())
}
