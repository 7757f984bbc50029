#!/usr/bin/env bash
# make-rootfs.sh TARGET: a minimal Debian or Ubuntu root file system, of the same release and from the same package
# sources as this machine, by mmdebstrap. TARGET is a directory, or a file when it ends in .tar.
#
# Root may make either. An ordinary user should make a .tar: inside it the files belong to root, while a directory
# would hold files the user cannot read. For that mmdebstrap needs user namespaces and newuidmap (package uidmap).
set -euo pipefail

target=${1:?usage: make-rootfs.sh TARGET (a directory, or FILE.tar)}
[ ! -e "$target" ] || {
    echo "make-rootfs.sh: $target is already there" >&2
    exit 1
}
command -v mmdebstrap >/dev/null || {
    echo "make-rootfs.sh: mmdebstrap is missing; as root: apt-get install mmdebstrap" >&2
    exit 1
}

# shellcheck source=/dev/null
. /etc/os-release
suite=${VERSION_CODENAME:?this system names no release in /etc/os-release}

# Only the distribution's own sources: those of others need keys that the new root does not have.
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/"$ID".sources /etc/apt/sources.list.d/"$ID".list; do
    if [ -s "$file" ]; then sources+=("$file"); fi
done

# How apt reaches its mirrors from here is written into the new root too, so that apt works in a RUN step.
options=()
while IFS= read -r line; do
    options+=("--aptopt=$line")
done < <(apt-config dump | grep -E '^Acquire::((http|https|ftp)::[Pp]roxy|Check-Valid-Until|Check-Date)' || true)

format=directory
case $target in *.tar) format=tar ;; esac

# Made beside its place and then renamed: what bears the name is whole.
trap 'rm -rf "$target.partial"' EXIT
mmdebstrap --quiet --variant=minbase --format="$format" "${options[@]}" "$suite" "$target.partial" "${sources[@]}"
mv "$target.partial" "$target"
trap - EXIT
