#!/usr/bin/env bash
# Finding: dockerfile-parse expands `${NAME:-default}` to the value with the rest of the expression behind it.
#
# Versions: dockerfile-parse 2.0.1 (PyPI).
# Behaviour: only `$NAME` and `${NAME}` are known. Of any longer form, `${V:-1}`, `${V%.*}`, `${V#*.}`, all of them in the
#   Dockerfile reference, the name is replaced and the operator stays as text with its closing brace:
#   `FROM alpine:${V:-1}` with V=3 gives the base image `alpine:3:-1}`. Nothing is reported.
# Why it matters: the result is no image name, or an environment value that no build ever had.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check dockerfile-parse==2.0.1
# shellcheck disable=SC2016
printf '%s\n' 'ARG V=3' 'FROM alpine:${V:-1}' 'ENV R=1.2.3' 'ENV MAJOR=${R%%.*}' >"$scratch/Dockerfile"
seen=$("$scratch/venv/bin/python" - "$scratch" <<'PYTHON'
import sys
from dockerfile_parse import DockerfileParser
parser = DockerfileParser(sys.argv[1])
print(parser.baseimage, dict(parser.envs))
PYTHON
)
echo "dockerfile-parse 2.0.1: $seen"
expected="alpine:3:-1} {'R': '1.2.3', 'MAJOR': '1.2.3%%.*}'}"
[ "$seen" = "$expected" ] || {
    echo "changed: expected $expected"
    exit 1
}
