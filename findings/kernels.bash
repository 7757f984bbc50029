# shellcheck shell=bash
# Sourced by the findings about kernels: boots a static C program as process 1 of Debian's kernels under qemu and compares
# the one line that it prints after SEEN. Needs gcc, qemu-system-x86, kmod, cpio, busybox-static, xz-utils. With
# KERNELS=DIRECTORY the downloaded kernels are kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/kernels/machine.sh
. tests/kernels/machine.sh
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
changed=0

# compile: the probe, from standard input.
compile() {
    cat >"$scratch/probe.c"
    gcc -static -O1 -o "$scratch/probe" "$scratch/probe.c"
}

# expect RELEASE TEXT: the probe on that release's kernel.
expect() {
    local release=$1 expected=$2 kernel=${KERNELS:-$scratch/kernels}/$1 seen
    tests/kernels/fetch.sh "$release" "$kernel" >"$scratch/fetch.log" 2>&1
    boot_program "$kernel" "$scratch/probe" "$scratch/$release.log"
    seen=$(tr -d '\r' <"$scratch/$release.log" | sed -n 's/^SEEN //p')
    printf '%-26s %s\n' "$(cat "$kernel/version")" "$seen"
    [ "$seen" = "$expected" ] || {
        printf 'changed: expected %s\n' "$expected"
        changed=1
    }
}

finish() {
    exit "$changed"
}
