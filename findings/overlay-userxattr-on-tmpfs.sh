#!/usr/bin/env bash
# Finding: an overlay for ordinary users on tmpfs mounts on Linux 6.1 and then cannot remove directories.
#
# Versions: Debian's linux-image-cloud-amd64 6.1.0-50 (bookworm) against 6.12.117 (trixie).
# Behaviour: mount("overlay", …, "lowerdir=…,upperdir=…,workdir=…,userxattr") with all of them on tmpfs succeeds, and so
#   does unlinking a file of the lower layer. rmdir of the directory, emptied so, fails with EIO: overlayfs has to mark
#   what it puts in its place as opaque by user.overlay.opaque, and tmpfs has no user attributes before Linux 6.6. The
#   kernel falls back at mount time for index= and metacopy=, and says nothing of this. On 6.12 everything works.
# Why it matters: "rm -r" inside a container or a build step fails in the middle where the storage lies on tmpfs, as on
#   many build machines.
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
#include <sys/xattr.h>
#include <unistd.h>
static const char *answer(long result) { return result < 0 ? strerrorname_np(errno) : "0"; }
int main(void) {
    mkdir("/m", 0755);
    mount("tmpfs", "/m", "tmpfs", 0, NULL);
    const char *directories[] = {"/m/lower", "/m/lower/d", "/m/upper", "/m/work", "/m/merged"};
    for (int i = 0; i < 5; i++) mkdir(directories[i], 0755);
    close(open("/m/lower/d/file", O_CREAT | O_WRONLY, 0644));
    printf("SEEN setxattr %s", answer(setxattr("/m/lower", "user.test", "1", 1, 0)));
    const char *options = "lowerdir=/m/lower,upperdir=/m/upper,workdir=/m/work,userxattr";
    printf(" mount %s", answer(mount("overlay", "/m/merged", "overlay", 0, options)));
    printf(" unlink %s", answer(unlink("/m/merged/d/file")));
    printf(" rmdir %s\n", answer(rmdir("/m/merged/d")));
    fflush(stdout);
    reboot(RB_POWER_OFF);
}
C
expect bookworm 'setxattr EOPNOTSUPP mount 0 unlink 0 rmdir EIO'
expect trixie 'setxattr 0 mount 0 unlink 0 rmdir 0'
finish
