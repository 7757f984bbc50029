#!/usr/bin/env python3
"""The stacks of layers of fixtures/layer-stacks as images, and trees as text.

  layers.py write TABLE FOLDER   an OCI layout a stack in FOLDER/NAME, which as a tar is an archive of docker too;
                                 FOLDER/NAME.expected has its tree, FOLDER/NAME.tools the tools that make it
  layers.py show                 a tar on standard input as such a tree; what tools add to a root is left out
"""

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile

# What tools put into a root, and the busybox that every image has.
ADDED = {"bin", "dev", "etc", "proc", "run", "sys", ".dockerenv"}
FIRST = "dir bin; busybox bin/busybox 755 0:0"


def member(text):
    """A tar header and content for one entry in the table's words."""
    word, rest = text.split(" ", 1) if " " in text else (text, "")
    path = rest.split(" ")[0]
    info = tarfile.TarInfo(path)
    info.mtime, info.mode, content = 1_000_000_000, 0o644, path.encode()
    words = rest.split(" ")
    if word in ("dir", "file", "busybox") and len(words) > 2 and ":" in words[2]:
        info.mode = int(words[1], 8)
        info.uid, info.gid = map(int, words[2].split(":"))
    elif word == "dir":
        info.mode = 0o755
    if word == "dir":
        info.type, content = tarfile.DIRTYPE, b""
    elif word == "link":
        info.type, info.linkname, content = tarfile.SYMTYPE, rest.split(" -> ")[1], b""
    elif word == "hard":
        info.type, info.linkname, content = tarfile.LNKTYPE, rest.split(" = ")[1], b""
    elif word == "gone":
        info.name, content = os.path.join(os.path.dirname(path), ".wh." + os.path.basename(path)), b""
    elif word == "opaque":
        info.name, content = os.path.join(path, ".wh..wh..opq"), b""
    elif word == "busybox":
        with open("/bin/busybox", "rb") as file:
            content = file.read()
    elif " = " in rest:
        content = rest.split(" = ", 1)[1].encode()
    info.size = len(content)
    return info, content


def layer(text):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for part in filter(None, (part.strip() for part in text.split("; "))):
            info, content = member(part)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def write_image(folder, layers):
    os.makedirs(f"{folder}/blobs/sha256")

    def blob(media_type, content):
        digest = hashlib.sha256(content).hexdigest()
        with open(f"{folder}/blobs/sha256/{digest}", "wb") as file:
            file.write(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def document(name, value):
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            json.dump(value, file)

    oci = "application/vnd.oci.image."
    tars = [layer(text) for text in [FIRST, *layers]]
    blobs = [blob(oci + "layer.v1.tar+gzip", gzip.compress(tar, mtime=0)) for tar in tars]
    diff_ids = ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in tars]
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/busybox", "true"]}}
    config["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    config = blob(oci + "config.v1+json", json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": config, "layers": blobs}
    manifest = blob(oci + "manifest.v1+json", json.dumps(manifest).encode())
    name = "localhost/stacks/" + os.path.basename(folder)
    manifest["annotations"] = {
        "org.opencontainers.image.ref.name": "1",
        "io.containerd.image.name": name + ":1",
    }
    document("index.json", {"schemaVersion": 2, "manifests": [manifest]})
    document("oci-layout", {"imageLayoutVersion": "1.0.0"})
    path = lambda descriptor: "blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")
    document(
        "manifest.json",
        [{"Config": path(config), "RepoTags": [name + ":1"], "Layers": [path(blob) for blob in blobs]}],
    )


def write(table, folder):
    name, tools, layers = "", "", []
    with open(table, encoding="utf-8") as file:
        for line in file.read().splitlines():
            if line.startswith("# ") and ": " in line:
                name, tools = line[2:].split(": ", 1)
            elif line.startswith("layer:"):
                layers.append(line.removeprefix("layer:"))
            elif line.startswith("result: "):
                write_image(f"{folder}/{name}", layers)
                with open(f"{folder}/{name}.expected", "w", encoding="utf-8") as out:
                    out.write("\n".join(line.removeprefix("result: ").split("; ")) + "\n")
                with open(f"{folder}/{name}.tools", "w", encoding="utf-8") as out:
                    out.write(tools + "\n")
                layers = []
                print(name)


def show(stream):
    rows = {}
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for info in tar:
            path = "/".join(part for part in info.name.split("/") if part not in ("", "."))
            if not path or path.split("/")[0] in ADDED:
                continue
            if info.issym():
                rows[path] = ("link", f"-> {info.linkname}", None)
            elif info.islnk():
                rows[path] = rows.get(info.linkname.removeprefix("./").strip("/"), ("hard", "", info.linkname))
            else:
                kind, usual = ("dir", 0o755) if info.isdir() else ("file", 0o644)
                said = (info.mode & 0o7777, info.uid, info.gid) != (usual, 0, 0)
                attributes = f"{info.mode & 0o7777:o} {info.uid}:{info.gid}" if said else ""
                content = None if info.isdir() else tar.extractfile(info).read().decode()
                rows[path] = (kind, attributes, content)
    for path in sorted(rows):
        kind, attributes, content = rows[path]
        row = f"{kind} {path} {attributes}".rstrip()
        print(row if content in (None, path) else f"{row} = {content}")


if sys.argv[1] == "write":
    write(sys.argv[2], sys.argv[3])
else:
    show(sys.stdin.buffer)
