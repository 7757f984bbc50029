#!/usr/bin/env bash
# Finding: two readers give the beginning of a gzip layer of several members as the whole, without an error.
#
# Versions: fflate 0.8.3 (npm); tarfile of Python 3.11.7.
# Behaviour: RFC 1952 lets a gzip file consist of several members; eStargz layers and parallel compressors write them so.
#   fflate.gunzipSync takes the length of the last member for that of everything and cuts the output there: 1,024 of 10,240
#   bytes. Its streaming Gunzip is right. tarfile in stream mode (`r|gz`, `r|*`, what one uses on a download) ends after
#   the first member and lists one file of three; `r:gz` on a seekable file is right.
# Why it matters: scanners and unpackers of layers written so see a part of the image and report it as clean or complete.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
npm init --yes >/dev/null
npm install --silent --no-fund --no-audit fflate@0.8.3 >/dev/null
stream=$(python3 - <<'PYTHON'
import gzip, io, tarfile
plain = io.BytesIO()
with tarfile.open(fileobj=plain, mode="w") as archive:
    for name in "abc":
        member = tarfile.TarInfo(name)
        member.size = 600
        archive.addfile(member, io.BytesIO(name.encode() * 600))
plain = plain.getvalue()
layer = b"".join(gzip.compress(plain[i : i + 1536]) for i in range(0, len(plain), 1536))
open("layer.tar.gz", "wb").write(layer)
assert gzip.decompress(layer) == plain and len(plain) == 10240
print(*(tarfile.open(fileobj=io.BytesIO(layer), mode=m).getnames() for m in ("r|gz", "r:gz")))
PYTHON
)
whole=$(node -e '
const { gunzipSync } = require("fflate");
const layer = require("fs").readFileSync("layer.tar.gz");
console.log(gunzipSync(layer).length, require("zlib").gunzipSync(layer).length);
')
echo "$(python3 --version) tarfile: $stream"
echo "fflate 0.8.3: $whole"
[ "$stream" = "['a'] ['a', 'b', 'c']" ] && [ "$whole" = '1024 10240' ] || {
    echo "changed: expected ['a'] ['a', 'b', 'c'] and 1024 10240"
    exit 1
}
