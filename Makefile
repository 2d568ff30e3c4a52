# Two commands do all the set-up on a fresh Debian or Ubuntu with a Rust toolchain:
#   make demo   builds a Debian disk, inspects it, changes it, boots it, runs a command in it
#   make test   installs what the tests need and passes every gate
.PHONY: demo test build bench setup-demo setup-test

demo: setup-demo build
	@demo/run.sh

test: setup-test
	cargo xtask corpus
	cargo xtask check

build:
	cargo build --release --locked --bin vmwright

bench: setup-test build
	cargo xtask bench

setup-demo:
	@scripts/install-packages.sh demo

setup-test:
	@scripts/install-packages.sh test
