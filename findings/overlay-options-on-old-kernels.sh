#!/usr/bin/env bash
# Finding: what an overlay context answers to options that the kernel does not know.
#
# Versions: Debian's linux-image-cloud-amd64 5.10.0-32 (bullseye), 6.1.0-50 (bookworm), 6.12.117 (trixie), 7.2.13 (sid).
# Behaviour: before Linux 6.7, fsconfig(FSCONFIG_SET_STRING, "lowerdir+") on a context of fsopen("overlay") answers 0, any
#   number of times, because overlayfs still uses the kernel's compatibility layer, which collects strings without a
#   look at them. Only FSCONFIG_CMD_CREATE fails, with EINVAL, as it does for any other mistake. A layer given by
#   descriptor is refused at once, but differently: EOPNOTSUPP on 5.10 and 6.1, and on 6.12 EBADF if the descriptor was
#   opened with O_PATH, EINVAL if it was opened for reading.
# Why it matters: a program that falls back on EINVAL of the first call alone never falls back on a released Debian.
# shellcheck source=findings/kernels.bash
. "$(dirname "$0")/kernels.bash"

compile <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
enum { SET_STRING = 1, SET_FD = 5, CREATE = 6 };
static const char *answer(long result) { return result < 0 ? strerrorname_np(errno) : "0"; }
static long configure(int context, int command, const char *value, int fd) {
    return syscall(431, context, command, command == CREATE ? NULL : "lowerdir+", value, fd);
}
static int context(void) { return syscall(430, "overlay", 1); }
int main(void) {
    mkdir("/m", 0755);
    mount("tmpfs", "/m", "tmpfs", 0, NULL);
    mkdir("/m/a", 0755);
    mkdir("/m/b", 0755);
    int strings = context();
    const char *first = answer(configure(strings, SET_STRING, "/m/a", 0));
    const char *second = answer(configure(strings, SET_STRING, "/m/b", 0));
    const char *create = answer(configure(strings, CREATE, NULL, 0));
    const char *path = answer(configure(context(), SET_FD, NULL, open("/m/a", O_PATH | O_DIRECTORY)));
    const char *read = answer(configure(context(), SET_FD, NULL, open("/m/a", O_RDONLY | O_DIRECTORY)));
    printf("SEEN string %s %s create %s O_PATH %s O_RDONLY %s\n", first, second, create, path, read);
    fflush(stdout);
    reboot(RB_POWER_OFF);
}
C
expect bullseye 'string 0 0 create EINVAL O_PATH EOPNOTSUPP O_RDONLY EOPNOTSUPP'
expect bookworm 'string 0 0 create EINVAL O_PATH EOPNOTSUPP O_RDONLY EOPNOTSUPP'
expect trixie 'string 0 0 create 0 O_PATH EBADF O_RDONLY EINVAL'
expect sid 'string 0 0 create 0 O_PATH 0 O_RDONLY 0'
finish
