#!/usr/bin/env bash
# Finding: the new mount interface takes fewer overlay layers in one string than the old one.
#
# Versions: Debian's linux-image-cloud-amd64 6.1.0-50 (bookworm) and 7.2.13 (sid).
# Behaviour: fsconfig(FSCONFIG_SET_STRING, "lowerdir", …) refuses a value of 256 bytes or more with EINVAL, whatever its
#   content; mount(2) takes the same lowerdir up to a page. Kernels before 6.7 have no other way to name layers through
#   fsconfig, so a program has to go back to mount(2) for a fourth layer whose path holds a digest.
# Why it matters: a runner that moves to fsopen and keeps "lowerdir=a:b:c" works in tests with short paths and fails on
#   real images, on every kernel.
# shellcheck source=findings/kernels.bash
. "$(dirname "$0")/kernels.bash"

compile <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
static const char *answer(long result) { return result < 0 ? strerrorname_np(errno) : "0"; }
static char layers[1024];
static void with_length(size_t length) { /* /m/a:/m/b:/m/////b with as many slashes as it takes */
    memset(layers, '/', sizeof layers);
    memcpy(layers, "/m/a:/m", 7);
    layers[length - 1] = 'b';
    layers[length] = 0;
}
static const char *by_fsconfig(size_t length) {
    int context = syscall(430, "overlay", 0);
    with_length(length);
    const char *result = answer(syscall(431, context, 1, "lowerdir", layers, 0));
    close(context);
    return result;
}
int main(void) {
    mkdir("/m", 0755);
    mount("tmpfs", "/m", "tmpfs", 0, NULL);
    mkdir("/m/a", 0755);
    mkdir("/m/b", 0755);
    mkdir("/m/o", 0755);
    printf("SEEN fsconfig 255: %s", by_fsconfig(255));
    printf(" 256: %s", by_fsconfig(256));
    char options[1100];
    with_length(1000);
    snprintf(options, sizeof options, "lowerdir=%s", layers);
    printf(" mount 1000: %s\n", answer(mount("overlay", "/m/o", "overlay", 0, options)));
    fflush(stdout);
    reboot(RB_POWER_OFF);
}
C

expect bookworm 'fsconfig 255: 0 256: EINVAL mount 1000: 0'
expect sid 'fsconfig 255: 0 256: EINVAL mount 1000: 0'
finish
