#!/usr/bin/env bash
# Builds a Debian root with a kernel as a tar file, unless it is there already.
#   usage: build-debian-root.sh TAR
set -euo pipefail

tar=${1:?usage: $0 TAR}
packages=systemd-sysv,dbus,linux-image-cloud-amd64,openssh-server,cloud-init,iproute2,netbase,attr,acl,python3-minimal

[ -f "$tar" ] && exit 0
mkdir -p "$(dirname "$tar")"
partial=$tar.part.tar
mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$partial"
mv "$partial" "$tar"
