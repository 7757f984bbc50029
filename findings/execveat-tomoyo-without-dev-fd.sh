#!/usr/bin/env bash
# Finding: on Debian 11's kernel a program given by descriptor cannot be executed where /dev/fd is missing.
#
# Versions: Debian's linux-image-cloud-amd64 5.10.0-32 (bullseye) against 6.1.0-50 (bookworm).
# Behaviour: execveat(fd, "", …, AT_EMPTY_PATH) answers ENOENT in a root without /dev/fd, as an initramfs or a fresh mount
#   namespace is: TOMOYO, one of the security modules that 5.10 of Debian starts by default, looks the program up again
#   by the name /dev/fd/N. execve("/proc/self/fd/N") of the same descriptor works, and on 6.1 both do.
# Why it matters: re-executing oneself from a sealed memory file is the defence of container runtimes against a container
#   that writes to the runtime's binary; on Debian 11 it fails with an errno that says nothing.
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
#include <sys/wait.h>
#include <unistd.h>
static const char *outcome(int by_path) {
    if (fork() == 0) {
        int fd = open("/program", O_RDONLY);
        char *arguments[] = {"program", "again", NULL}, *environment[] = {NULL}, path[32];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (by_path) execve(path, arguments, environment);
        else syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
        _exit(errno);
    }
    int status;
    wait(&status);
    return WEXITSTATUS(status) == 200 ? "runs" : strerrorname_np(WEXITSTATUS(status));
}
int main(int count, char **arguments) {
    if (count > 1 && strcmp(arguments[1], "again") == 0) return 200;
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    printf("SEEN execveat %s", outcome(0));
    printf(" execve %s\n", outcome(1));
    fflush(stdout);
    reboot(RB_POWER_OFF);
}
C

expect bullseye 'execveat ENOENT execve runs'
expect bookworm 'execveat runs execve runs'
finish
