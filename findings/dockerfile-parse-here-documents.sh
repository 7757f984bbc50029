#!/usr/bin/env bash
# Finding: dockerfile-parse reads the text of here-documents as instructions.
#
# Versions: dockerfile-parse 2.0.1 (PyPI).
# Behaviour: here-documents are part of the Dockerfile language since docker/dockerfile 1.4. The parser does not know them:
#   each line of the body becomes an instruction. A FROM, ENV, LABEL or CMD in a script or file that the Dockerfile only
#   writes replaces the image's own: `baseimage`, `parent_images`, `envs`, `labels` and `cmd` are wrong, without an error.
# Why it matters: tools that pin or rewrite base images by this parser look at, and edit, an image that is none.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check dockerfile-parse==2.0.1
cat >"$scratch/Dockerfile" <<'DOCKERFILE'
FROM alpine:3.20
COPY <<END /usr/share/template/Dockerfile
FROM template:1
LABEL role=template
CMD ["template"]
END
CMD ["app"]
DOCKERFILE
seen=$("$scratch/venv/bin/python" - "$scratch" <<'PYTHON'
import sys
from dockerfile_parse import DockerfileParser
parser = DockerfileParser(sys.argv[1])
print(parser.baseimage, parser.parent_images, dict(parser.labels), parser.cmd)
PYTHON
)
echo "dockerfile-parse 2.0.1: $seen"
expected="template:1 ['alpine:3.20', 'template:1'] {'role': 'template'} [\"app\"]"
[ "$seen" = "$expected" ] || {
    echo "changed: expected $expected"
    exit 1
}
