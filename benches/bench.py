"""The measurements of benches/run, which starts the peers first and says how to call this.

Each case lists tools that end with an equal result. For each: prepare (not timed), run (timed), and once before
anything counts, the results of all tools are compared. Rounds are interleaved: every tool once, then again, so that
the machine's moods meet all of them. Figures are medians; a ratio is rimg's median by the tool's.
"""

import argparse
import hashlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import time

RIMG = os.environ["RIMG"]
WORK = pathlib.Path(os.environ["BENCH_DIR"]) / f"rimg-bench.{os.getpid()}"

FULL = dict(rounds=5, large_files=1024, small_files=100_000, run_steps=20, transfer_mib=256, starts=20, load_s=5)
QUICK = dict(rounds=3, large_files=128, small_files=10_000, run_steps=5, transfer_mib=64, starts=10, load_s=2)
CHECK = dict(rounds=1, large_files=8, small_files=500, run_steps=2, transfer_mib=8, starts=2, load_s=1)


class Tool:
    """One competitor in a case: its command, what comes before it, and how its result is described."""

    def __init__(self, name, command, prepare=None, result=None, after=None):
        self.name, self.command, self.prepare, self.result, self.after = name, command, prepare, result, after
        self.seconds = []


class Row:
    """A line of the table."""

    def __init__(self, case, tool, figure, ratio, note=""):
        self.cells = (case, tool, figure, ratio, note)


def call(*command, **options):
    """Runs a command that must succeed; what it said is shown when it does not."""
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise SystemExit(f"failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stdout.decode(errors='replace')[-3000:]}")
    return done.stdout.decode(errors="replace")


