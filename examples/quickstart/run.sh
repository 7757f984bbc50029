#!/usr/bin/env bash
# Build, serve, push, pull and run an image, from nothing: no root, no daemon, no base image, nothing kept.
#
#   examples/quickstart/run.sh        builds rimg first (Rust is installed when it is missing)
#   RIMG=PATH examples/quickstart/run.sh
#
# The image holds one file, rimg itself: a static program is all a container needs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if [ -z "${RIMG:-}" ]; then
    echo 'building rimg (a few minutes the first time) …' >&2
    cd "$here/../.."
    .ci/packages build
    # shellcheck source-path=SCRIPTDIR source=../../.ci/toolchain
    . .ci/toolchain
    RIMG=$(./build-static)
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/rimg-quickstart.XXXXXX")
servers=()
# Called by the trap.
# shellcheck disable=SC2329
tidy() {
    [ "${#servers[@]}" -eq 0 ] || kill "${servers[@]}" 2>/dev/null || true
    wait
    chmod -R u+rwX "$work" 2>/dev/null || true
    rm -rf "$work"
}
trap tidy EXIT
cd "$work"

# Shows the command as a user would type it, then runs it.
try() {
    printf '\n$ rimg %s\n' "$*"
    "$RIMG" "$@"
}

# serve_store DIR: serves it on a free port and sets ADDRESS.
serve_store() {
    printf '\n$ rimg --root %s serve --listen 127.0.0.1:0 &\n' "$1"
    "$RIMG" --root "$1" serve --listen 127.0.0.1:0 >"$1.log" 2>&1 &
    servers+=("$!")
    local tries
    for tries in $(seq 200); do
        ADDRESS=$(sed -nE 's|.*http://([0-9.:]+).*|\1|p' "$1.log" | head -n 1)
        [ -z "$ADDRESS" ] || break
        kill -0 "$!" 2>/dev/null || break
        sleep 0.05
    done
    [ -n "$ADDRESS" ] || {
        cat "$1.log" >&2
        echo "the server did not start (looked $tries times)" >&2
        exit 1
    }
    echo "serving on $ADDRESS"
}

mkdir app
cp "$RIMG" app/rimg
echo 'hello from a file in the image' >app/greeting
cat >app/Buildfile <<'BUILDFILE'
FROM scratch
COPY --chmod=755 rimg /bin/rimg
COPY greeting /etc/greeting
RUN ["/bin/rimg", "version"]
ENTRYPOINT ["/bin/rimg"]
CMD ["version"]
BUILDFILE
export RIMG_ROOT=$work/mine

printf '$ cat app/Buildfile\n'
cat app/Buildfile

try build -t hello app | tee digest
try build -t hello app | tee again
cmp <(tail -n 1 digest) <(tail -n 1 again)
echo 'the same digest, nothing done twice'
try ls -l hello /etc
try cat hello /etc/greeting
try run --rm hello

serve_store theirs
try push hello "$ADDRESS/demo/hello:1"
registry=$ADDRESS
serve_store mine
printf '\nthe local images are a registry too:\n'
try --root elsewhere pull "$ADDRESS/hello"
try --root elsewhere pull "$registry/demo/hello:1"
try --root elsewhere run --rm "$registry/demo/hello:1"
try --root elsewhere images
try fsck

printf '\nDone. All of it happened in %s, which goes away now.\n' "$work"
printf 'Next: examples/debian-web, a web server on a Debian root file system.\n'
