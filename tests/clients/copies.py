#!/usr/bin/env python3
"""COPY, ADD and ignore rules beside BuildKit: whole trees, every byte.

Each case is a context and a Dockerfile. Both builders make the tree of it, and everything but times is compared: paths,
types, modes, owners, link targets, which names are one file, contents.

    copies.py --rimg RIMG --docker-host unix:///…        Debian's docker.io: what its BuildKit knows
    copies.py --rimg RIMG --buildctl 'buildctl --addr …' a newer BuildKit: all cases
    --only TEXT                                          the cases whose name holds the text
"""

import argparse
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile

# Longest that one build may take, in seconds: they copy a few files.
BUILD_SECONDS = 120

CASES = []


def case(name, files, dockerfile, newer=False, fails=False):
    """`files` maps a path to its content, to a Link, a Hard or a Tar; `newer` wants BuildKit's flags of today."""
    CASES.append((name, files, dockerfile, newer, fails))


class Link(str):
    """A symbolic link."""


class Hard(str):
    """A further name of a file."""


class Tar(list):
    """An archive: (name, type, content or target) each."""


class Mode(tuple):
    """(mode, content); content None for a folder."""


ALLOW = {".git/objects/00/o": "o", "api/a.go": "a", "bin/t": "t", "src/.env": "e", "src/g": "g", "docs/a.md": "a",
         "docs/b/c.md": "c", "node_modules/m/keep": "k", "node_modules/m/i.js": "i", "a1": "1", "a2": "2"}
for ignore in ["**\n!**/*.go\n", "*\n!**/*.go\n", "*\n!src/*.go\n", "node_modules\n!**/keep\n", ".git\n!**/README.md\n",
               "**\n!none\n", "*\n!src/lib\n", "**/.env\n!src\n", "docs/*\n!docs\n", "docs/**\n!docs\n",
               "docs/b/*.md\n!docs/\n", "*\n!docs\n**/*.md\n", "*\n!src/**\n", "a?\n! a1\n", " a1\n", "\ufeffa1\n",
               "a1\r\nbin\r\n", "***/c.md\n", "d**/c.md\n", "/a1\n./a2\n", "*\n!api\n!docs/b\n", "!a1\n*\n",
               "[^a]*\n", "src/\n!src/g/\n"]:
    # Exceptions are read in today's way since 2022.
    case(f"ignore {ignore!r}", {**ALLOW, ".dockerignore": ignore}, "FROM scratch\nCOPY . /d/\n", newer="!" in ignore)
    flags = " ".join("--exclude=" + line.strip() for line in ignore.strip("\ufeff\n").split("\n"))
    if not any(character in flags for character in "\r \\!") or "! " not in flags:
        if "=/" not in flags and "\ufeff" not in ignore:
            case(f"exclude {flags}", ALLOW, f"FROM scratch\nCOPY {flags} . /d/\n", newer=True)

APP = {"app/keys/k": "k", "app/x.md": "m", "app/storage/views/v": "v", "app/storage/y.md": "y"}
for words in ["--exclude=app/keys app", "--exclude=*.md app", "--exclude=storage/views ./app/./storage",
              "--exclude=app/storage/y.md app/*/", "--exclude=**/*.md app", "--exclude=app --exclude=!app/keys app"]:
    case(f"parents {words}", APP, f"FROM scratch\nCOPY --parents {words} /d/\n", newer=True)
case("parents of what is excluded", APP, "FROM scratch\nCOPY --parents --exclude=app app /d/\n", newer=True, fails=True)

PIVOTS = {"a1/b/f": "f", "a2/b/g": "g", "a3": "3", "pkg_a/q/p.xml": "q", "pkg_a/p.xml": "a", "pkg_/p.xml": "_",
          "pkg_p.xml": "p", "lib/so.1": "so", "lib/so": Link("so.1"), "lib/none": Link("../nowhere"),
          "real/f": "r", "lnk": Link("real"), "m/sub/x": Mode((0o751, None)), "m/sub/x/y": "y"}
for words in ["a*/./b", "a1*/./b/f", "./a1/./b a2/b", "a1/b/", "**/f", "nothing*", "./pkg_**/p.xml", "pkg_a/**", "**/q",
              "lib/so*", "lib/none", "lnk", "l*k/./f", "lib", "m/sub/x", "m/*/x", "*/b/g", "**/*.xml", "pkg_?/p.xml"]:
    case(f"parents {words}", PIVOTS, f"FROM scratch\nCOPY --parents {words} /d/\n", newer=True)
case("parents, nothing", PIVOTS, "FROM scratch\nCOPY --parents nothing /d/\n", newer=True, fails=True)
for source in ["lib/n*", "lib/none", "lib/*"]:
    case(f"a link to nothing, {source}", PIVOTS, f"FROM scratch\nCOPY {source} /d/\n", fails=True)
for source in ["lnk", "lib/so", "lnk/f", "lib/so*", "a*", "*.xml pkg_a/p.xml", "m/*", "a?/b", "[ap]*/b"]:
    case(f"sources {source}", PIVOTS, f"FROM scratch\nCOPY {source} /d/\n")