def timed(tool):
    """Runs the tool's command once and gives the seconds of wall time."""
    command = [str(part) for part in (tool.command() if callable(tool.command) else tool.command)]
    with open(WORK / "output", "wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        process.wait()
        seconds = time.perf_counter() - start
    if process.returncode:
        text = (WORK / "output").read_text(errors="replace")[-3000:]
        raise SystemExit(f"{tool.name} failed ({process.returncode}): {' '.join(command)}\n{text}")
    return seconds


def peak_memory_mib(command):
    """The largest resident set of a command and its children, in a run of its own. GNU time starts it: a child of
    this program would be charged with this program's own memory."""
    call("/usr/bin/time", "-f", "%M", "-o", WORK / "memory", *command)
    return int((WORK / "memory").read_text().split()[-1]) / 1024


def race(case, tools, rounds, per_second=None, note=None):
    """Interleaves the tools and gives the case's rows. The first tool is the one that is compared with the others."""
    results = {}
    for number in range(rounds):
        order = tools[number % len(tools):] + tools[:number % len(tools)]
        for tool in order:
            if tool.prepare:
                tool.prepare()
            os.sync()
            tool.seconds.append(timed(tool))
            if number == 0 and tool.result:
                results[tool.name] = tool.result()
            if tool.after:
                tool.after()
            print(f"  {case}: {tool.name}: {tool.seconds[-1]:.3f} s", file=sys.stderr, flush=True)
    if len(set(results.values())) > 1:
        raise SystemExit(f"{case}: the results differ: {results}")
    rows, ours = [], statistics.median(tools[0].seconds)
    for tool in tools:
        median = statistics.median(tool.seconds)
        spread = f"{duration(median)} ({duration(min(tool.seconds))}–{duration(max(tool.seconds))})"
        ratio = "1" if tool is tools[0] else f"{ours / median:.2f}×"
        rows.append(Row(case, tool.name, spread, ratio, (note or "") if tool is tools[0] else ""))
    equal = "results equal" if len(results) > 1 else ""
    rows[0].cells = rows[0].cells[:4] + ("; ".join(filter(None, [rows[0].cells[4], equal])),)
    return rows


def duration(seconds):
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


# --- what an image holds, computed without any of the tools under test


def tree_digest(layers):
    """The digest of a stack of layers' tree: path, kind, mode, owner, link and content; no times. Places where an
    engine mounts its own files while a step runs are left out: they say nothing of the image."""
    ignored = re.compile(r"^(dev|proc|sys|run|etc/(hosts|hostname|resolv\.conf|mtab))(/|$)")
    tree = {}
    for layer in layers:
        with tarfile.open(fileobj=layer, mode="r:*") as tar:
            for member in tar:
                path = os.path.normpath("/" + member.name).strip("/")
                folder, _, name = path.rpartition("/")
                if name.startswith(".wh."):
                    gone = os.path.join(folder, name[4:])
                    for other in [other for other in tree if other == gone or other.startswith(gone + "/")]:
                        del tree[other]
                elif path and not ignored.match(path):
                    tree[path] = describe(tar, member, tree)
    document = "\n".join(f"{path}\0{tree[path]}" for path in sorted(tree))
    return hashlib.sha256(document.encode(errors="surrogateescape")).hexdigest()[:16]


def describe(tar, member, tree):
    if member.islnk():
        return tree.get(os.path.normpath("/" + member.linkname).strip("/"))
    content = ""
    if member.isreg():
        content = hashlib.file_digest(tar.extractfile(member), "sha256").hexdigest() if hasattr(hashlib, "file_digest") \
            else hashlib.sha256(tar.extractfile(member).read()).hexdigest()
    kind = {tarfile.AREGTYPE: tarfile.REGTYPE}.get(member.type, member.type)
    return f"{kind} {member.mode & 0o7777:o} {member.uid}:{member.gid} {member.linkname} {content}"


def tree_of_layout(folder):
    """The tree of the image in an OCI layout's folder."""
    folder = pathlib.Path(folder)

    def blob(descriptor):
        return folder / "blobs" / descriptor["digest"].replace(":", "/")

    manifest = json.loads((folder / "index.json").read_text())["manifests"][-1]
    document = json.loads(blob(manifest).read_text())
    while "manifests" in document:
        document = json.loads(blob(document["manifests"][0]).read_text())
    return tree_digest([open(blob(layer), "rb") for layer in document["layers"]])


def tree_of_docker_archive(path):
    """The tree of the image in what `docker save` wrote."""
    with tarfile.open(path) as tar:
        layers = json.load(tar.extractfile("manifest.json"))[0]["Layers"]
        return tree_digest([io.BytesIO(tar.extractfile(layer).read()) for layer in layers])


# --- the tools' stores, emptied before a clean run


class Rimg:
    """A store of its own for each purpose."""

    def __init__(self, name):
        self.root = WORK / f"store-{name}"

    def empty(self):
        shutil.rmtree(self.root, ignore_errors=True)

    def __call__(self, *arguments):
        return [RIMG, "--root", self.root, *arguments]

    def tree(self, image):
        target = WORK / "tree"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        call(*self("save", "-o", WORK / "tree.tar", image))
        call("tar", "-xf", WORK / "tree.tar", "-C", target)
        found = tree_of_layout(target)
        shutil.rmtree(target)
        os.unlink(WORK / "tree.tar")
        return found


def docker_empty(*images):
    for image in images:
        subprocess.run(["docker", "rmi", "-f", image], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    call("docker", "builder", "prune", "-af")


def docker_tree(image):
    call("docker", "save", "-o", WORK / "tree.tar", image)
    found = tree_of_docker_archive(WORK / "tree.tar")
    os.unlink(WORK / "tree.tar")
    return found


def buildah_empty(*images):
    for image in images:
        subprocess.run(["buildah", "rmi", "-f", image], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shutil.rmtree(WORK / "buildah-layout", ignore_errors=True)


# --- servers for transfers


class Server:
    """rimg serve or docker-registry on an empty store and a free port."""

    def __init__(self, kind):
        self.kind, self.process = kind, None

    def start(self):
        self.stop()
        folder = WORK / f"server-{self.kind}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        if self.kind == "rimg":
            command = [RIMG, "--root", folder / "store", "serve", "--listen", self.address]
        else:
            (folder / "config.yml").write_text(
                f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{cache: {{blobdescriptor: inmemory}}, "
                f"filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}\nhttp: {{addr: {self.address}}}\n")
            command = ["docker-registry", "serve", folder / "config.yml"]
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL,
                                        stdout=open(folder / "log", "wb"), stderr=subprocess.STDOUT)
        for _ in range(400):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise SystemExit(f"{self.kind} did not start: {(folder / 'log').read_text(errors='replace')}")

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=30)
            self.process = None

    def memory_kib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status).group(1))


