# shellcheck shell=bash
# Starts the other tools of the field by hand, each with its own scratch directory and a free port, so that a
# test meets the real docker, containerd, podman, buildah and docker-registry without touching the machine's own.
#
#   peers_init                  scratch directory $PEERS_DIR; everything is stopped and removed at exit
#   start_docker_registry       -> DOCKER_REGISTRY=127.0.0.1:PORT
#   start_rimg_serve ROOT       -> RIMG_SERVE=127.0.0.1:PORT
#   start_dockerd               then: dk ARGS…           (Debian's client with that daemon)
#   start_containerd            then: ctrd ARGS…
#   peers_podman                then: pm ARGS…, bh ARGS… (podman and buildah on one storage)
#   crun_run BUNDLE ID          crun on a ready bundle
#   peers_stop                  stop and remove all of it now
#
# These need root: the engines do. Nothing here waits without a bound.

PEERS_DIR=
PEERS_PIDS=()

peers_init() {
    [ "$(id -u)" = 0 ] || {
        echo 'the peers are started as root' >&2
        return 1
    }
    # Unix sockets have 107 bytes for their path: keep the directory's name short.
    PEERS_DIR=$(mktemp -d /tmp/rimg-peers.XXXXXX)
    trap peers_stop EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# wait_until SECONDS COMMAND…: true as soon as the command is.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || {
            echo "not true in time: $*" >&2
            return 1
        }
        sleep 0.05
    done
}

wait_http() {
    wait_until "${2:-20}" curl -s -o /dev/null --max-time 2 "$1"
}

# The process is ours and still there, and it is the one that answers.
wait_service() {
    local pid=$1 url=$2 log=$3
    wait_until 20 sh -c "! kill -0 $pid || curl -s -o /dev/null --max-time 2 $url"
    kill -0 "$pid" 2>/dev/null || {
        echo "it ended at once:" >&2
        tail -n 20 "$log" >&2
        return 1
    }
}

peers_stop() {
    local status=$? pid
    trap - EXIT
    for pid in "${PEERS_PIDS[@]}"; do kill "$pid" 2>/dev/null; done
    for pid in "${PEERS_PIDS[@]}"; do
        wait_until 15 sh -c "! kill -0 $pid" 2>/dev/null || kill -9 "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    PEERS_PIDS=()
    if [ -n "$PEERS_DIR" ]; then
        peers_kill_below "$PEERS_DIR"
        peers_unmount_below "$PEERS_DIR"
        [ -n "${PEERS_KEEP:-}" ] || rm -rf "$PEERS_DIR"
    fi
    return "$status"
}

# Shims and monitors outlive their engine. Only those whose command line names our directory are ended.
peers_kill_below() {
    local dir=$1 pid line
    for pid in /proc/[0-9]*; do
        pid=${pid#/proc/}
        [ "$pid" != $$ ] || continue
        line=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || continue
        case $line in
        *containerd-shim*"$dir"* | conmon*"$dir"* | *containerd*"--config $dir"*) kill -9 "$pid" 2>/dev/null ;;
        esac
    done
}

peers_unmount_below() {
    local dir=$1 target
    awk -v d="$dir/" 'index($5 "/", d) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
        while IFS= read -r target; do umount -l "$target" 2>/dev/null; done
}

# --- docker-registry: the reference implementation as Debian has it (not durable: it never syncs a blob's data)

start_docker_registry() {
    local dir port pid
    dir=$(mktemp -d "$PEERS_DIR/registry.XXXXXX")
    port=$(free_port)
    cat >"$dir/config.yml" <<CONFIG
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  cache: {blobdescriptor: inmemory}
  filesystem: {rootdirectory: $dir/data}
  delete: {enabled: true}
http: {addr: 127.0.0.1:$port}
CONFIG
    docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 </dev/null &
    pid=$!
    PEERS_PIDS+=("$pid")
    # Read by the scripts that source this file.
    # shellcheck disable=SC2034
    DOCKER_REGISTRY=127.0.0.1:$port DOCKER_REGISTRY_PID=$pid DOCKER_REGISTRY_DIR=$dir/data
    wait_service "$pid" "http://127.0.0.1:$port/v2/" "$dir/log"
}

# --- rimg serve

# RIMG names the binary; the store's root is the argument.
start_rimg_serve() {
    local root=$1 port pid log
    port=$(free_port)
    log=$(mktemp "$PEERS_DIR/serve.XXXXXX")
    "$RIMG" --root "$root" serve --listen "127.0.0.1:$port" >"$log" 2>&1 </dev/null &
    pid=$!
    PEERS_PIDS+=("$pid")
    # shellcheck disable=SC2034
    RIMG_SERVE=127.0.0.1:$port RIMG_SERVE_PID=$pid RIMG_SERVE_LOG=$log
    wait_service "$pid" "http://127.0.0.1:$port/v2/" "$log"
}

# --- Docker Engine (Debian's docker.io; its own containerd is started by it)

