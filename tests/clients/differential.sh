#!/bin/bash
# rimg, BuildKit (in Debian's docker.io) and buildah build the same Buildfiles; their images are compared byte by byte:
# the merged files with types, modes, owners, contents, link targets, hard link groups and extended attributes, and the
# configurations.
#
#   RIMG=$(./build-static) tests/clients/differential.sh           as root; ONLY='a b' picks cases
#
# A case is a script in differential/cases, run in an empty folder that becomes the context. Its first line may say
# `# engines: …` (buildkit, buildah or none; both if it does not). Beside it NAME.expected holds the lines of BuildKit
# 0.32, for what the engines of today's Debian do not know yet; history is compared with those alone.
# differential/README.md has the table of differences that are as they should be. What is none of them fails.

set -u
here=$(cd "$(dirname "$0")" && pwd)
RIMG=${RIMG:?RIMG names the binary}
# shellcheck source=tests/clients/peers.sh
. "$here/peers.sh"
# shellcheck source=tests/clients/steps.sh
. "$here/steps.sh"

cases=$here/differential/cases
table=$here/differential/README.md
compare=$here/differential/compare.py

export SOURCE_DATE_EPOCH=
unset SOURCE_DATE_EPOCH

peers_init || exit 1
export RIMG_ROOT=$PEERS_DIR/store
need 'dockerd starts' start_dockerd
need 'podman and buildah are there' peers_podman

# A small root file system on busybox, merged /usr, as a base for all three.
make_base() {
    local context=$PEERS_DIR/base
    mkdir -p "$context"/root/{usr/bin,etc,tmp,home/svc,dev,proc,sys} || return 1
    ln -s usr/bin "$context/root/bin"
    cp "$(command -v busybox)" "$context/root/usr/bin/busybox" || return 1
    local applet
    for applet in sh ls cat echo true mkdir rm rmdir touch ln cp mv chmod chown mkfifo id env find printf dd test sed head; do
        ln -s busybox "$context/root/usr/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nsvc:x:1000:1001::/home/svc:/bin/sh\n' >"$context/root/etc/passwd"
    printf 'root:x:0:\nsvc:x:1001:\nextra:x:2000:svc\n' >"$context/root/etc/group"
    chmod 1777 "$context/root/tmp"
    tar -C "$context/root" --owner=0 --group=0 -cf "$context/root.tar" . || return 1
    printf '%s\n' 'FROM scratch' 'ADD root.tar /' 'ENV BASE=base' 'CMD ["base"]' >"$context/Dockerfile"
    "$RIMG" build -q -t base:1 -o "type=docker,dest=$PEERS_DIR/base.tar" "$context" &&
        dk load -i "$PEERS_DIR/base.tar" && bh pull -q "docker-archive:$PEERS_DIR/base.tar"
}

build_rimg() {
    "$RIMG" build --progress plain -o "type=oci,dest=$2/rimg.tar" "$1" && python3 "$compare" lines "$2/rimg.tar" >"$2/rimg"
}

build_buildkit() {
    dk build --network host -t case "$1" && dk save case -o "$2/buildkit.tar" &&
        python3 "$compare" lines "$2/buildkit.tar" >"$2/buildkit"
}

build_buildah() {
    rm -f "$2/buildah.tar"
    bh bud --isolation chroot --pull-never --format docker -t case "$1" && bh push -q case "docker-archive:$2/buildah.tar" &&
        python3 "$compare" lines "$2/buildah.tar" >"$2/buildah"
}

# compared CASE ENGINE FOLDER: what the older engines write into histories is their own.
compared() {
    local leave_out='/^history /d'
    # The machine's busybox is not the one of the record.
    [ "$2" != expected ] || leave_out='/ \/usr\/bin\//d'
    sed "$leave_out" "$3/rimg" >"$3/one"
    sed "$leave_out" "$3/$2" >"$3/other"
    python3 "$compare" diff "$1" "$2" "$3/one" "$3/other" "$table"
}

run_case() {
    local name=$1 engine engines
    local context=$PEERS_DIR/$name/context out=$PEERS_DIR/$name
    mkdir -p "$context"
    (cd "$context" && umask 022 && bash -eu "$cases/$name.sh") || return 1
    step "$name: rimg builds" build_rimg "$context" "$out" || return 0
    engines=$(sed -n '1s/^# engines: *//p' "$cases/$name.sh")
    for engine in ${engines:-buildkit buildah}; do
        [ "$engine" != none ] || continue
        step "$name: $engine builds" "build_$engine" "$context" "$out" &&
            step "$name: as $engine" compared "$name" "$engine" "$out"
    done
    if [ -e "$cases/$name.expected" ]; then
        cp "$cases/$name.expected" "$out/expected"
        step "$name: as BuildKit 0.32" compared "$name" expected "$out"
    fi
    return 0
}

need 'the base is there for all' make_base
for script in "$cases"/*.sh; do
    name=$(basename "$script" .sh)
    phase "$name" || continue
    run_case "$name" || step "$name: its context is made" false
done
steps_end
