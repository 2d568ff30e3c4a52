#!/usr/bin/env bash
# Installs the Debian packages that the demo or the tests need, and only those that are missing.
#   usage: install-packages.sh demo|test
set -euo pipefail

demo=(mmdebstrap qemu-system-x86 qemu-utils e2fsprogs fdisk jq gcc libc6-dev fakeroot)
test=("${demo[@]}" gdisk cpio zstd attr acl binutils libnbd-bin cryptsetup-bin openssl xz-utils)

case "${1:-}" in
    demo) wanted=("${demo[@]}") ;;
    test) wanted=("${test[@]}") ;;
    *) echo "usage: $0 demo|test" >&2; exit 2 ;;
esac

list_missing() {
    missing=()
    for package in "${wanted[@]}"; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || missing+=("$package")
    done
}

list_missing
[ ${#missing[@]} -eq 0 ] && exit 0
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "As root, run: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
"${as_root[@]}" apt-get update -qq
# Installing one package may remove another that came from elsewhere (QEMU's tools of another version do
# that), so look once more.
for _ in 1 2; do
    list_missing
    [ ${#missing[@]} -eq 0 ] && exit 0
    echo "Installing: ${missing[*]}"
    for package in "${missing[@]}"; do
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null
    done
done
list_missing
[ ${#missing[@]} -eq 0 ] || { echo "Cannot install: ${missing[*]}" >&2; exit 1; }
