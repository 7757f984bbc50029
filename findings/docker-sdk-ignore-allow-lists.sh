#!/usr/bin/env bash
# Finding: docker's SDK for Python leaves out what the allow list `**`, `!**/*.go` brings back in folders.
#
# Versions: docker 7.1.0 (PyPI), docker.utils.build.exclude_paths, which decides what `images.build(path=…)` sends.
# Behaviour: an exception brings a file back only where a folder above it matches the exception written out part by part,
#   so with `**` as first pattern no folder is entered: main.go is sent, api/x/b.go is not. With `*` and `!docs/**/*.md` the file
#   docs/x.md is sent and docs/a/r.md is not. The docker command line and BuildKit send every .go and .md file there.
# Why it matters: the first list is what kubebuilder writes into each of its projects; COPY then fails, or copies nothing
#   where the source is a wildcard.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check docker==7.1.0
mkdir -p "$scratch"/context/{api/x,docs/a}
touch "$scratch"/context/{main.go,api/x/b.go,docs/x.md,docs/a/r.md}
seen=$("$scratch/venv/bin/python" - "$scratch/context" <<'PYTHON'
import os, sys
from docker.utils.build import exclude_paths
for patterns in (["**", "!**/*.go"], ["*", "!docs/**/*.md"]):
    print(sorted(p for p in exclude_paths(sys.argv[1], patterns) if os.path.isfile(os.path.join(sys.argv[1], p))))
PYTHON
)
echo "docker 7.1.0 (Python): $seen"
expected="['main.go']
['docs/x.md']"
[ "$seen" = "$expected" ] || {
    echo "changed: expected $expected"
    exit 1
}
