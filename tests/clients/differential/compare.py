"""An image as lines of text, and what two such texts differ in.

    compare.py lines ARCHIVE                  the image in an archive of docker or an OCI layout (a tar, or unpacked)
    compare.py diff CASE ENGINE ONE OTHER TABLE   differences that the table does not expect; exit code 1 if there are any

The lines tell the merged files (type, mode, owner, content, link target, hard link group, extended attributes), then
the configuration and, as `history`, the instructions. Times are left out. The layers are applied here, by the rules of
the OCI image specification, so that all engines are read by the same eyes and none of them is rimg's.
"""

import hashlib
import io
import json
import os
import re
import sys
import tarfile

CONFIG_KEYS = [
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "Healthcheck",
    "OnBuild", "Shell",
]


class Archive:
    """Reads members by name, from a tar or a folder."""

    def __init__(self, path):
        self.folder = path if os.path.isdir(path) else None
        self.tar = None if self.folder else tarfile.open(path)

    def read(self, name):
        if self.folder:
            with open(os.path.join(self.folder, name), "rb") as file:
                return file.read()
        member = self.tar.getmember(name)
        # `docker save` writes a layer that it has written already as a link.
        while member.issym() or member.islnk():
            target = member.linkname
            if member.issym():
                target = os.path.normpath(os.path.join(os.path.dirname(member.name), target))
            member = self.tar.getmember(target)
        return self.tar.extractfile(member).read()

    def json(self, name):
        return json.loads(self.read(name))

    def image(self):
        """The configuration, and the layers' tars from the lowest up."""
        try:
            entry = self.json("manifest.json")[0]
            return self.json(entry["Config"]), [self.read(layer) for layer in entry["Layers"]]
        except (KeyError, FileNotFoundError):
            pass
        blob = lambda descriptor: "blobs/" + descriptor["digest"].replace(":", "/")
        document = self.json("index.json")
        while "manifests" in document:
            document = self.json(blob(document["manifests"][0]))
        return self.json(blob(document["config"])), [self.read(blob(layer)) for layer in document["layers"]]


class Node:
    def __init__(self, member, content):
        self.member, self.content = member, content


def apply(tree, data):
    """Applies a layer to a tree: path to node."""
    lower = dict(tree)
    tar = tarfile.open(fileobj=io.BytesIO(data))
    for member in tar:
        path = os.path.normpath(member.name).lstrip("/")
        path = "" if path == "." else path
        folder, name = os.path.split(path)
        below = folder + "/" if folder else ""
        if name == ".wh..wh..opq":
            for known in [known for known in lower if known.startswith(below) and known]:
                if tree.get(known) is lower[known]:
                    del tree[known]
            continue
        if name.startswith(".wh."):
            remove(tree, below + name[4:])
            continue
        if not member.isdir() or (path in tree and not tree[path].member.isdir()):
            remove(tree, path)
        if member.islnk():
            tree[path] = tree[os.path.normpath(member.linkname).lstrip("/")]
        else:
            content = tar.extractfile(member).read() if member.isreg() else b""
            tree[path] = Node(member, content)


def remove(tree, path):
    for known in [known for known in tree if known == path or known.startswith(path + "/")]:
        del tree[known]


def file_lines(tree):
    first = {}
    for path in sorted(tree):
        node = tree[path]
        member = node.member
        text = f"{member.mode & 0o7777:o} {member.uid}:{member.gid} /{path}"
        if id(node) in first:
            yield f"hardlink /{path} = /{first[id(node)]}"
            continue
        first[id(node)] = path
        if member.isdir():
            text = f"dir {text}"
        elif member.issym():
            text = f"link {member.uid}:{member.gid} /{path} -> {member.linkname}"
        elif member.isreg():
            text = f"file {text} {len(node.content)} {hashlib.sha256(node.content).hexdigest()[:16]}"
        elif member.isfifo():
            text = f"fifo {text}"
        else:
            text = f"device {text} {member.type.decode()} {member.devmajor},{member.devminor}"
        for key, value in sorted(member.pax_headers.items()):
            if key.startswith("SCHILY.xattr.") and not key.startswith("SCHILY.xattr.trusted."):
                text += f" {key[13:]}={value!r}"
        yield text


def config_lines(config):
    run = config.get("config") or {}
    for key in CONFIG_KEYS:
        value = run.get(key)
        if key == "Labels" and value:
            value = {name: text for name, text in value.items() if not name.startswith("io.buildah.")}
        if key == "Env":
            # A list for people; a process sees a set.
            value = sorted(value or [])
        # Absent, null and empty are one.
        if value or value == 0:
            yield f"{key} = {json.dumps(value, sort_keys=True, ensure_ascii=False)}"
    for key in ["os", "architecture", "variant", "author"]:
        if config.get(key):
            yield f"{key} = {config[key]}"


def lines(path):
    config, layers = Archive(path).image()
    tree = {}
    for layer in layers:
        apply(tree, layer)
    # A root that no layer speaks of is made by whoever unpacks it.
    tree.pop("", None)
    yield from file_lines(tree)
    yield from config_lines(config)
    for entry in config.get("history") or []:
        yield f"history {entry.get('created_by', '')!r}"


def expected(table, case, engine):
    """The rows `case | engines | pattern | reason` that speak of this case and engine."""
    with open(table) as file:
        for row in file:
            if row.startswith("|") and row.count("|") >= 5:
                cells = [cell.strip().strip("`") for cell in row.replace("\\|", "\0").split("|")[1:5]]
                cells = [cell.replace("\0", "|") for cell in cells]
                if cells[0] in (case, "all") and engine in cells[1].split():
                    yield re.compile(cells[2]), cells[0] == "all"


def diff(case, engine, one, other, table):
    read = lambda path: [line.rstrip("\n") for line in open(path, errors="surrogateescape")]
    one, other = read(one), read(other)
    found = [f"rimg: {line}" for line in one if line not in other]
    found += [f"{engine}: {line}" for line in other if line not in one]
    rows = list(expected(table, case, engine))
    used = set()
    for line in list(found):
        for row in rows:
            if row[0].search(line):
                used.add(row)
                if line in found:
                    found.remove(line)
    for pattern, general in set(rows) - used:
        if not general:
            found.append(f"the table expects a difference that is none: {pattern.pattern}")
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    if sys.argv[1] == "lines":
        sys.stdout.reconfigure(errors="surrogateescape")
        print("\n".join(lines(sys.argv[2])))
    else:
        sys.exit(diff(*sys.argv[2:]))