# --- inputs, the same on every machine


def write_files(folder, count, size, per_folder):
    """Half of each file is text that compresses well, half is noise."""
    source = random.Random(42)
    text = b"".join(b"line %d of a file that compresses well\n" % number for number in range(size // 30 + 1))
    for number in range(count):
        place = folder / f"{number // per_folder:04}"
        if number % per_folder == 0:
            place.mkdir(parents=True)
        (place / f"file{number:06}").write_bytes(text[:size // 2] + source.randbytes(size - size // 2))


def context(name, count, size, per_folder):
    folder = WORK / name
    write_files(folder / "data", count, size, per_folder)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY data /data\n")
    return folder


def debian_rootfs():
    rootfs = os.environ.get("ROOTFS")
    if rootfs:
        return pathlib.Path(rootfs)
    rootfs = WORK / "debian"
    if not rootfs.exists():
        call("examples/debian-web/make-rootfs.sh", rootfs)
    return rootfs


def layered_image(mib):
    """An OCI layout of one image with one gzip layer of noise."""
    folder, source = WORK / "transfer", random.Random(7)
    if folder.exists():
        return folder
    (folder / "blobs/sha256").mkdir(parents=True)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(mib // 4):
            member = tarfile.TarInfo(f"file{number}")
            member.size = 4 << 20
            tar.addfile(member, io.BytesIO(source.randbytes(4 << 20)))
    import gzip
    diff_id, layer = hashlib.sha256(raw.getbuffer()).hexdigest(), gzip.compress(raw.getbuffer(), 1, mtime=0)
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}}).encode()

    def put(content, kind):
        name = hashlib.sha256(content).hexdigest()
        (folder / "blobs/sha256" / name).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{name}", "size": len(content)}

    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": put(config, "config.v1+json"), "layers": [put(layer, "layer.v1.tar+gzip")]}
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


# --- cases


def copy_case(case, folder, sizes, note):
    """A clean build of one COPY into an image of gzip layers."""
    rimg = Rimg("copy")
    registry = Server("docker-registry")

    def docker_prepare():
        docker_empty("bench")
        registry.start()
        subprocess.run(["docker", "rmi", f"{registry.address}/bench"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def docker_command():
        name = f"{registry.address}/bench"
        return ["sh", "-c", f"docker build -q -t {name} {folder} && docker push -q {name}"]

    layout = WORK / "buildah-layout"
    tools = [
        Tool("rimg build", rimg("build", "-t", "bench", folder), rimg.empty, lambda: rimg.tree("bench")),
        Tool("docker build (nothing compressed)", ["docker", "build", "-q", "-t", "bench", folder], lambda: docker_empty("bench"),
             lambda: docker_tree("bench")),
        Tool("docker build + push (gzip)", docker_command, docker_prepare, lambda: docker_tree(f"{registry.address}/bench"),
             lambda: (docker_empty(f"{registry.address}/bench"), registry.stop())),
        Tool("buildah bud + push to a layout (gzip)",
             ["sh", "-c", f"buildah bud --pull-never --layers=false -q -t bench {folder} && buildah push -q bench oci:{layout}:1"],
             lambda: buildah_empty("bench"), lambda: tree_of_layout(layout), lambda: buildah_empty("bench")),
    ]
    rows = race(case, tools, sizes["rounds"], note=note)
    docker_empty("bench")
    rimg.empty()
    memory = peak_memory_mib(tools[0].command)
    rows.append(Row(case, "rimg build, peak memory", f"{memory:.0f} MiB", "", "aim: ≤ 200 MB"))
    return rows


def case_copy_large(sizes):
    folder = context("large", sizes["large_files"], 1 << 20, 64)
    return copy_case(f"COPY of {sizes['large_files']} files of 1 MiB", folder, sizes, "aim: ≤ 0.25× BuildKit")


def case_copy_small(sizes):
    folder = context("small", sizes["small_files"], 1000, 100)
    return copy_case(f"COPY of {sizes['small_files']:,} files of 1 kB", folder, sizes, "aim: ≤ 0.25× BuildKit")


def case_no_op(sizes):
    """The same build again, nothing changed."""
    folder = WORK / "small"
    if not folder.exists():
        context("small", sizes["small_files"], 1000, 100)
    rimg = Rimg("no-op")
    build = {
        "rimg build": rimg("build", "-t", "bench", folder),
        "docker build": ["docker", "build", "-q", "-t", "bench", folder],
        "buildah bud --layers": ["buildah", "bud", "--pull-never", "--layers", "-q", "-t", "bench", folder],
    }
    for command in build.values():
        call(*command)
    rows = race("nothing changed, the same build again", [Tool(name, command) for name, command in build.items()],
                max(sizes["rounds"], 5), note="aim: ≤ 0.3× BuildKit")
    docker_empty("bench")
    buildah_empty("bench")
    rimg.empty()
    return rows


def case_run_steps(sizes):
    """RUN true, again and again, on Debian."""
    steps, rootfs, folder = sizes["run_steps"], debian_rootfs(), WORK / "steps"
    folder.mkdir()
    # A trailing comment makes each step its own.
    lines = "".join(f"RUN true {number}\n" for number in range(steps))
    (folder / "Dockerfile").write_text("ARG BASE=base\nFROM ${BASE}\n" + lines)
    rimg = Rimg("steps")
    tar = WORK / "debian.tar"
    if not tar.exists():
        call("tar", "-C", rootfs, "--numeric-owner", "-cf", tar, ".")
    call(*rimg("import", tar, "localhost/base:1"))
    call("docker", "import", tar, "localhost/base:1")
    call("podman", "import", tar, "localhost/base:1")
    arguments = ["--build-arg", "BASE=localhost/base:1", "-t", "bench"]
    tools = [
        Tool("rimg build", rimg("build", "--no-cache", *arguments, folder), None, lambda: rimg.tree("bench")),
        Tool("docker build", ["docker", "build", "-q", "--no-cache", "--network", "host", *arguments, folder],
             lambda: docker_empty("bench"), lambda: docker_tree("bench")),
        Tool("buildah bud --layers", ["buildah", "bud", "--pull-never", "-q", "--layers", "--no-cache", "--network", "host", *arguments, folder],
             lambda: buildah_empty("bench")),
    ]
    rows = race(f"{steps} × RUN true on Debian", tools, sizes["rounds"], note="aim: ≤ 0.3× BuildKit")
    docker_empty("bench")
    buildah_empty("bench")
    return rows


def case_push(sizes):
    folder, mib = layered_image(sizes["transfer_mib"]), sizes["transfer_mib"]
    servers = {kind: Server(kind) for kind in ("rimg", "docker-registry")}
    rimg = Rimg("transfer")
    call(*rimg("load", "-i", folder))
    digest = json.loads((folder / "index.json").read_text())["manifests"][0]["digest"]

    def tool(client, kind):
        server = servers[kind]

        def command():
            if client == "rimg":
                return rimg("push", "-q", digest, f"{server.address}/bench:1")
            return ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{folder}:1", f"docker://{server.address}/bench:1"]

        def result():
            return digest_at(server.address)

        return Tool(f"{client} → {kind}", command, server.start, result, server.stop)

    tools = [tool(*pair) for pair in (("skopeo", "rimg"), ("skopeo", "docker-registry"), ("rimg", "rimg"), ("rimg", "docker-registry"))]
    rows = race(f"push of {mib} MiB by the same client", tools[:2], sizes["rounds"], note="durable here, not there; aim: ≤ 1×")
    return rows + race(f"push of {mib} MiB", tools[2:], sizes["rounds"])


def digest_at(address):
    accept = "Accept: application/vnd.oci.image.manifest.v1+json"
    head = call("curl", "-sfI", "-H", accept, f"http://{address}/v2/bench/manifests/1")
    return re.search(r"(?i)docker-content-digest: *(\S+)", head).group(1)


def case_pull(sizes):
    folder, mib = layered_image(sizes["transfer_mib"]), sizes["transfer_mib"]
    servers = {kind: Server(kind) for kind in ("rimg", "docker-registry")}
    rimg, target = Rimg("pulled"), WORK / "pulled"
    for server in servers.values():
        server.start()
        call("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{folder}:1", f"docker://{server.address}/bench:1")

    def by_skopeo(kind):
        return Tool(f"skopeo ← {kind}",
                    ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{servers[kind].address}/bench:1", f"oci:{target}:1"],
                    lambda: shutil.rmtree(target, ignore_errors=True),
                    lambda: json.loads((target / "index.json").read_text())["manifests"][0]["digest"])

    def by_rimg(kind):
        name = f"{servers[kind].address}/bench:1"
        return Tool(f"rimg ← {kind}", rimg("pull", "-q", name), rimg.empty,
                    lambda: json.loads(call(*rimg("inspect", name)))[0]["digest"])

    docker_name = f"{servers['docker-registry'].address}/bench:1"
    docker = Tool("docker ← docker-registry (unpacks)", ["docker", "pull", "-q", docker_name], lambda: docker_empty(docker_name))
    rows = race(f"pull of {mib} MiB by the same client", [by_skopeo("rimg"), by_skopeo("docker-registry")], sizes["rounds"])
    rows += race(f"pull of {mib} MiB", [by_rimg("rimg"), by_rimg("docker-registry"), by_skopeo("docker-registry"), docker], sizes["rounds"])
    rows.append(Row(f"pull of {mib} MiB", "rimg serve, peak memory", f"{servers['rimg'].memory_kib() / 1024:.0f} MiB", "", "after a push and all pulls"))
    rows.append(Row(f"pull of {mib} MiB", "docker-registry, peak memory", f"{servers['docker-registry'].memory_kib() / 1024:.0f} MiB", ""))
    docker_empty(docker_name)
    for server in servers.values():
        server.stop()
    return rows


def case_manifest_get(sizes):
    """Requests a second for one manifest by tag, sixteen connections."""
    folder = layered_image(sizes["transfer_mib"])
    servers = {kind: Server(kind) for kind in ("rimg", "docker-registry")}
    for server in servers.values():
        server.start()
        call("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{folder}:1", f"docker://{server.address}/bench:1")
    bodies = {kind: call("curl", "-sf", "-H", "Accept: application/vnd.oci.image.manifest.v1+json", f"http://{server.address}/v2/bench/manifests/1")
              for kind, server in servers.items()}
    if len(set(bodies.values())) != 1:
        raise SystemExit(f"manifest GET: the answers differ: {bodies}")
    rates = {kind: [] for kind in servers}
    for _ in range(sizes["rounds"]):
        for kind, server in servers.items():
            text = call("wrk", "-t", 1, "-c", 16, "-d", f"{sizes['load_s']}s", "-H", "Accept: application/vnd.oci.image.manifest.v1+json",
                        f"http://{server.address}/v2/bench/manifests/1")
            if "Non-2xx" in text or "Socket errors" in text:
                raise SystemExit(f"manifest GET from {kind}: {text}")
            rates[kind].append(float(re.search(r"Requests/sec:\s+([0-9.]+)", text).group(1)))
    for server in servers.values():
        server.stop()
    median = {kind: statistics.median(values) for kind, values in rates.items()}
    ratio = f"{median['rimg'] / median['docker-registry']:.2f}×"
    return [Row("manifest GET by tag, 16 connections", "rimg serve", f"{median['rimg']:,.0f}/s", "1", "aim: ≥ 2× (requests a second); results equal"),
            Row("manifest GET by tag, 16 connections", "docker-registry", f"{median['docker-registry']:,.0f}/s", ratio)]


def case_run(sizes):
    """A container that does nothing, by the image's name."""
    rimg, tar, rootfs = Rimg("run"), WORK / "debian.tar", debian_rootfs()
    if not tar.exists():
        call("tar", "-C", rootfs, "--numeric-owner", "-cf", tar, ".")
    call(*rimg("import", tar, "localhost/base:1"))
    for engine in ("docker", "podman"):
        call(engine, "import", tar, "localhost/base:1")
    bundle = WORK / "bundle"
    call("crun_bundle", bundle, rootfs, "/bin/true")
    counter = iter(range(1_000_000))
    crun = ["crun", "--root", WORK / "crun", "--cgroup-manager=disabled", "run", "--bundle", bundle]
    tools = [
        Tool("rimg run", rimg("run", "--rm", "--network", "none", "localhost/base:1", "/bin/true")),
        Tool("docker run", ["docker", "run", "--rm", "--network", "none", "localhost/base:1", "/bin/true"]),
        Tool("podman run", ["podman", "run", "--rm", "--network", "none", "localhost/base:1", "/bin/true"]),
        Tool("crun on a ready bundle", lambda: crun + [f"bench{next(counter)}"]),
    ]
    for tool in tools:  # once to warm up: layers are unpacked at the first run
        timed(tool)
    return race("run /bin/true by image name", tools, sizes["starts"], note="aim: ≤ 10 ms")


CASES = {"copy-large": case_copy_large, "copy-small": case_copy_small, "no-op": case_no_op, "run-steps": case_run_steps,
         "push": case_push, "pull": case_pull, "manifest-get": case_manifest_get, "run": case_run}


def versions():
    asked = {"rimg": [RIMG, "version"], "docker": ["docker", "version", "--format", "{{.Server.Version}}"], "buildah": ["buildah", "--version"],
             "podman": ["podman", "--version"], "skopeo": ["skopeo", "--version"], "crun": ["crun", "--version"],
             "docker-registry": ["docker-registry", "--version"]}
    found = []
    for name, command in asked.items():
        text = call(*command).splitlines()[0]
        match = re.search(r"v?(\d+\.\d+\S*)", text)
        found.append(f"{name} {match.group(1) if match else text}")
    return ", ".join(found)


def table(rows, sizes):
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    lines = [f"{os.cpu_count()} × {cpu}, Linux {os.uname().release}; medians of {sizes['rounds']} interleaved rounds; "
             "a ratio is rimg ÷ the tool.", "", versions() + ".", "", "| case | tool | median (range) | ratio | |", "|---|---|---|---|---|"]
    previous = None
    for row in rows:
        case = row.cells[0] if row.cells[0] != previous else ""
        previous = row.cells[0]
        lines.append("| " + " | ".join((case,) + row.cells[1:]) + " |")
    return "\n".join(lines) + "\n"


def main():
    options = argparse.ArgumentParser(prog="benches/run")
    size = options.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true")
    size.add_argument("--check", action="store_true")
    options.add_argument("--only", default=",".join(CASES))
    options.add_argument("--rounds", type=int, help="how often each tool runs")
    options.add_argument("--output")
    options = options.parse_args()
    sizes = dict(QUICK if options.quick else CHECK if options.check else FULL)
    sizes["rounds"] = options.rounds or sizes["rounds"]
    chosen = options.only.split(",")
    unknown = set(chosen) - set(CASES)
    if unknown:
        raise SystemExit(f"no case is called {', '.join(unknown)}; there are {', '.join(CASES)}")
    WORK.mkdir(parents=True)
    rows = []
    try:
        for name in chosen:
            print(f"{name} …", file=sys.stderr, flush=True)
            rows += CASES[name](sizes)
    finally:
        subprocess.run(["rm", "-rf", str(WORK)], check=False)
    text = table(rows, sizes)
    print(text)
    if options.output:
        pathlib.Path(options.output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    # Ended from outside, it still clears up behind itself.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    main()