NAMES = {"a": "x", "b": Hard("a"), "d/c": Hard("a"), "d/z": "z", "e/1": "y", "e/2": Hard("e/1")}
for lines in ["COPY . /y/", "COPY a b /y/", "COPY d e /y/", "COPY d/ /y/\nCOPY e/ /y/", "COPY --chown=5:6 . /y/",
              "ADD . /y/"]:
    case(f"hard links {lines}", NAMES, f"FROM scratch\n{lines}\n")
case("hard links, first name ignored", {**NAMES, ".dockerignore": "a\n"}, "FROM scratch\nCOPY . /y/\n")
case("hard links, excluded", NAMES, "FROM scratch\nCOPY --exclude=a . /y/\n", newer=True)
case("hard links of a stage", NAMES, "FROM scratch AS s\nCOPY . /y/\nFROM scratch\nCOPY --from=s /y /z\n"
                                     "COPY --from=s /y/a /y/b /w/\n")

MODES = {"t/a": Mode((0o4755, "a")), "t/sub": Mode((0o2755, None)), "t/sub/b": "b", "t/l": Link("a")}
for flags in ["700", "4711", "0"]:
    for words in ["t /x/y", "t/a /x/y/z", "t/a /x/y/"]:
        case(f"chmod {flags} {words}", MODES, f"FROM scratch\nCOPY --chmod={flags} {words}\n", newer=True)
for flags in ["u=rwX,go=", "g=u", "a-x+X", "u=rwX,go=rX", "g=rx", "go=u-w", "a-X", "u+s,g-s", "+t", "o=g"]:
    case(f"chmod {flags}", MODES, f"FROM scratch\nCOPY --chmod={flags} t /x/y\n", newer=True)
case("chmod on the way", MODES, "FROM scratch\nCOPY --parents --chmod=500 t/sub/b /x\n", newer=True)
case("chmod on an archive", {"t.tar": Tar([("d", "dir", ""), ("d/x", "file", "x"), ("e/y", "file", "y")])},
     "FROM scratch\nADD --chmod=700 --chown=5:6 t.tar /x/y/\n", newer=True)

BASE = {"base/s/p/old": "old", "base/usr/lib/so": "so", "base/file": "f", "base/lib": Link("usr/lib"),
        "base/gone": Link("nowhere"), "base/to-file": Link("file"), "base/own": Mode((0o1711, None)), "base/own/x": "x"}
ARCHIVES = {
    "a file over a folder": [("s/p", "file", "new")],
    "a link over a folder": [("s/p", "link", "q")],
    "a folder over a file": [("file", "dir", ""), ("file/x", "file", "x")],
    "a folder over a link to nothing": [("gone", "dir", ""), ("gone/x", "file", "x")],
    "a folder over a link to a file": [("to-file", "dir", "")],
    "below a link to a folder": [("lib/x", "file", "x")],
    "a file over a link": [("lib", "file", "x")],
    "an implied folder": [("own/y", "file", "y"), ("new/z", "file", "z")],
    "a folder with attributes": [("own", "dir", ""), ("own/y", "file", "y")],
    "links within": [("a", "file", "a"), ("b", "hard", "a"), ("c", "link", "a")],
    "a path twice": [("a", "file", "1"), ("a", "file", "2")],
    "a path twice, file then folder": [("a", "file", "1"), ("a", "dir", ""), ("a/b", "file", "2")],
    "a link and an entry below it": [("real", "dir", ""), ("lnk", "link", "real"), ("lnk/f", "file", "f")],
    "a link and a folder over it": [("real", "dir", ""), ("lnk", "link", "real"), ("lnk", "dir", ""), ("lnk/f", "file", "f")],
}
for name, entries in ARCHIVES.items():
    case(f"archive: {name}", {**BASE, "t.tar": Tar(entries)}, "FROM scratch\nCOPY base /\nADD t.tar /\n")
    case(f"archive: {name}, twice", {**BASE, "t.tar": Tar(entries)},
         "FROM scratch\nCOPY base /\nADD t.tar /\nADD t.tar /\n")
MEMBERS = [[(f"{archive}-{number}", "file", f"{archive} {number}") for number in range(40)] for archive in "123"]
SEVERAL = {f"{number}.tar": Tar(entries) for number, entries in enumerate(MEMBERS)}
for lines in ["ADD 0.tar 1.tar 2.tar /s/", "ADD *.tar /s/", "ADD 2.tar Dockerfile 0.tar /s/"]:
    case(f"several archives: {lines}", SEVERAL, f"FROM scratch\n{lines}\n")
FOLDER, FILE = Tar([("s/p", "dir", ""), ("s/p/x", "file", "x")]), Tar([("s/p", "file", "p")])
for order in ["1.tar 2.tar", "2.tar 1.tar"]:
    case(f"archives in conflict: {order}", {**BASE, "1.tar": FOLDER, "2.tar": FILE},
         f"FROM scratch\nCOPY base /\nADD {order} /\n")


