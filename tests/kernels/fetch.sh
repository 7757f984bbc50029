#!/usr/bin/env bash
# fetch.sh RELEASE DIRECTORY: Debian's cloud kernel of a release, unpacked: DIRECTORY/vmlinuz, DIRECTORY/modules/, and
# DIRECTORY/version. Packages come from Debian's mirror through apt with lists of its own, so that nothing of the
# machine's package state is touched, and apt verifies signatures and digests as always.
#
# A directory that is complete already is left alone.
set -euo pipefail

release=$1 directory=$2
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ ! -e "$directory/version" ] || exit 0
[ -e "$keyring" ] || {
    echo "fetch.sh: $keyring is missing: install debian-archive-keyring" >&2
    exit 1
}
mkdir -p "$directory"
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/packages"
echo "deb [signed-by=$keyring] $mirror $release main" >"$state/sources.list"
: >"$state/status"
apt=(-o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::Lists=$state/lists"
    -o "Dir::Cache=$state/cache" -o "Dir::State::status=$state/status" -o APT::Sandbox::User=root
    -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o APT::Architecture=amd64)
apt-get "${apt[@]}" update --quiet

# linux-image-cloud-amd64 only depends on the package of the current version. From Linux 7 on that one depends in its
# turn on linux-binary-VERSION and linux-modules-VERSION.
dependencies() {
    apt-cache "${apt[@]}" depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces "$1" |
        sed -nE 's/^ *\|?Depends: (linux-(image|binary|modules)-.*)/\1/p'
}
wanted=()
for image in $(dependencies linux-image-cloud-amd64); do
    wanted+=("$image")
    for part in $(dependencies "$image"); do
        wanted+=("$part")
    done
done
[ "${#wanted[@]}" -gt 0 ] || {
    echo "fetch.sh: $release has no linux-image-cloud-amd64" >&2
    exit 1
}
(cd "$state/packages" && apt-get "${apt[@]}" download --quiet "${wanted[@]}")
for package in "$state"/packages/*.deb; do
    dpkg-deb --extract "$package" "$state/unpacked"
done
kernel=$(find "$state/unpacked" \( -name 'vmlinuz-*' -o -name vmlinuz \) -type f | head -n 1)
modules=$(find "$state/unpacked" -type d -path '*/lib/modules/*' -prune | head -n 1)
cp "$kernel" "$directory/vmlinuz"
rm -rf "$directory/modules"
mv "$modules" "$directory/modules"
basename "$modules" >"$directory/version"
