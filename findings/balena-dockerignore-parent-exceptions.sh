#!/usr/bin/env bash
# Finding: in @balena/dockerignore an exception for a folder brings back files that a rule for files took out.
#
# Versions: @balena/dockerignore 1.0.2 (npm).
# Behaviour: with `**/.env` and then `!src`, the file src/.env counts as included. In docker (moby/patternmatcher,
#   MatchesUsingParentResults) an exception for a folder counts for what is in it only where the folder itself was
#   excluded before: src was not, so src/.env stays out of the context. `docs/*` and `!docs` differ in the same way.
# Why it matters: what a deployment tool built on this package sends is not what `docker build` sends from the same folder.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
npm init --yes >/dev/null
npm install --silent --no-fund --no-audit @balena/dockerignore@1.0.2 >/dev/null
seen=$(node -e '
const ignore = require("@balena/dockerignore");
const files = ["src/.env", "src/main.c", "docs/x.md"];
for (const patterns of [["**/.env", "!src"], ["docs/*", "!docs"]])
    console.log(ignore().add(patterns).filter(files).join(" "));
')
echo "@balena/dockerignore 1.0.2: $seen"
expected='src/.env src/main.c docs/x.md
src/.env src/main.c docs/x.md'
[ "$seen" = "$expected" ] || {
    echo "changed: expected $expected"
    exit 1
}
