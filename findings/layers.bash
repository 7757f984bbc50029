# shellcheck shell=bash
# Sourced by the findings about appliers of layers: podman 4.3.1 with its overlay storage and umoci 0.4.7, both of Debian 12,
# unpacked into a temporary folder, on an OCI layout that Python writes. Needs root, python3 and apt of Debian 12, and
# the libraries libgpgme11, libseccomp2, libsubid4 and libdevmapper1.02.1.
set -euo pipefail
# podman takes the path of an OCI layout for a name, which has no capitals.
scratch=/tmp/layers-$$
mkdir "$scratch"
trap 'umount "$scratch/storage/overlay" 2>/dev/null || true; rm -rf "$scratch"' EXIT
(cd "$scratch" && apt-get download -o APT::Sandbox::User=root podman=4.3.1+ds1-8+deb12u1+b3 umoci=0.4.7+ds-3+b7 >/dev/null)
for package in "$scratch"/*.deb; do dpkg-deb --extract "$package" "$scratch/tools"; done
podman=("$scratch/tools/usr/bin/podman" --root "$scratch/storage" --runroot "$scratch/run" --storage-driver overlay)
umoci=$scratch/tools/usr/bin/umoci

# layout PYTHON-LIST: layers as lists of (name, type, text), types d, f and l for directories, files and symbolic links.
layout() {
    python3 - "$scratch/layout" "$1" <<'PYTHON'
import ast, hashlib, io, json, os, sys, tarfile

root, layers = sys.argv[1], ast.literal_eval(sys.argv[2])
os.makedirs(os.path.join(root, "blobs/sha256"))

def archive(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, text in entries:
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            if kind == "d":
                member.type = tarfile.DIRTYPE
            elif kind == "l":
                member.type, member.linkname = tarfile.SYMTYPE, text
            else:
                member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()

def put(content, kind):
    name = hashlib.sha256(content).hexdigest()
    with open(os.path.join(root, "blobs/sha256", name), "wb") as blob:
        blob.write(content)
    return {"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + name, "size": len(content)}

stored = [put(archive(entries), "layer.v1.tar") for entries in layers]
config = {"architecture": "amd64", "os": "linux", "config": {}}
config["rootfs"] = {"type": "layers", "diff_ids": [layer["digest"] for layer in stored]}
manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
manifest["config"] = put(json.dumps(config).encode(), "config.v1+json")
manifest["layers"] = stored
entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
json.dump({"schemaVersion": 2, "manifests": [entry]}, open(os.path.join(root, "index.json"), "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open(os.path.join(root, "oci-layout"), "w"))
PYTHON
}

# says PODMAN UMOCI: the paths that each finds in the image.
says() {
    local image mounted seen
    image=$("${podman[@]}" pull --quiet "oci:$scratch/layout:latest")
    mounted=$("${podman[@]}" image mount "$image")
    seen=$(paths "$mounted")
    "${podman[@]}" image umount "$image" >/dev/null
    "$umoci" unpack --image "$scratch/layout:latest" "$scratch/bundle" >/dev/null
    echo "$("${podman[@]}" --version): $seen"
    echo "$("$umoci" --version | head -n 1): $(paths "$scratch/bundle/rootfs")"
    [ "$seen" = "$1" ] && [ "$(paths "$scratch/bundle/rootfs")" = "$2" ] || {
        printf 'changed: expected\n%s\n%s\n' "$1" "$2"
        exit 1
    }
}

paths() {
    (cd "$1" && find . -mindepth 1 -printf '%P ' | tr ' ' '\n' | sort | xargs)
}