start_dockerd() {
    local dir=$PEERS_DIR/dk pid
    mkdir -p "$dir"
    echo '{}' >"$dir/daemon.json"
    /usr/sbin/dockerd --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$dir/exec" \
        --pidfile "$dir/pid" --host "unix://$dir/sock" --iptables=false --ip6tables=false --bridge=none \
        --storage-driver "${DOCKERD_STORAGE:-overlay2}" >"$dir/log" 2>&1 </dev/null &
    pid=$!
    PEERS_PIDS+=("$pid")
    # shellcheck disable=SC2034
    DOCKERD_PID=$pid
    wait_until 30 sh -c "! kill -0 $pid || DOCKER_HOST=unix://$dir/sock /usr/bin/docker version"
    kill -0 "$pid" 2>/dev/null || {
        tail -n 20 "$dir/log" >&2
        return 1
    }
}

# Debian's client: newer ones want a separate buildx program for BuildKit.
dk() {
    HOME=$PEERS_DIR DOCKER_HOST=unix://$PEERS_DIR/dk/sock DOCKER_BUILDKIT=1 BUILDKIT_PROGRESS=plain \
        /usr/bin/docker "$@"
}

# --- containerd and ctr

start_containerd() {
    local dir=$PEERS_DIR/cd pid
    mkdir -p "$dir"
    cat >"$dir/config.toml" <<CONFIG
version = 2
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$dir/sock"
[ttrpc]
  address = "$dir/sock.ttrpc"
[debug]
  level = "warn"
CONFIG
    containerd --config "$dir/config.toml" >"$dir/log" 2>&1 </dev/null &
    pid=$!
    PEERS_PIDS+=("$pid")
    wait_until 20 sh -c "! kill -0 $pid || ctr --address $dir/sock version"
    kill -0 "$pid" 2>/dev/null || {
        tail -n 20 "$dir/log" >&2
        return 1
    }
}

ctrd() {
    ctr --address "$PEERS_DIR/cd/sock" --namespace rimg "$@"
}

# --- podman and buildah

# Where the machine has no CAP_SYS_RESOURCE, raising a limit fails: ask for limits every process may set. crun 1.8
# refuses a hybrid cgroup tree, so runc runs the containers. conmon's clean-up process is told the storage's place but
# not containers.conf: a static_dir of our own would make it look into another database, and `podman run` would wait
# 20 s for it.
peers_podman() {
    local dir=$PEERS_DIR/pm
    mkdir -p "$dir"
    cat >"$dir/containers.conf" <<CONFIG
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
pids_limit = 0
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$dir/tmp"
CONFIG
    cat >"$dir/storage.conf" <<CONFIG
[storage]
driver = "overlay"
graphroot = "$dir/root"
runroot = "$dir/run"
CONFIG
    # Loopback without TLS, and no search of registries elsewhere for a short name.
    cat >"$dir/registries.conf" <<'CONFIG'
unqualified-search-registries = []
[[registry]]
location = "127.0.0.1"
insecure = true
CONFIG
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$dir/policy.json"
    echo '{}' >"$dir/auth.json"
}

peers_containers_env() {
    HOME=$PEERS_DIR CONTAINERS_CONF=$PEERS_DIR/pm/containers.conf \
        CONTAINERS_STORAGE_CONF=$PEERS_DIR/pm/storage.conf \
        CONTAINERS_REGISTRIES_CONF=$PEERS_DIR/pm/registries.conf \
        REGISTRIES_CONFIG_PATH=$PEERS_DIR/pm/registries.conf \
        REGISTRY_AUTH_FILE=$PEERS_DIR/pm/auth.json "$@"
}

pm() {
    peers_containers_env podman "$@"
}

# `buildah bud` looks a base image up in its registry unless told not to: callers pass --pull-never.
bh() {
    peers_containers_env buildah "$@"
}

sk() {
    skopeo --policy "$PEERS_DIR/pm/policy.json" "$@"
}

# --- crun on a ready bundle

# crun_bundle DIR ROOTFS COMMAND…: a bundle without limits of any kind.
crun_bundle() {
    local bundle=$1 rootfs=$2
    shift 2
    mkdir -p "$bundle"
    (cd "$bundle" && rm -f config.json && crun spec)
    jq --arg root "$rootfs" '.process.args = $ARGS.positional | .process.terminal = false | .process.rlimits = []
        | .root = {path: $root, readonly: true} | del(.linux.resources)' \
        "$bundle/config.json" --args "$@" >"$bundle/config.new"
    mv "$bundle/config.new" "$bundle/config.json"
}

# crun 1.8 refuses a hybrid cgroup tree unless its v2 half is out of sight.
crun_run() {
    hide_cgroup2 crun --root "$PEERS_DIR/crun" --cgroup-manager=disabled run --bundle "$1" "$2"
}

# hide_cgroup2 COMMAND…: run the command where the v2 half of a hybrid cgroup tree is not mounted.
hide_cgroup2() {
    unshare -m sh -c 'umount -l /sys/fs/cgroup/unified 2>/dev/null; exec "$@"' sh "$@"
}
