#!/usr/bin/env bash
# The whole way of an image on a real Debian, with real clients at every station:
#
#   rootfs    a root file system by mmdebstrap            build     rimg build, twice and once more from nothing
#   serve     two rimg serve and a docker-registry         push      rimg to the other two; digests agree
#   pull      rimg, skopeo, podman, buildah, ctr, docker from all three; digests agree
#   run       rimg, docker, podman: the same HTTP answers
#   foreign   images made by docker, podman, buildah, umoci: pulled, loaded and run by rimg
#   modules   crane, regctl, oras: copy, push, pull and validate
#   copies    COPY, ADD and .dockerignore beside docker's: whole trees
#
#   RIMG=PATH tests/clients/debian-web.sh          all of it (root; the peers must be installed: .ci/packages)
#   ONLY='foreign modules' …                       these phases alone; what they need is made first
#   ROOTFS=DIR …                                   a root file system that is already there
#   VERBOSE=1                                      show what every step prints
#
# Every step asserts; a failure names its step and the rest goes on where it can.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$here/steps.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$here/peers.sh"
# shellcheck source-path=SCRIPTDIR source=tools.sh
. "$here/tools.sh"

RIMG=${RIMG:?RIMG names the rimg binary to test}
EXAMPLE=$(cd "$here/../../examples/debian-web" && pwd)
# The suite's own servers are asked directly, whatever proxy the machine uses for the rest.
export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1

# What a newer BuildKit alone knows is left out: see the script.
copies() {
    python3 tests/clients/copies.py --rimg "$RIMG" --docker-host "unix://$PEERS_DIR/dk/sock"
}

main() {
    need 'scratch directory' peers_init
    CONTEXT=$PEERS_DIR/context
    STORE=$PEERS_DIR/store
    need 'rimg says its version' "$RIMG" version
    peers_podman
    prepare
    phase rootfs && check_rootfs
    phase build && check_build
    need 'the store is served' start_rimg_serve "$STORE"
    LOCAL=$RIMG_SERVE LOCAL_PID=$RIMG_SERVE_PID
    need 'a second store is served' start_rimg_serve "$PEERS_DIR/second"
    SECOND=$RIMG_SERVE
    need 'docker-registry runs' start_docker_registry
    phase push && check_push
    if wanted pull || wanted run || wanted foreign || wanted copies; then
        need 'dockerd runs' start_dockerd
        need 'containerd runs' start_containerd
    fi
    phase pull && check_pull
    phase run && check_run
    phase foreign && check_foreign
    phase modules && check_modules
    phase copies && step 'COPY, ADD and ignore rules as docker' copies
    step 'the store is whole' "$RIMG" --root "$STORE" fsck
    step 'the second store is whole' "$RIMG" --root "$PEERS_DIR/second" fsck
    step 'the server is still the same process' kill -0 "$LOCAL_PID"
    step 'nothing stays mounted' nothing_mounted "$STORE"
    steps_end
}

wanted() { case " ${ONLY:-$1} " in *" $1 "*) ;; *) return 1 ;; esac; }

rimg() { "$RIMG" --root "$STORE" "$@"; }

nothing_mounted() { ! grep -F "$1" /proc/self/mountinfo; }

# --- what the phases stand on: the root file system and the image, made once

prepare() {
    cp -r "$EXAMPLE" "$CONTEXT"
    rm -rf "$CONTEXT/rootfs" "$CONTEXT/rootfs.tar"
    if [ -n "${ROOTFS:-}" ]; then
        need "the root file system $ROOTFS is copied" cp -a "$ROOTFS" "$CONTEXT/rootfs"
    else
        need 'mmdebstrap makes a root file system' "$CONTEXT/make-rootfs.sh" "$CONTEXT/rootfs"
    fi
    need 'rimg build' build_app app
    APP=$DIGEST
}

