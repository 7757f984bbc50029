#!/usr/bin/env bash
# static-tests.sh DIRECTORY: the runner's tests as static programs, DIRECTORY/sandbox and DIRECTORY/unit, with the flags of
# build-static, so that the dependencies are compiled once for both.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$1"
cargo test --release --locked --no-run --message-format=json -p rimg-runner --lib --test sandbox --target "$target" \
    --config "target.$target.rustflags=['-C', 'target-feature=+crt-static']" |
    jq -r 'select(.profile.test? and .executable) | "\(.target.name) \(.executable)"' |
    while read -r name executable; do
        case $name in
        sandbox) install -m 755 "$executable" "$1/sandbox" ;;
        rimg_runner) install -m 755 "$executable" "$1/unit" ;;
        esac
    done
[ -x "$1/sandbox" ] && [ -x "$1/unit" ]