def make(folder, files):
    """Makes the files below `folder`, modes whatever the umask."""
    # Further names of files come last.
    for path, content in sorted(files.items(), key=lambda file: (isinstance(file[1], Hard), file[0])):
        place = os.path.join(folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if isinstance(content, Link):
            os.symlink(content, place)
        elif isinstance(content, Hard):
            os.link(os.path.join(folder, content), place)
        elif isinstance(content, Tar):
            archive(place, content)
        elif isinstance(content, Mode) and content[1] is None:
            os.makedirs(place, exist_ok=True)
        else:
            text = content[1] if isinstance(content, Mode) else content
            with open(place, "w", encoding="utf-8", newline="") as file:
                file.write(text)
    for directory, _, names in os.walk(folder):
        os.chmod(directory, 0o755)
        for name in names:
            if not os.path.islink(os.path.join(directory, name)):
                os.chmod(os.path.join(directory, name), 0o644)
    for path, content in files.items():
        if isinstance(content, Mode):
            os.chmod(os.path.join(folder, path), content[0])


def archive(place, entries):
    kinds = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
    with tarfile.open(place, "w", format=tarfile.PAX_FORMAT) as out:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.uid, info.gid = kinds[kind], 7, 9
            info.mode = 0o751 if kind == "dir" else 0o640
            if kind == "file":
                info.size = len(content)
                out.addfile(info, io.BytesIO(content.encode()))
            else:
                info.linkname = content
                out.addfile(info)


def listing(path):
    """One line for each name of a tar. Names of one file name the first of them."""
    lines, contents = {}, {}
    with tarfile.open(path) as tar:
        for member in tar:
            name = member.name.strip("./") or "."
            if name == ".":
                continue
            kind = "f" if member.isreg() else "d" if member.isdir() else "l" if member.issym() else "h"
            if member.islnk():
                lines[name] = ("h", member.linkname.lstrip("./"))
                continue
            text = member.linkname if member.issym() else ""
            if member.isreg():
                text = tar.extractfile(member).read().decode(errors="replace")
            mode = 0o777 if member.issym() else member.mode & 0o7777
            lines[name] = (kind, f"{mode:o} {member.uid}:{member.gid} {text!r}")
            contents[name] = lines[name][1]
    groups = {}
    for name, (kind, text) in lines.items():
        if kind == "h":
            groups.setdefault(text, [text]).append(name)
    same = {name: min(names) for names in groups.values() for name in names}
    shown = []
    for name, (kind, text) in lines.items():
        text = contents[text] if kind == "h" else text
        one = f" is {same[name]}" if name in same and same[name] != name else ""
        shown.append(f"{'f' if kind == 'h' else kind} {name} {text}{one}")
    return sorted(shown)


def run(command, environment):
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=BUILD_SECONDS, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def build(command, tar, environment):
    """The listing of a build, or the end of its output."""
    status, output = run(command, environment)
    if status != 0:
        return None, output[-600:]
    return listing(tar), ""


def compare(arguments, folder, files, dockerfile, fails):
    context = os.path.join(folder, "context")
    os.mkdir(context)
    make(context, {**files, "Dockerfile": dockerfile})
    tars = [os.path.join(folder, name) for name in ("rimg.tar", "peer.tar")]
    store = os.path.join(folder, "store")
    ours = [arguments.rimg, "--root", store, "build", "--progress", "plain", "-f", f"{context}/Dockerfile",
            "--output", f"type=tar,dest={tars[0]}", context]
    environment = dict(os.environ, DOCKER_BUILDKIT="1", BUILDKIT_PROGRESS="plain", HOME=folder)
    if arguments.buildctl:
        peers = [*shlex.split(arguments.buildctl), "build", "--frontend", "dockerfile.v0", "--local",
                 f"context={context}", "--local", f"dockerfile={context}", "--output", f"type=tar,dest={tars[1]}"]
    else:
        environment["DOCKER_HOST"] = arguments.docker_host
        peers = ["/usr/bin/docker", "build", "--output", f"type=tar,dest={tars[1]}", context]
    (found, why), (expected, peer_why) = build(ours, tars[0], environment), build(peers, tars[1], environment)
    if fails:
        return [] if found is None and expected is None else [f"should fail: {found} {expected}"]
    if found is None or expected is None:
        return [f"rimg: {why}" if found is None else "", f"peer: {peer_why}" if expected is None else ""]
    only = [f"only rimg:  {line}" for line in found if line not in expected]
    return only + [f"only peer:  {line}" for line in expected if line not in found]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rimg", required=True)
    parser.add_argument("--docker-host")
    parser.add_argument("--buildctl")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    failed = passed = skipped = 0
    for name, files, dockerfile, newer, fails in CASES:
        if arguments.only not in name:
            continue
        if newer and not arguments.buildctl:
            skipped += 1
            continue
        folder = tempfile.mkdtemp(prefix="copies.")
        try:
            differences = compare(arguments, folder, files, dockerfile, fails)
        finally:
            shutil.rmtree(folder)
        if differences:
            failed += 1
            print(f"FAILED  {name}", *differences, sep="\n        ", flush=True)
        else:
            passed += 1
    print(f"{passed} as BuildKit, {failed} not, {skipped} SKIPPED: they want a newer BuildKit (--buildctl)")
    sys.exit(1 if failed or not passed else 0)


main()
