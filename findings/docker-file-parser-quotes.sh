#!/usr/bin/env bash
# Finding: docker-file-parser keeps the quotes of ENV and LABEL as part of the value.
#
# Versions: docker-file-parser 1.0.7 (npm), the newest.
# Behaviour: `ENV b="x y"` gives the value `"x y"`, with both quotes; docker stores `x y`.
#   Values without quotes are right, so a comparison with an image's configuration fails for some variables only.
# Why it matters: linters and generators on this package write the quotes into what they make.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
npm init --yes >/dev/null
npm install --silent --no-fund --no-audit docker-file-parser@1.0.7 >/dev/null
seen=$(node -e '
const { parse } = require("docker-file-parser");
console.log(JSON.stringify(parse("FROM alpine\nENV a=1 b=\"x y\"\nLABEL c=\"d\"\n").slice(1).map((i) => i.args)));
')
echo "docker-file-parser 1.0.7: $seen"
expected='[{"a":"1","b":"\"x y\""},{"c":"\"d\""}]'
[ "$seen" = "$expected" ] || {
    echo "changed: expected $expected"
    exit 1
}
