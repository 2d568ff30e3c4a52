#!/usr/bin/env bash
# The main job, for real: builds a Debian disk, inspects it, changes it, boots it, runs commands in it, and
# shows that nothing is left behind. Prints the time each step took.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
vmwright=$top/target/release/vmwright
cache=$top/target/cache
work=$top/target/demo
export VMWRIGHT_HOME=$work/home
mkdir -p "$cache"
rm -rf "$work"
mkdir -p "$work"
cd "$work"

bold=$(tput bold 2>/dev/null || true)
plain=$(tput sgr0 2>/dev/null || true)
names=()
times=()
now() { date +%s%N; }
step() { names+=("$1"); printf '\n%s── %s%s\n' "$bold" "$1" "$plain"; started=$(now); }
done_step() { times+=($((($(now) - started) / 1000000))); }
# Shows a command as a user would type it, then runs it.
show() {
    local argument line=vmwright
    for argument in "$@"; do
        [[ $argument =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || argument="'${argument//\'/\'\\\'\'}'"
        line+=" $argument"
    done
    printf '%s$ %s%s\n' "$bold" "$line" "$plain"
    "$vmwright" "$@"
}

step "Build a Debian disk (its root from packages, then cached)"
"$top/scripts/build-debian-root.sh" "$cache/debian.tar"
show disk make disk.qcow2 --from "$cache/debian.tar" --size 4G -L debian-root
show guest write disk.qcow2 /etc/fstab --text 'LABEL=debian-root / ext4 errors=remount-ro 0 1'
show disk info disk.qcow2
show fs check disk.qcow2
done_step

step "What is on it?"
show guest inspect disk.qcow2
done_step

step "Change what is inside, in transactions"
show guest write disk.qcow2 /etc/hostname --text vmwright-demo
show guest edit disk.qcow2 /etc/fstab -e 's/errors=/noatime,errors=/'
echo "Written into the disk before it ever ran, at $(date -u +%H:%M:%S) UTC." > note.txt
show guest cp note.txt disk.qcow2:/etc/motd
show guest cat disk.qcow2 /etc/fstab
qemu-img check -q disk.qcow2 && echo "qemu-img check: no errors"
done_step

step "Boot it and run one command; changes are thrown away"
show run disk.qcow2 -- sh -c 'cat /etc/hostname /etc/motd; uname -sr; findmnt -no SOURCE,FSTYPE,OPTIONS /'
done_step

step "Keep a machine: create it, start it, wait until its services run"
show vm create --disk disk.qcow2 --name demo
show vm start demo
show vm exec demo -- sh -c 'until [ -e /run/systemd/private ]; do sleep 0.1; done; systemctl is-system-running --wait'
show vm list
done_step

step "Run commands in it, copy files in and out"
show vm exec demo -- hostname
show vm exec demo -- findmnt -no SOURCE,OPTIONS /
show vm cp note.txt demo:/root/note.txt
show vm exec demo -- sh -c 'sha256sum < /root/note.txt; dmesg > /root/dmesg.txt'
sha256sum < note.txt
show vm cp demo:/root/dmesg.txt dmesg.txt
echo "the guest's kernel log: $(wc -l < dmesg.txt) lines"
done_step

step "Stop it, delete it"
show vm stop demo
show vm delete demo
done_step

step "Nothing is left behind"
show vm list
left=$(pgrep -af -- "$work" | grep -v -e "$0" -e pgrep || true)
sockets=$(find "$work/home" -type s 2>/dev/null || true)
machines=$(find "$work/home" -mindepth 2 -name 'state.json' 2>/dev/null || true)
[ -z "$left$sockets$machines" ] || { echo "left behind: $left $sockets $machines" >&2; exit 1; }
echo "no process, no socket, no machine"
qemu-img check -q disk.qcow2 && echo "qemu-img check: no errors"
done_step

printf '\n%s%-65s %10s%s\n' "$bold" "step" "time" "$plain"
for i in "${!names[@]}"; do
    printf '%-65s %7d.%03d s\n' "${names[$i]}" $((times[i] / 1000)) $((times[i] % 1000))
done