# build_app NAME FLAGS…: sets DIGEST to the only line on standard output.
build_app() {
    local name=$1
    shift
    rimg build -t "$name" "$@" "$CONTEXT" >"$PEERS_DIR/digest" 2>"$PEERS_DIR/progress"
    local status=$?
    cat "$PEERS_DIR/progress"
    DIGEST=$(cat "$PEERS_DIR/digest")
    [ "$status" -eq 0 ] && [[ $DIGEST =~ ^sha256:[0-9a-f]{64}$ ]]
}

check_rootfs() {
    step 'it is a Debian or an Ubuntu' grep -qE '^ID(_LIKE)?=.?(debian|ubuntu)' "$CONTEXT/rootfs/etc/os-release"
    step 'it brings its package sources' sh -c "ls $CONTEXT/rootfs/etc/apt/sources.list* | grep -q ."
}

check_build() {
    step 'a second build does nothing and gives the same digest' built_again app
    step 'and says so for each step' grep -qi cached "$PEERS_DIR/progress"
    step 'a build from nothing gives the same digest' built_again again --no-cache
    step 'the image holds what the packages brought' rimg ls app /usr/sbin/nginx
    step 'the rendered page can be read' sh -c "'$RIMG' --root '$STORE' cat app /srv/site/index.html | grep -q '<h1>rimg'"
    step 'the page renderer stayed in its stage' absent app /site/render.py
}

built_again() {
    build_app "$@" && equal 'digests' "$APP" "$DIGEST"
}

absent() { ! rimg ls "$@"; }

# --- push

check_push() {
    step 'rimg pushes to rimg' pushed "$SECOND"
    step 'rimg pushes to docker-registry' pushed "$DOCKER_REGISTRY"
    step 'a second push sends nothing and agrees' pushed "$DOCKER_REGISTRY"
    PUSHED=1
}

pushed() {
    rimg push -q app "$1/team/app:1" >"$PEERS_DIR/digest" || return 1
    grep -q "$APP" "$PEERS_DIR/digest" || {
        echo "push printed $(cat "$PEERS_DIR/digest"), not $APP"
        return 1
    }
    equal 'digest on the server' "$APP" "$(head_digest "$1" team/app 1)"
}

head_digest() {
    curl -sfI -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$1/v2/$2/manifests/$3" |
        tr -d '\r' | awk 'tolower($1) == "docker-content-digest:" { print $2 }'
}

ensure_pushed() {
    [ -n "${PUSHED:-}" ] || check_push
}

# --- pull

