#!/usr/bin/env bash
# run.sh: boots the kernels that users have, under qemu without KVM, and checks on each that rimg builds and runs.
#
#   RIMG=BINARY TESTS=DIRECTORY tests/kernels/run.sh [RELEASE…]
#
# RIMG is a static binary. TESTS, if given, holds static test programs of the runner, `sandbox` and `unit`. RELEASES are
# bullseye (5.10), bookworm (6.1), trixie (6.12), sid (the newest) and `systemd`; all by default. Two machines run at a
# time: one processor each. KERNELS=DIRECTORY keeps the kernels between runs.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
# shellcheck source=tests/kernels/machine.sh
. tests/kernels/machine.sh
# shellcheck source=tests/clients/steps.sh
. tests/clients/steps.sh

[ -n "${RIMG:-}" ] || {
    echo "run.sh: set RIMG to the static binary, such as RIMG=\$(./build-static)" >&2
    exit 2
}
RIMG=$(realpath "$RIMG")
KERNELS=${KERNELS:-$PWD/target/kernels}
PEERS_DIR=$(mktemp -d "${TMPDIR:-/tmp}/rimg-kernels.XXXXXX")
# A machine outlives the shell that started it, so it is looked up by its files.
trap 'pkill -KILL -f -- "-initrd $PEERS_DIR/"; rm -rf "$PEERS_DIR"' EXIT
trap 'exit 143' TERM INT HUP

main() {
    local releases=("$@")
    [ "$#" -gt 0 ] || releases=(bullseye bookworm trixie sid systemd)
    need 'the guest' make_guest "$PEERS_DIR/guest"
    local release running=0
    for release in "${releases[@]}"; do
        machine "$release" >"$PEERS_DIR/$release.out" 2>&1 &
        running=$((running + 1))
        [ "$running" -lt 2 ] || {
            wait -n
            running=$((running - 1))
        }
    done
    wait
    for release in "${releases[@]}"; do
        results "$release"
    done
    steps_end
}

# What every machine's disk holds: busybox as the system, rimg, the checks, a base, the tests.
make_guest() {
    local guest=$1 applet
    mkdir -p "$guest"/{bin,sbin,etc,root,tmp,run,var/checks,proc,sys,dev,mnt,home/user,rimg/bin,rimg/tests,rimg/base} || return 1
    chmod 1777 "$guest/var/checks" "$guest/tmp"
    cp /bin/busybox "$guest/bin/busybox" || return 1
    for applet in $(busybox --list | grep -vx busybox); do ln -s busybox "$guest/bin/$applet"; done
    printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n' >"$guest/etc/passwd"
    printf 'root:x:0:\nuser:x:1000:\n' >"$guest/etc/group"
    echo '127.0.0.1 localhost' >"$guest/etc/hosts"
    cp "$RIMG" "$guest/rimg/bin/rimg" || return 1
    cp tests/kernels/guest/machine tests/kernels/guest/checks "$guest/rimg/" || return 1
    [ -z "${TESTS:-}" ] || cp "$TESTS"/* "$guest/rimg/tests/" || return 1
    mkdir -p "$guest"/rimg/base/{bin,etc,tmp,root,proc,sys,dev}
    chmod 1777 "$guest/rimg/base/tmp"
    cp -a "$guest"/bin/. "$guest/rimg/base/bin/"
    cp "$guest"/etc/{passwd,group} "$guest/rimg/base/etc/"
    echo 'FROM ./base' >"$guest/rimg/base.Buildfile"
    make_disk "$PEERS_DIR/disk.img" "$guest"
}

# Debian 13 with systemd: the guest's files on a system made by mmdebstrap.
make_systemd_disk() {
    local root=$PEERS_DIR/systemd version=$1 modules=$2
    mmdebstrap --quiet --variant=minbase \
        --include=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,uidmap,kmod,procps,apparmor,busybox-static \
        trixie "$root" || return 1
    mkdir -p "$root/rimg/base" "$root/usr/lib/modules"
    cp -a "$modules" "$root/usr/lib/modules/$version"
    depmod --basedir "$root" "$version"
    cp -a "$PEERS_DIR"/guest/rimg/. "$root/rimg/"
    install -m 755 tests/kernels/guest/systemd-checks "$root/rimg/systemd-checks"
    mkdir -p "$root/var/checks" && chmod 1777 "$root/var/checks"
    chroot "$root" useradd --create-home --uid 1000 user || return 1
    mkdir -p "$root/var/lib/systemd/linger" && : >"$root/var/lib/systemd/linger/user"
    cat >"$root/etc/systemd/system/checks.service" <<'UNIT' || return 1
[Unit]
After=multi-user.target user@1000.service
[Service]
Type=oneshot
# A container that runs out of memory is one of this service's; without delegation systemd would stop the service.
Delegate=yes
ExecStart=/rimg/systemd-checks
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
UNIT
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../checks.service "$root/etc/systemd/system/multi-user.target.wants/checks.service"
    make_disk "$PEERS_DIR/systemd.img" "$root" || return 1
    rm -rf "$root"
}

machine() {
    local release=$1 kernel=$KERNELS/$1 append=
    if [ "$release" = systemd ]; then
        kernel=$KERNELS/trixie
        tests/kernels/fetch.sh trixie "$kernel" || return 1
        make_systemd_disk "$(cat "$kernel/version")" "$kernel/modules" || return 1
        append='machine=/sbin/init apparmor=1 security=apparmor systemd.mask=serial-getty@ttyS0.service systemd.show_status=0'
    fi
    [ "$release" = systemd ] || tests/kernels/fetch.sh "$release" "$kernel" || return 1
    make_initramfs "$PEERS_DIR/$release.cpio.gz" "$kernel" || return 1
    [ "$release" = systemd ] || cp --sparse=always "$PEERS_DIR/disk.img" "$PEERS_DIR/$release.img"
    MACHINE_APPEND=$append boot "$kernel" "$PEERS_DIR/$release.cpio.gz" "$PEERS_DIR/$release.log" \
        -drive "file=$PEERS_DIR/$release.img,if=virtio,format=raw,cache=unsafe"
    echo "qemu ended with $?"
    rm -f "$PEERS_DIR/$release.img"
}

# A machine's lines, counted like any step. One that did not get to its end is a failure of its own.
results() {
    local release=$1 log=$PEERS_DIR/$1.log line version seconds
    version=$(tr -d '\r' <"$log" 2>/dev/null | sed -n 's/^KERNEL //p')
    printf '\n== %s: Linux %s\n' "$release" "${version:-did not start}"
    while IFS= read -r line; do
        case $line in
        'RESULT ok '*) STEPS_PASSED=$((STEPS_PASSED + 1)) && printf 'ok      %s/%s\n' "$release" "${line#RESULT ok }" ;;
        'RESULT SKIPPED '*) skip "$release/${line#RESULT SKIPPED }" 'said by the test program' ;;
        'RESULT FAILED '*) STEPS_FAILED=$((STEPS_FAILED + 1)) && printf 'FAILED  %s/%s\n' "$release" "${line#RESULT FAILED }" ;;
        '    | '*) printf '    %s\n' "$line" ;;
        esac
    done < <(tr -d '\r' <"$log" 2>/dev/null)
    grep -q '^MACHINE DONE' "$log" 2>/dev/null || {
        STEPS_FAILED=$((STEPS_FAILED + 1))
        printf 'FAILED  %s: the machine did not come to its end\n' "$release"
        tail -n 15 "$PEERS_DIR/$release.out" "$log" 2>/dev/null | cut -c1-300 | sed 's/^/    | /'
    }
}

main "$@"
