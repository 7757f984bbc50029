"""Requests and answers, raw: what a client of the distribution protocol says and hears.

Only the standard library, and no code in common with rimg. `check` registers what is to be checked; the subjects
(uploads, blobs, manifests, listings, hostile, matrix) do so when they are imported.
"""

import hashlib
import http.client
import json
import urllib.parse

ALGORITHMS = ("sha256", "sha512")

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
OCTETS = "application/octet-stream"

# In the order in which they run: (group, name, function of a registry).
CHECKS = []


def add(group, name, function):
    """Registers one check. The checks of a group build on one another and run together."""
    CHECKS.append((group, name, function))


def check(*cases):
    """Registers a function; its docstring is the check's name. With cases it is a check for each: a string is the
    case's name and its argument, of a tuple the first is the name and the rest are the arguments."""

    def register(function):
        for case in cases or ((),):
            label, arguments = (case, (case,)) if isinstance(case, str) else (case[:1], case[1:])
            label = label if isinstance(label, str) else "".join(label)
            name = f"{function.__doc__} [{label}]" if label else function.__doc__
            add(function.__name__, name, lambda registry, arguments=arguments: function(registry, *arguments))
        return function

    return register


def with_both(cases):
    """Every case with both algorithms; the algorithm is the first argument."""
    return [(f"{case[0]}, {algorithm}", algorithm, *case[1:]) for case in cases for algorithm in ALGORITHMS]


class NotOffered(Exception):
    """What the specification leaves to a registry, and this one does not do."""


class Response:
    """A whole answer: status, headers by lower-case name, body."""

    def __init__(self, answer, body):
        self.status, self.body = answer.status, body
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.all_headers = [(name.lower(), value) for name, value in answer.getheaders()]

    def json(self):
        return json.loads(self.body)

    def codes(self):
        return [error["code"] for error in self.json()["errors"]]


class Registry:
    """A connection per request: what matters here is what is said, not how fast.

    `ours` is whether it is rimg: then what the specification leaves open is no longer open."""

    def __init__(self, address, ours):
        self.address, self.ours = address, ours

    def __call__(self, method, path, body=None, **headers):
        path = urllib.parse.urlsplit(path)
        target = path.path + ("?" + path.query if path.query else "")
        connection = http.client.HTTPConnection(path.netloc or self.address, timeout=30)
        try:
            connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Response(answer, answer.read())
        finally:
            connection.close()

    def offered(self, holds, what):
        """rimg must do it; another registry need not."""
        if not holds:
            raise AssertionError(f"{what}: not offered") if self.ours else NotOffered(what)

    def only_ours(self, what):
        """The rest of the check is about what rimg promises beyond version 1.1 of the specification."""
        self.offered(self.ours, what)

    def either(self, ours, *others):
        """The statuses allowed: rimg's own, or any that the specification leaves open."""
        return (ours,) if self.ours else (ours, *others)

    def named(self, answer, name, content):
        """`Docker-Content-Digest`, where there is one, is of the content: rimg's in the algorithm asked for."""
        found = answer.headers.get("docker-content-digest")
        if self.ours:
            equal(found, name)
        elif found:
            equal(found, digest(content, found.partition(":")[0]))

    # --- what many checks begin with

    def start_upload(self, repository):
        answer = expect(self("POST", f"/v2/{repository}/blobs/uploads/", b""), 202)
        return answer.headers["location"]

    def push_blob(self, repository, content, algorithm="sha256", kind=LAYER):
        name = digest(content, algorithm)
        location = self.start_upload(repository)
        expect(self("PUT", with_query(location, digest=name), content, Content_Type=OCTETS), 201)
        return {"mediaType": kind, "digest": name, "size": len(content)}

    def image(self, repository, text, **extra):
        """Pushes the blobs of a small image and gives its manifest."""
        settings = json.dumps({"architecture": "amd64", "os": "linux", "text": text}).encode()
        config = self.push_blob(repository, settings, kind=CONFIG)
        layer = self.push_blob(repository, b"layer of " + text.encode())
        return dict({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}, **extra)

    def put(self, repository, reference, manifest, kind=MANIFEST, **headers):
        raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        return self("PUT", f"/v2/{repository}/manifests/{reference}", raw, Content_Type=kind, **headers)

    def tags(self, repository, query=""):
        answer = self("GET", f"/v2/{repository}/tags/list{query}")
        expect(answer, 200)
        return answer.json()["tags"] or [], answer.headers.get("link")

    def referrers(self, repository, subject, query=""):
        """The answer of the referrers API, which an older registry does not have."""
        answer = self("GET", f"/v2/{repository}/referrers/{subject}{query}")
        self.offered(answer.status != 404, "the referrers API")
        expect(answer, 200)
        equal(answer.headers["content-type"], INDEX)
        found = answer.json()
        equal((found["schemaVersion"], found["mediaType"]), (2, INDEX))
        return found["manifests"], answer


def digest(content, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def with_query(location, **query):
    return location + ("&" if "?" in location else "?") + urllib.parse.urlencode(query)


def pages(registry, path):
    """The answers of a listing, from page to page as `Link` says, and never in a circle."""
    seen = set()
    while path:
        assert path not in seen, f"{path} leads back to itself"
        seen.add(path)
        answer = registry("GET", path)
        yield answer
        link = answer.headers.get("link")
        assert link is None or link.startswith("<") and link.endswith('>; rel="next"'), link
        path = link and link[1:link.index(">")]


def expect(answer, *statuses):
    assert answer.status in statuses, f"status {answer.status}, expected {statuses}: {answer.body[:300]!r}"
    return answer


def equal(actual, expected):
    if actual != expected:
        raise AssertionError(f"{actual!r:.300} instead of {expected!r:.300}")


def error(answer, status, *codes):
    """The answer refuses with one of the statuses and one of the codes, in the specification's form."""
    expect(answer, *(status if isinstance(status, tuple) else (status,)))
    found = answer.codes()
    assert set(found) & set(codes), f"error codes {found} instead of one of {codes}"
    return answer
