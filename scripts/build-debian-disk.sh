#!/usr/bin/env bash
# Builds a partitioned qcow2 disk out of a root's tar file, with the distribution's own tools: GPT with a BIOS
# boot partition, an ext4 root labelled "debian-root", and swap.
#   usage: build-debian-disk.sh TAR DISK.qcow2 [SIZE_MIB]
set -euo pipefail

tar=$(realpath "${1:?usage: $0 TAR DISK [SIZE_MIB]}")
disk=$(realpath -m "${2:?usage: $0 TAR DISK [SIZE_MIB]}")
size=${3:-4096}
swap=64
root_uuid=5e2f4a9c-1b77-4d0e-9a53-0c6d8e21f7b4
root_start=2
root_size=$((size - root_start - swap - 1))
# mke2fs and sfdisk live where an ordinary user's PATH may not reach.
PATH=$PATH:/usr/sbin:/sbin

# Without root, owners and devices exist only in fakeroot's imagination, which mke2fs shares.
if [ "$(id -u)" -ne 0 ] && [ -z "${FAKEROOTKEY:-}" ]; then
    exec fakeroot -- "$0" "$tar" "$disk" "$size"
fi

work=$(mktemp -d "$(dirname "$disk")/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
tar -xf "$tar" -C "$work/root" --xattrs --xattrs-include='*'
printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$root_uuid" > "$work/root/etc/fstab"
echo debian > "$work/root/etc/hostname"

truncate -s "${size}M" "$work/disk.raw"
sfdisk --quiet "$work/disk.raw" <<LAYOUT
label: gpt
start=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649, name="bios"
start=${root_start}MiB, size=${root_size}MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name="root"
start=$((root_start + root_size))MiB, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, name="swap"
LAYOUT
mke2fs -q -t ext4 -U "$root_uuid" -L debian-root -d "$work/root" \
    -E offset=$((root_start << 20)) "$work/disk.raw" "${root_size}M"
truncate -s "${swap}M" "$work/swap"
mkswap "$work/swap" > /dev/null
dd if="$work/swap" of="$work/disk.raw" bs=1M seek=$((root_start + root_size)) conv=notrunc,sparse status=none
qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
mv "$work/disk.qcow2" "$disk"
