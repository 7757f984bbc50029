#!/usr/bin/env bash
# What stacks of layers mean: rimg against the table of fixtures/layer-stacks, in a container and in an exported tree,
# and the tools that the table names against it too, so that it is known when one of them changes its mind.
#
#   RIMG=PATH tests/clients/layers.sh      root; docker, podman and umoci must be installed: .ci/packages
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$here/steps.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$here/peers.sh"

RIMG=${RIMG:?RIMG names the rimg binary to test}
TABLE=$(cd "$here/../../fixtures/layer-stacks" && pwd)/stacks.txt

main() {
    need 'scratch directory' peers_init
    STACKS=$PEERS_DIR/stacks
    STORE=$PEERS_DIR/store
    mkdir "$STACKS" "$STACKS/context"
    need 'images of the table' images
    need 'dockerd starts' start_dockerd
    peers_podman
    local name
    while read -r name; do
        tar -C "$STACKS/$name" -cf "$STACKS/$name.tar" .
        if grep -qx refused "$STACKS/$name.expected"; then
            step "rimg refuses $name" refused "$name"
            continue
        fi
        step "rimg loads $name" rimg load -q -i "$STACKS/$name.tar"
        step "$name in a container" tree_is "$name" in_container "$name"
        step "$name as a tree" tree_is "$name" exported "$name"
        local tool tools
        read -ra tools <"$STACKS/$name.tools"
        for tool in "${tools[@]}"; do
            case $tool in
            docker | podman | umoci) step "$name by $tool" tree_is "$name" "by_$tool" "$name" ;;
            esac
        done
    done <"$STACKS/names"
    steps_end
}

rimg() {
    "$RIMG" --root "$STORE" "$@"
}

images() {
    "$here/layers.py" write "$TABLE" "$STACKS" >"$STACKS/names" && [ -s "$STACKS/names" ]
}

# tree_is NAME COMMAND…: the tar that the command writes is the table's tree.
tree_is() {
    local name=$1
    shift
    "$@" | "$here/layers.py" show >"$STACKS/seen" && diff "$STACKS/$name.expected" "$STACKS/seen"
}

in_container() {
    # shellcheck disable=SC2016 # for the shell inside
    rimg run --rm --network none "localhost/stacks/$1:1" /bin/busybox sh -c \
        'cd / && b=/bin/busybox && exec $b tar -cf - $($b ls -A | $b grep -vxE "proc|sys|dev")'
}

exported() {
    printf 'FROM localhost/stacks/%s:1\n' "$1" >"$STACKS/context/Buildfile"
    rimg build -q -o type=tar,dest=- "$STACKS/context"
}

refused() {
    ! { rimg load -q -i "$STACKS/$1.tar" && in_container "$1"; }
}

by_docker() {
    local id
    dk load -q -i "$STACKS/$1.tar" >&2 && id=$(dk create "localhost/stacks/$1:1") && dk export "$id" && dk rm "$id" >&2
}

by_podman() {
    local id
    pm load -q -i "$STACKS/$1.tar" >&2 && id=$(pm create "localhost/stacks/$1:1") && pm export "$id" && pm rm "$id" >&2
}

by_umoci() {
    rm -rf "$STACKS/bundle"
    umoci unpack --image "$STACKS/$1:1" "$STACKS/bundle" >&2 && tar -C "$STACKS/bundle/rootfs" -cf - .
}

main
