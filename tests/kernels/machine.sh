# shellcheck shell=bash
# Sourced: machines of other kernels under qemu without KVM.
#
#   make_disk FILE DIRECTORY          an ext4 image with DIRECTORY's content
#   make_initramfs FILE KERNEL        busybox, the modules a small machine needs, guest/init
#   boot KERNEL INITRAMFS LOG [QEMU ARGUMENT…]   runs until the machine powers itself off
#   boot_program KERNEL PROGRAM LOG   the same with one static program as all there is

KERNELS_HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# What a small machine needs beyond what Debian's cloud kernels have built in; the rest is loaded on demand on a real
# machine. A name that a kernel does not have as a module is built in, or is not there.
MACHINE_MODULES=(virtio_pci virtio_blk crc32c_generic crc32c-intel ext4 overlay inet_diag tcp_diag unix_diag)

# no_timer_check: on a loaded host the emulated timer is late, and the kernel takes it for broken. With one processor: with two, under emulation, a 7.2 kernel crashed while it patched its own code.
MACHINE_SECONDS_MAX=${MACHINE_SECONDS_MAX:-1500}

make_disk() {
    local file=$1 directory=$2
    rm -f "$file"
    truncate -s 3G "$file"
    mke2fs -q -t ext4 -d "$directory" "$file"
}

make_initramfs() {
    local file=$1 kernel=$2 tree version
    version=$(cat "$kernel/version")
    tree=$(mktemp -d)
    mkdir -p "$tree/root/bin" "$tree/root/modules" "$tree/depmod/lib/modules"
    cp -a "$kernel/modules" "$tree/depmod/lib/modules/$version"
    # From Linux 7 on the list of what is built in lies in another package; nothing here needs it.
    depmod --basedir "$tree/depmod" "$version" 2>/dev/null
    local count=0 name module paths
    for name in "${MACHINE_MODULES[@]}"; do
        paths=$(modprobe --dirname "$tree/depmod" --set-version "$version" --show-depends "$name" 2>/dev/null |
            sed -n 's/^insmod \([^ ]*\).*/\1/p')
        for module in $paths; do
            ! grep -qxF "$module" "$tree/seen" 2>/dev/null || continue
            echo "$module" >>"$tree/seen"
            count=$((count + 1))
            unpacked "$module" >"$(printf '%s/root/modules/%03d.ko' "$tree" "$count")"
        done
    done
    cp /bin/busybox "$tree/root/bin/busybox"
    ln -s busybox "$tree/root/bin/sh"
    cp "$KERNELS_HERE/guest/init" "$tree/root/init"
    (cd "$tree/root" && find . | cpio --quiet -o -H newc) | gzip -1 >"$file"
    rm -rf "$tree"
}

unpacked() {
    case $1 in
    *.xz) xz -dc "$1" ;;
    *.zst) zstd -qdc "$1" ;;
    *) cat "$1" ;;
    esac
}

boot() {
    local kernel=$1 initramfs=$2 log=$3
    shift 3
    timeout "$MACHINE_SECONDS_MAX" qemu-system-x86_64 -accel tcg -cpu max -smp 1 -m "${MACHINE_MEMORY:-1200}" \
        -nodefaults -no-reboot -display none -serial stdio -kernel "$kernel/vmlinuz" -initrd "$initramfs" \
        -append "console=ttyS0 quiet loglevel=3 panic=-1 no_timer_check ${MACHINE_APPEND:-}" "$@" </dev/null >"$log" 2>&1
}

# boot_program KERNEL PROGRAM LOG: runs one static program as process 1, with the overlay module loaded. It powers off.
boot_program() {
    local kernel=$1 program=$2 log=$3 tree
    tree=$(mktemp -d)
    local MACHINE_MODULES=(overlay)
    make_initramfs "$tree/base.gz" "$kernel"
    mkdir "$tree/root"
    (cd "$tree/root" && gzip -dc "$tree/base.gz" | cpio --quiet -idm)
    cp "$program" "$tree/root/program"
    # shellcheck disable=SC2016  # for the shell of the machine
    printf '#!/bin/sh\nfor module in /modules/*.ko; do /bin/busybox insmod "$module"; done\nexec /program\n' >"$tree/root/init"
    (cd "$tree/root" && find . | cpio --quiet -o -H newc) | gzip -1 >"$tree/with.gz"
    boot "$kernel" "$tree/with.gz" "$log"
    rm -rf "$tree"
}