check_pull() {
    ensure_pushed
    local place name
    for place in "local=$LOCAL/app:latest" "second=$SECOND/team/app:1" "docker-registry=$DOCKER_REGISTRY/team/app:1"; do
        name=${place#*=} place=${place%%=*}
        step "rimg pulls from $place" pulled_by_rimg "$name" "$PEERS_DIR/pulled-$place"
        step "skopeo pulls from $place" pulled_by_skopeo "$name" "$PEERS_DIR/skopeo-$place"
        step "podman pulls from $place" pulled_by_podman "$name"
        step "buildah pulls from $place" pulled_by_buildah "$name"
        step "ctr pulls from $place" pulled_by_ctr "$name"
        step "docker pulls from $place" pulled_by_docker "$name"
    done
}

pulled_by_rimg() {
    "$RIMG" --root "$2" pull -q "$1" >"$PEERS_DIR/digest" && grep -q "$APP" "$PEERS_DIR/digest" &&
        "$RIMG" --root "$2" fsck && rm -rf "$2"
}

pulled_by_skopeo() {
    sk copy --src-tls-verify=false "docker://$1" "dir:$2" &&
        equal 'manifest' "$APP" "sha256:$(sha256sum "$2/manifest.json" | cut -d' ' -f1)" && rm -rf "$2"
}

# Podman and buildah share one storage: each begins without the image.
pulled_by_podman() {
    pm image rm --force "$1"
    pm pull --tls-verify=false "$1" && equal 'digests' "$APP" "$(pm image inspect --format '{{.Digest}}' "$1")"
}

pulled_by_buildah() {
    pm image rm --force --all
    bh pull --tls-verify=false "$1" &&
        equal 'digests' "$APP" "$(bh inspect --type image --format '{{.FromImageDigest}}' "$1")"
}

pulled_by_ctr() {
    ctrd images pull --plain-http "$1" &&
        equal 'digests' "$APP" "$(ctrd images ls "name==$1" | awk 'NR == 2 { print $3 }')"
}

pulled_by_docker() {
    dk pull "$1" && equal 'digests' "${1%:*}@$APP" "$(dk image inspect --format '{{index .RepoDigests 0}}' "$1")" &&
        dk image rm "$1"
}

# --- run

check_run() {
    ensure_pushed
    step 'docker has the image' dk pull "$DOCKER_REGISTRY/team/app:1"
    step 'podman has the image' pm pull --tls-verify=false "$SECOND/team/app:1"
    step 'rimg runs it' answers rimg "$RIMG" --root "$STORE" run --rm --network host -e PORT=@PORT@ app
    step 'docker runs it' answers docker dk run --rm --network host -e PORT=@PORT@ "$DOCKER_REGISTRY/team/app:1"
    step 'podman runs it' answers podman pm run --rm --network host -e PORT=@PORT@ "$SECOND/team/app:1"
    step 'rimg and docker: the same answers' cmp "$PEERS_DIR/answer.rimg" "$PEERS_DIR/answer.docker"
    step 'rimg and podman: the same answers' cmp "$PEERS_DIR/answer.rimg" "$PEERS_DIR/answer.podman"
    step 'the application ran as its user' grep -q '"user": "www-data"' "$PEERS_DIR/answer.rimg"
    step 'it runs on a read-only root with a tmpfs' \
        answers read-only "$RIMG" --root "$STORE" run --rm --network host --read-only --tmpfs /tmp -e PORT=@PORT@ app
    step 'exit codes are the process'"'"'s own' exits_with 42 rimg run --rm app sh -c 'exit 42'
    step 'no container is left' sh -c "! ls -A '$STORE/containers' | grep ."
}

# answers WHO COMMAND…: runs in the foreground with a free port for @PORT@, keeps both answers, ends it by SIGTERM.
answers() {
    local who=$1 port pid status=0
    shift
    port=$(free_port)
    "${@//@PORT@/$port}" >"$PEERS_DIR/container.log" 2>&1 </dev/null &
    pid=$!
    {
        wait_until 20 sh -c "! kill -0 $pid || curl -sf http://127.0.0.1:$port/hello" && kill -0 "$pid" &&
            curl -sf "http://127.0.0.1:$port/" "http://127.0.0.1:$port/hello" >"$PEERS_DIR/answer.$who"
    } || {
        status=1
        cat "$PEERS_DIR/container.log"
    }
    # A function's process is a shell whose child is the client: it is the child that gets the signal.
    pkill -TERM -P "$pid" 2>/dev/null || kill -TERM "$pid" 2>/dev/null
    wait_until 20 sh -c "! kill -0 $pid" || {
        echo "did not end on SIGTERM"
        kill -9 "$pid"
        status=1
    }
    wait "$pid"
    cat "$PEERS_DIR/answer.$who" 2>/dev/null
    return "$status"
}

exits_with() {
    local expected=$1 status=0
    shift
    "$@" || status=$?
    equal 'exit status' "$expected" "$status"
}

# --- images made by others

check_foreign() {
    step 'a small context with busybox' small_context
    step 'docker builds' dk build --network host -t foreign/docker:1 "$SMALL"
    step 'podman builds' pm build --network host -t foreign/podman:1 "$SMALL"
    step 'buildah builds' bh bud --pull-never --network host -t foreign/buildah:1 "$SMALL"
    step 'umoci builds' umoci_builds

    step 'docker pushes to rimg' docker_pushes
    step 'podman pushes to rimg' pm push --tls-verify=false localhost/foreign/podman:1 "$SECOND/foreign/podman:1"
    step 'podman pushes Docker schema 2' \
        pm push --tls-verify=false --format v2s2 localhost/foreign/podman:1 "$SECOND/foreign/podman:v2s2"
    step 'buildah pushes to rimg' bh push --tls-verify=false localhost/foreign/buildah:1 "$SECOND/foreign/buildah:1"
    step 'buildah pushes zstd' bh push --tls-verify=false --compression-format zstd \
        localhost/foreign/buildah:1 "$SECOND/foreign/buildah:zstd"
    step 'skopeo pushes the umoci image' sk copy --dest-tls-verify=false "oci:$UMOCI:1" "docker://$SECOND/foreign/umoci:1"
    local name
    for name in docker:1 podman:1 podman:v2s2 buildah:1 buildah:zstd umoci:1; do
        step "rimg pulls $name" rimg pull "$SECOND/foreign/$name"
        step "rimg keeps the digest of $name" digest_kept "foreign/${name%:*}" "${name#*:}"
        step "rimg runs $name" says_hello "$SECOND/foreign/$name"
    done
    step 'the same from docker-registry' sk copy --src-tls-verify=false --dest-tls-verify=false \
        "docker://$SECOND/foreign/docker:1" "docker://$DOCKER_REGISTRY/foreign/docker:1"
    step 'rimg pulls docker:1 from docker-registry' rimg pull "$DOCKER_REGISTRY/foreign/docker:1"

    step 'docker saves' dk save -o "$PEERS_DIR/docker.tar" foreign/docker:1
    step 'podman saves docker-archive' pm save --format docker-archive -o "$PEERS_DIR/podman.tar" localhost/foreign/podman:1
    step 'podman saves oci-archive' pm save --format oci-archive -o "$PEERS_DIR/podman-oci.tar" localhost/foreign/podman:1
    step 'buildah saves oci-archive' bh push localhost/foreign/buildah:1 "oci-archive:$PEERS_DIR/buildah-oci.tar:foreign/buildah:1"
    step 'the umoci layout as a tar' tar -C "$UMOCI" -cf "$PEERS_DIR/umoci.tar" .
    local archive
    for archive in docker podman podman-oci buildah-oci umoci; do
        step "rimg loads and runs $archive.tar" loaded_and_run "$PEERS_DIR/$archive.tar"
    done
    step 'rimg loads a layout directory and runs it' loaded_and_run "$UMOCI"

    step 'rimg builds on an image of docker' builds_on "$SECOND/foreign/docker:1"
    step 'rimg builds on an OCI layout' builds_on "oci:./layout:1"
    step 'docker loads what rimg saves' sh -c "'$RIMG' --root '$STORE' save -o '$PEERS_DIR/saved.tar' built-on:1"
    step 'and runs it' docker_runs_saved
    step 'skopeo reads the same archive as OCI' sk inspect "oci-archive:$PEERS_DIR/saved.tar"
}

small_context() {
    SMALL=$PEERS_DIR/small
    mkdir -p "$SMALL"
    cp /bin/busybox "$SMALL/busybox"
    cat >"$SMALL/Dockerfile" <<'DOCKERFILE'
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /a/b /tmp && echo one >/a/b/one && ln -s b/one /a/link && ln /a/b/one /a/hard && echo two >/a/two
RUN rm /a/two && rm -r /a/b && mkdir /a/b && echo hello >/a/b/three && chmod 4755 /bin/busybox
ENV WHO=foreign
CMD ["/bin/sh", "-c", "cat /a/hard /a/b/three; ls /a /a/b; echo $WHO"]
DOCKERFILE
    HELLO=$'one\nhello\n/a:\nb\nhard\nlink\n\n/a/b:\nthree\nforeign'
}

# shellcheck disable=SC2016 # $WHO is for the container
# umoci makes an image by unpacking, changing and packing again; without RUN, so the result is made by hand.
umoci_builds() {
    UMOCI=$PEERS_DIR/umoci
    local bundle=$PEERS_DIR/umoci-bundle root=$PEERS_DIR/umoci-bundle/rootfs
    umoci init --layout "$UMOCI" && umoci new --image "$UMOCI:1" && umoci unpack --image "$UMOCI:1" "$bundle" &&
        mkdir -p "$root/bin" "$root/a/b" "$root/tmp" && cp "$SMALL/busybox" "$root/bin/busybox" &&
        chroot "$root" /bin/busybox --install -s /bin && echo one >"$root/a/hard" && ln "$root/a/hard" "$root/a/link" &&
        echo two >"$root/a/two" && umoci repack --image "$UMOCI:1" "$bundle" &&
        rm "$root/a/two" && echo hello >"$root/a/b/three" && umoci repack --image "$UMOCI:1" "$bundle" &&
        umoci config --image "$UMOCI:1" --config.env WHO=foreign --config.cmd /bin/sh --config.cmd=-c \
            --config.cmd 'cat /a/hard /a/b/three; ls /a /a/b; echo $WHO'
}

docker_pushes() {
    dk tag foreign/docker:1 "$SECOND/foreign/docker:1" && dk push "$SECOND/foreign/docker:1"
}

# The digest that rimg shows is the one skopeo computes from the server's bytes.
digest_kept() {
    local served
    served=sha256:$(sk inspect --raw --tls-verify=false "docker://$SECOND/$1:$2" | sha256sum | cut -d' ' -f1)
    equal 'digests' "$served" "$(rimg inspect "$SECOND/$1:$2" | jq -r '.[0].digest')"
}

says_hello() {
    equal 'output' "$HELLO" "$(rimg run --rm --network none "$1")"
}

# An archive's image is run by whatever name or digest `rimg load` says it has.
loaded_and_run() {
    local root=$PEERS_DIR/loaded digest
    rm -rf "$root"
    "$RIMG" --root "$root" load -i "$1" >"$PEERS_DIR/loaded.txt" || return 1
    cat "$PEERS_DIR/loaded.txt"
    digest=$(grep -oE 'sha256:[0-9a-f]{64}' "$PEERS_DIR/loaded.txt" | tail -n 1)
    equal 'output' "$HELLO" "$("$RIMG" --root "$root" run --rm --network none "$digest")" &&
        "$RIMG" --root "$root" fsck
}

builds_on() {
    local context=$PEERS_DIR/on
    rm -rf "$context" && mkdir -p "$context" && cp -r "$UMOCI" "$context/layout" && echo more >"$context/more" &&
        printf 'FROM %s\nRUN echo ran >/ran\nCOPY more /a/more\nCMD ["cat", "/ran", "/a/more", "/a/b/three"]\n' "$1" \
            >"$context/Buildfile" &&
        rimg build -t built-on:1 "$context" &&
        equal 'output' $'ran\nmore\nhello' "$(rimg run --rm --network none built-on:1)"
}

docker_runs_saved() {
    dk load -i "$PEERS_DIR/saved.tar" &&
        equal 'output' $'ran\nmore\nhello' "$(dk run --rm --network host built-on:1)"
}

# --- clients that come as Go modules, and oras

check_modules() {
    ensure_pushed
    local crane regctl oras
    if crane=$(tool crane); then
        step 'crane: digest' equal 'digest' "$APP" "$("$crane" digest --insecure "$LOCAL/app")"
        step 'crane: validate --remote' "$crane" validate --insecure --remote "$LOCAL/app"
        step 'crane: copy from docker-registry to rimg' "$crane" copy --insecure "$DOCKER_REGISTRY/team/app:1" "$SECOND/crane/app:2"
        step 'crane: the copy has the digest' equal 'digest' "$APP" "$("$crane" digest --insecure "$SECOND/crane/app:2")"
        step 'crane: a new tag' "$crane" tag --insecure "$SECOND/crane/app:2" three
        step 'crane: lists tags' equal 'tags' $'2\nthree' "$("$crane" ls --insecure "$SECOND/crane/app")"
        step 'crane: pulls a tarball' "$crane" pull --insecure "$SECOND/crane/app:three" "$PEERS_DIR/crane.tar"
        step 'rimg loads it' "$RIMG" --root "$PEERS_DIR/crane-store" load -i "$PEERS_DIR/crane.tar"
        step 'crane: appends a layer and pushes' crane_appends "$crane"
        step 'crane: deletes' "$crane" delete --insecure "$SECOND/crane/app@$APP"
    else
        skip crane 'it cannot be installed here (see above)'
    fi
    if regctl=$(tool regctl); then
        export REGCTL_CONFIG=$PEERS_DIR/regctl.json
        regctl_hosts "$regctl"
        step 'regctl: digest' equal 'digest' "$APP" "$("$regctl" image digest "$LOCAL/app")"
        step 'regctl: copies' "$regctl" image copy "$LOCAL/app" "$SECOND/regctl/app:1"
        step 'regctl: copies with referrers' "$regctl" image copy --referrers --digest-tags "$LOCAL/app" "$SECOND/regctl/app:2"
        step 'regctl: attaches an artifact' regctl_attaches "$regctl"
        step 'regctl: lists it as a referrer' sh -c "'$regctl' artifact list '$SECOND/regctl/app:1' | grep -q application/x-note"
        step 'regctl: reads a file of the image' sh -c \
            "'$regctl' image get-file '$SECOND/regctl/app:1' srv/site/index.html | grep -q '<h1>rimg'"
        step 'regctl: lists tags' sh -c "'$regctl' tag ls '$SECOND/regctl/app' | grep -qx 2"
        step 'regctl: deletes a tag' "$regctl" tag delete "$SECOND/regctl/app:2"
        step 'regctl: lists repositories' sh -c "'$regctl' repo ls '$SECOND' | grep -qx regctl/app"
    else
        skip regctl 'it cannot be installed here (see above)'
    fi
    if oras=$(tool oras); then
        step 'oras: pushes and pulls an artifact' oras_pushes_and_pulls "$oras"
    else
        skip oras 'it cannot be installed here (see above); its Python sibling follows'
    fi
    if oras=$(tool oras-python); then
        step 'oras (Python): pushes and pulls an artifact' oras_round_trip "$oras"
    else
        skip 'oras (Python)' 'it cannot be installed here (see above)'
    fi
}

crane_appends() {
    mkdir -p "$PEERS_DIR/appended" && echo appended >"$PEERS_DIR/appended/file" &&
        tar -C "$PEERS_DIR" -czf "$PEERS_DIR/appended.tar.gz" appended &&
        "$1" append --insecure --base "$SECOND/crane/app:2" --new_layer "$PEERS_DIR/appended.tar.gz" \
            --new_tag "$SECOND/crane/app:4" &&
        rimg pull "$SECOND/crane/app:4" && equal 'file' appended "$(rimg cat "$SECOND/crane/app:4" /appended/file)"
}

regctl_hosts() {
    local host
    for host in "$LOCAL" "$SECOND" "$DOCKER_REGISTRY"; do "$1" registry set "$host" --tls disabled >/dev/null; done
}

regctl_attaches() {
    echo note | "$1" artifact put --artifact-type application/x-note --subject "$SECOND/regctl/app:1"
}

oras_pushes_and_pulls() {
    rm -rf "$PEERS_DIR/oras-go" && mkdir -p "$PEERS_DIR/oras-go/out" && echo artifact >"$PEERS_DIR/oras-go/note.txt" &&
        (cd "$PEERS_DIR/oras-go" && "$1" push --plain-http "$SECOND/oras/note:2" note.txt) &&
        "$1" pull --plain-http --output "$PEERS_DIR/oras-go/out" "$SECOND/oras/note:2" &&
        equal 'file' artifact "$(cat "$PEERS_DIR/oras-go/out/note.txt")"
}

oras_round_trip() {
    mkdir -p "$PEERS_DIR/oras-in" && echo artifact >"$PEERS_DIR/oras-in/note.txt" && (
        cd "$PEERS_DIR/oras-in" && "$1" - "$SECOND/oras/note:1" "$PEERS_DIR/oras-out" <<'PYTHON'
import sys
import oras.client
target, outdir = sys.argv[1:]
client = oras.client.OrasClient(hostname=target.split("/")[0], insecure=True, tls_verify=False)
pushed = client.push(target=target, files=["note.txt"])
assert pushed.status_code in (200, 201), pushed.status_code
files = client.pull(target=target, outdir=outdir)
assert [open(file).read() for file in files] == ["artifact\n"], files
PYTHON
    )
}

main
