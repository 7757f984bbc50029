"""What is pushed in the matrix: images, indexes and artifacts of every shape that the specifications know.

A sample is made without a registry: blobs, manifests in the order in which they can be pushed, tags, and what the
referrers API must say of each subject. Everything in it is new with every run.
"""

import base64
import gzip
import io
import json
import os
import tarfile

from wire import (CONFIG, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LIST, DOCKER_MANIFEST, EMPTY, INDEX, LAYER, MANIFEST, digest)

KIND_ONE, KIND_TWO = "application/vnd.example.first.v1", "application/vnd.example.second.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"

# (name, function that fills a sample, options of the sample)
SAMPLES = []


def sample(name, **options):
    def register(function):
        SAMPLES.append((name, function, options))
        return function

    return register


class Sample:
    """`needs`: what not every registry offers. `in_query`: the tags are in the query of the push by digest.
    `refused`: the manifests are not what their digests say."""

    def __init__(self, name, algorithm="sha256", needs=None, in_query=False, refused=False):
        self.name, self.algorithm, self.needs, self.in_query, self.refused = name, algorithm, needs, in_query, refused
        self.declined = False
        self.blobs = {}      # digest: content
        self.manifests = {}  # digest: (media type, bytes), in the order of pushing
        self.tags = {}       # tag: digest
        self.referrers = {}  # subject's digest: descriptors

    def blob(self, kind, content, algorithm=None, **extra):
        name = digest(content, algorithm or self.algorithm)
        self.blobs[name] = content
        return dict({"mediaType": kind, "digest": name, "size": len(content)}, **extra)

    def layer(self, kind=LAYER, **extra):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            content = os.urandom(40).hex().encode()
            entry = tarfile.TarInfo("file")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        plain = packed.getvalue()
        return self.blob(kind, gzip.compress(plain) if kind.endswith("gzip") else plain, **extra)

    def config(self, kind=CONFIG, architecture="amd64", **extra):
        settings = {"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": []}, "author": os.urandom(8).hex()}
        return self.blob(kind, json.dumps(dict(settings, **extra)).encode())

    def empty(self):
        return self.blob(EMPTY, b"{}")

    def manifest(self, document, *tags, raw=None):
        """Adds a manifest and gives its descriptor."""
        raw = raw or json.dumps(document).encode()
        kind = document.get("mediaType", INDEX if "manifests" in document else MANIFEST)
        name = digest(raw, self.algorithm)
        self.manifests[name] = kind, raw
        self.tags.update({tag: name for tag in tags})
        descriptor = {"mediaType": kind, "digest": name, "size": len(raw)}
        if "subject" in document:
            type_of_config = document.get("config", {}).get("mediaType")
            entry = dict(descriptor, artifactType=document.get("artifactType") or type_of_config)
            if document.get("annotations"):
                entry["annotations"] = document["annotations"]
            self.referrers.setdefault(document["subject"]["digest"], []).append(entry)
        return descriptor

    def image(self, *tags, layers=None, config=None, **extra):
        layers = [self.layer(), self.layer()] if layers is None else layers
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config or self.config(), "layers": layers}
        return self.manifest(dict(document, **extra), *tags)

    def index(self, entries, *tags, **extra):
        return self.manifest(dict({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, **extra), *tags)

    def platforms(self, **extra):
        """Two images as an index lists them."""
        return [dict(self.image(config=self.config(architecture=architecture, **extra), **extra),
                     platform={"os": "linux", "architecture": architecture}) for architecture in ("amd64", "arm64")]

    def artifact(self, kind, *tags, **extra):
        layer = self.blob(kind, os.urandom(200))
        return self.image(*tags, config=self.empty(), layers=[layer], artifactType=kind, **extra)


def made():
    for name, function, options in SAMPLES:
        made_of = Sample(name, **options)
        function(made_of)
        yield made_of


# --- images


@sample("image")
def _(s):
    s.image("image")


@sample("image with layers as they are")
def _(s):
    s.image("plain", layers=[s.layer(TAR), s.layer(TAR)])


@sample("image with layers of every packing")
def _(s):
    s.image("packings", layers=[s.layer(TAR), s.layer(LAYER), s.layer(TAR + "+zstd")])


@sample("image without layers")
def _(s):
    s.image("bare", layers=[])


@sample("image with one layer twice")
def _(s):
    layer = s.layer()
    s.image("twice", layers=[layer, s.layer(), layer])


@sample("image with an empty layer")
def _(s):
    s.image("hollow", layers=[s.blob(TAR, b"")])


@sample("image with a manifest of 3.9 MB")
def _(s):
    s.image("large", annotations={f"org.example.number-{number}": "x" * 10_000 for number in range(390)})


@sample("image with layers kept elsewhere", needs="layers kept elsewhere")
def _(s):
    elsewhere = [{"mediaType": kind, "digest": digest(os.urandom(8)), "size": 12_345, "urls": ["https://example.com/layer"]}
                 for kind in (FOREIGN, FOREIGN + "+gzip", FOREIGN + "+zstd")]
    s.image("elsewhere", layers=elsewhere + [s.layer()])


@sample("image with its blobs inside")
def _(s):
    def inside(descriptor):
        return dict(descriptor, data=base64.b64encode(s.blobs[descriptor["digest"]]).decode())

    s.image("inside", config=inside(s.config()), layers=[inside(s.layer())])


@sample("image with fields of its own")
def _(s):
    def own():
        return {f"org.example.{os.urandom(4).hex()}": [{"deep": {"deeper": None}}, 1.5, "text"]}

    entries = [dict(entry, **own()) for entry in s.platforms(**own())]
    s.index(entries, "own", **own())


@sample("image in unusual JSON")
def _(s):
    document = {"layers": [s.layer()], "annotations": {"ключ": "värde \u2028 \U0001f600", "a\"b\\c/d": "\u0001", "": ""},
                "config": s.config(), "mediaType": MANIFEST, "schemaVersion": 2}
    s.manifest(document, "unusual", raw=b"\n\t " + json.dumps(document, indent="\t", ensure_ascii=False).encode() + b" \r\n")


@sample("image that does not say what it is")
def _(s):
    entry = s.manifest({"schemaVersion": 2, "config": s.config(), "layers": [s.layer()]}, "unsaid")
    s.manifest({"schemaVersion": 2, "manifests": [entry]}, "unsaid-index")


@sample("image under many tags")
def _(s):
    s.image("_", "0", "A.b-c_D", "UPPER", "x" * 128, "sha256", "latest", "list", "v1.0-rc.1", "uploads")


# --- indexes


@sample("index")
def _(s):
    s.index(s.platforms(), "index")


@sample("index of indexes")
def _(s):
    s.index([s.index(s.platforms()), s.index(s.platforms(), "inner")], "outer")


@sample("index of nothing")
def _(s):
    s.index([], "nothing")


@sample("index of images and artifacts")
def _(s):
    s.index([s.image(), s.artifact(KIND_ONE), s.index([])], "mixed", annotations={"org.example": "mixed"})


# --- artifacts


@sample("artifact")
def _(s):
    s.artifact(KIND_ONE, "artifact")


@sample("artifact without content")
def _(s):
    s.image("no-content", config=s.empty(), layers=[s.empty()], artifactType=KIND_ONE)


@sample("artifact named by its config")
def _(s):
    for tag, kind, content in [("chart", "application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
                               ("module", "application/vnd.wasm.config.v0+json", "application/wasm"),
                               ("signature", CONFIG, "application/vnd.dev.cosign.simplesigning.v1+json")]:
        s.image(tag, config=s.config(kind), layers=[s.blob(content, os.urandom(100), annotations={"title": tag})])


@sample("artifacts in an index")
def _(s):
    s.index([s.artifact(KIND_ONE), s.artifact(KIND_TWO)], "artifacts", artifactType=KIND_ONE)


@sample("artifacts with a subject")
def _(s):
    subject = s.image("subject")
    s.image(subject=subject)
    s.artifact(KIND_ONE, "first", subject=subject, annotations={"org.example.about": "hello", "unique": os.urandom(8).hex()})
    s.artifact(KIND_TWO, "second", subject=subject, annotations={"org.example.about": "hello", "unique": os.urandom(8).hex()})
    s.artifact(KIND_TWO, subject=subject)


@sample("indexes with a subject")
def _(s):
    subject = s.index(s.platforms(), "subject")
    s.index(s.platforms(), "first", artifactType=KIND_ONE, subject=subject, annotations={"org.example.about": "an index"})
    s.index([], artifactType=KIND_TWO, subject=subject)
    s.artifact(KIND_ONE, subject=subject)


@sample("referrers without a type of their own")
def _(s):
    subject = s.image("plain")
    s.image(subject=subject, artifactType="", annotations={})
    s.image(subject=subject, config=s.empty(), layers=[s.empty()])
    s.index([], subject=subject)


@sample("artifact whose subject is missing")
def _(s):
    subject = {"mediaType": MANIFEST, "digest": digest(os.urandom(8)), "size": 123}
    s.artifact(KIND_ONE, "orphan", subject=subject, annotations={"org.example.about": "nobody"})


@sample("artifact whose subject comes after it")
def _(s):
    subject = s.image("late")
    s.artifact(KIND_ONE, "early", subject=subject)
    s.manifests = dict(reversed(s.manifests.items()))


@sample("artifact of an artifact")
def _(s):
    signature = s.artifact(KIND_ONE, subject=s.artifact(KIND_TWO, subject=s.image("signed")))
    s.image(config=s.config("application/vnd.example.config+json"), layers=[], subject=signature)


@sample("artifact whose subject has a sha512 digest")
def _(s):
    s.artifact(KIND_ONE, "far", subject={"mediaType": MANIFEST, "digest": digest(os.urandom(8), "sha512"), "size": 99})


# --- digests


@sample("sha512", algorithm="sha512", needs="manifests under sha512 digests")
def _(s):
    s.index(s.platforms())


@sample("sha512 artifacts with a subject", algorithm="sha512", needs="manifests under sha512 digests")
def _(s):
    subject = s.image()
    s.artifact(KIND_ONE, subject=subject)
    s.artifact(KIND_TWO, subject=subject, annotations={"org.example": "sha512"})


@sample("sha256 image of sha512 blobs")
def _(s):
    config = s.blob(CONFIG, os.urandom(20).hex().encode(), "sha512")
    s.image("sha512-blobs", config=config, layers=[s.blob(TAR, os.urandom(50), "sha512"), s.layer()])


@sample("tags in the query", needs="tags in the query, which come after version 1.1,", in_query=True)
def _(s):
    s.index(s.platforms(), "query", "query-again")
    s.tags.update({f"query-{number}": name for number, name in enumerate(s.manifests)})


@sample("tags in the query, sha512", algorithm="sha512", needs="tags in the query, which come after version 1.1,", in_query=True)
def _(s):
    s.index(s.platforms(), "query512", "query512-again")
    s.tags.update({f"query512-{number}": name for number, name in enumerate(s.manifests)})


@sample("manifest that is not its digest", refused=True)
def _(s):
    s.image()
    s.manifests = {name: (kind, raw + b"  ") for name, (kind, raw) in s.manifests.items()}


# --- Docker's


@sample("Docker's schema 2")
def _(s):
    s.image("docker", mediaType=DOCKER_MANIFEST, config=s.config(DOCKER_CONFIG), layers=[s.layer(DOCKER_LAYER)])


@sample("Docker's list")
def _(s):
    entries = [dict(s.image(mediaType=DOCKER_MANIFEST, config=s.config(DOCKER_CONFIG), layers=[s.layer(DOCKER_LAYER)]),
                    platform={"os": "linux", "architecture": architecture}) for architecture in ("amd64", "arm64")]
    s.index(entries, "docker-list", mediaType=DOCKER_LIST)


@sample("Docker's layers kept elsewhere", needs="layers kept elsewhere")
def _(s):
    elsewhere = {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": digest(os.urandom(8)), "size": 99,
                 "urls": ["https://example.com/layer"]}
    s.image("docker-elsewhere", mediaType=DOCKER_MANIFEST, config=s.config(DOCKER_CONFIG), layers=[elsewhere, s.layer(DOCKER_LAYER)])
