#!/usr/bin/env python3
"""The distribution protocol, endpoint by endpoint, from a client that shares no code with rimg.

    protocol.py --rimg PATH               starts `rimg serve` on a scratch store, and restarts it in between
    protocol.py --registry HOST:PORT      against a server that is already there (plain HTTP)
    protocol.py … --only TEXT             the checks whose name holds TEXT

Every check is one function and asserts what the distribution specification 1.1 says, or what real clients rely on
beyond it. Checks marked with both algorithms run for sha256 and for sha512. Only the standard library is used.
"""

import argparse
import concurrent.futures
import hashlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

CHECKS = []


def check(*algorithms):
    """Registers a check; its docstring is its name. With algorithms it runs once for each."""

    def register(function):
        CHECKS.append((function, algorithms))
        return function

    return register


class Response:
    """A whole answer: status, headers by lower-case name, body."""

    def __init__(self, answer, body):
        self.status, self.body = answer.status, body
        self.headers = {name.lower(): value for name, value in answer.getheaders()}

    def json(self):
        return json.loads(self.body)

    def codes(self):
        return [error["code"] for error in self.json()["errors"]]


class Registry:
    """A connection per request: what matters here is what is said, not how fast."""

    def __init__(self, address):
        self.address = address

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

    # --- what many checks begin with

    def start_upload(self, repository):
        answer = self("POST", f"/v2/{repository}/blobs/uploads/", b"")
        expect(answer, 202)
        return answer.headers["location"]

    def push_blob(self, repository, content, algorithm="sha256"):
        name = digest(content, algorithm)
        location = self.start_upload(repository)
        expect(self("PUT", with_query(location, digest=name), content, Content_Type="application/octet-stream"), 201)
        return {"mediaType": LAYER, "digest": name, "size": len(content)}

    def image(self, repository, text, **extra):
        """Pushes the blobs of a small image and gives its manifest."""
        config = self.push_blob(repository, json.dumps({"architecture": "amd64", "os": "linux", "text": text}).encode())
        layer = self.push_blob(repository, b"layer of " + text.encode())
        return dict({"schemaVersion": 2, "mediaType": MANIFEST, "config": dict(config, mediaType=CONFIG), "layers": [layer]}, **extra)

    def put(self, repository, reference, manifest, kind=MANIFEST):
        raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        return self("PUT", f"/v2/{repository}/manifests/{reference}", raw, Content_Type=kind)

    def tags(self, repository, query=""):
        answer = self("GET", f"/v2/{repository}/tags/list{query}")
        expect(answer, 200)
        return answer.json()["tags"] or [], answer.headers.get("link")


def digest(content, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def with_query(location, **query):
    return location + ("&" if "?" in location else "?") + urllib.parse.urlencode(query)


def expect(answer, *statuses):
    assert answer.status in statuses, f"status {answer.status}, expected {statuses}: {answer.body[:300]!r}"
    return answer


def equal(actual, expected):
    assert actual == expected, f"{actual!r} instead of {expected!r}"


def error(answer, status, *codes):
    expect(answer, *(status if isinstance(status, tuple) else (status,)))
    found = answer.codes()
    assert set(found) & set(codes), f"error codes {found} instead of one of {codes}"


# --- the entrance


@check()
def entrance(registry):
    """GET /v2/ answers, with and without its slash"""
    answer = expect(registry("GET", "/v2/"), 200)
    equal(answer.headers.get("docker-distribution-api-version"), "registry/2.0")
    expect(registry("GET", "/v2"), 200, 301, 307, 308)


@check()
def unknown_things(registry):
    """what is not there is 404 with its code"""
    nothing = digest(b"nothing of the kind")
    error(registry("GET", f"/v2/no/such/blobs/{nothing}"), 404, "BLOB_UNKNOWN", "NAME_UNKNOWN")
    error(registry("GET", "/v2/no/such/manifests/latest"), 404, "MANIFEST_UNKNOWN", "NAME_UNKNOWN")
    error(registry("GET", "/v2/no/such/tags/list"), 404, "NAME_UNKNOWN")
    expect(registry("HEAD", f"/v2/no/such/blobs/{nothing}"), 404)
    expect(registry("HEAD", f"/v2/no/such/manifests/{nothing}"), 404)
    expect(registry("GET", "/v2/no/such/blobs/uploads/not-an-upload"), 400, 404)


@check()
def bad_names(registry):
    """names, tags and digests outside the grammar are refused, never served"""
    for path in [
        "/v2/UPPER/manifests/latest", "/v2/-a/tags/list", "/v2/a//b/tags/list", "/v2/a/../b/tags/list",
        "/v2/a/manifests/.hidden", "/v2/a/manifests/" + "t" * 129, "/v2/a/manifests/sha256:zz",
        "/v2/a/blobs/sha256:" + "A" * 64, "/v2/a/blobs/md5:" + "0" * 32, "/v2/a/blobs/..%2f..%2fetc%2fpasswd",
        "/v2/../../etc/passwd", "/v2/%2e%2e/%2e%2e/etc/passwd", "/v2/" + "a/" * 200 + "tags/list", "/v2/a/manifests/a%00b",
    ]:
        answer = registry("GET", path)
        assert 400 <= answer.status < 500 or answer.status in (301, 307), f"{path[:60]}: {answer.status}"
        assert b"root:" not in answer.body, path


# --- blobs


@check("sha256", "sha512")
def push_post_put(registry, algorithm):
    """blob: POST then PUT"""
    content = f"post then put {algorithm}".encode()
    name = digest(content, algorithm)
    answer = expect(registry("POST", "/v2/blobs/one/blobs/uploads/", b""), 202)
    location = answer.headers["location"]
    assert answer.headers.get("docker-upload-uuid"), "clients rely on Docker-Upload-UUID"
    answer = expect(registry("PUT", with_query(location, digest=name), content), 201)
    equal(answer.headers.get("docker-content-digest"), name)
    equal(registry("GET", answer.headers["location"]).body, content)
    answer = expect(registry("GET", f"/v2/blobs/one/blobs/{name}"), 200)
    equal(answer.body, content)
    equal(answer.headers.get("docker-content-digest"), name)
    answer = expect(registry("HEAD", f"/v2/blobs/one/blobs/{name}"), 200)
    equal(answer.headers["content-length"], str(len(content)))
    equal(answer.body, b"")


@check("sha256", "sha512")
def push_single_post(registry, algorithm):
    """blob: one POST with its digest"""
    content = f"single post {algorithm}".encode()
    name = digest(content, algorithm)
    answer = registry("POST", f"/v2/blobs/one/blobs/uploads/?digest={name}", content, Content_Type="application/octet-stream")
    expect(answer, 201, 202)
    if answer.status == 202:
        expect(registry("PUT", with_query(answer.headers["location"], digest=name), content), 201)
    equal(registry("GET", f"/v2/blobs/one/blobs/{name}").body, content)


@check("sha256", "sha512")
def push_chunks(registry, algorithm):
    """blob: chunks in order, each answer saying how far it is"""
    content = os.urandom(3000)
    location = registry.start_upload("blobs/chunks")
    for start in (0, 1000):
        answer = registry("PATCH", location, content[start:start + 1000], Content_Range=f"{start}-{start + 999}",
                          Content_Type="application/octet-stream")
        expect(answer, 202)
        equal(answer.headers["range"], f"0-{start + 999}")
        location = answer.headers["location"]
    answer = expect(registry("GET", location), 204)
    equal(answer.headers["range"], "0-1999")
    name = digest(content, algorithm)
    answer = registry("PUT", with_query(answer.headers["location"], digest=name), content[2000:], Content_Range="2000-2999")
    expect(answer, 201)
    equal(registry("GET", f"/v2/blobs/chunks/blobs/{name}").body, content)


@check()
def chunk_out_of_order(registry):
    """blob: a chunk out of order is 416 and changes nothing"""
    content = os.urandom(2000)
    location = registry.start_upload("blobs/chunks")
    location = expect(registry("PATCH", location, content[:1000], Content_Range="0-999"), 202).headers["location"]
    expect(registry("PATCH", location, content[500:1500], Content_Range="500-1499"), 416)
    expect(registry("PATCH", location, content[1500:], Content_Range="1500-1999"), 416)
    expect(registry("PUT", with_query(location, digest=digest(content)), content[1500:], Content_Range="1500-1999"), 416)
    expect(registry("PATCH", location, b"x" * 10, Content_Range="1000-2000"), 400, 416)
    answer = expect(registry("GET", location), 204)
    equal(answer.headers["range"], "0-999")
    location = expect(registry("PATCH", answer.headers["location"], content[1000:], Content_Range="1000-1999"), 202).headers["location"]
    expect(registry("PUT", with_query(location, digest=digest(content)), b""), 201)


@check()
def stream(registry):
    """blob: one streamed PATCH of unknown length and an empty PUT, as docker and podman do"""
    content = os.urandom(300_000)
    location = registry.start_upload("blobs/stream")
    pieces = (content[start:start + 7000] for start in range(0, len(content), 7000))
    answer = expect(registry("PATCH", location, pieces, Content_Type="application/octet-stream"), 202)
    equal(answer.headers["range"], f"0-{len(content) - 1}")
    expect(registry("PUT", with_query(answer.headers["location"], digest=digest(content)), b""), 201)
    equal(registry("GET", f"/v2/blobs/stream/blobs/{digest(content)}").body, content)


@check("sha256", "sha512")
def wrong_digest(registry, algorithm):
    """blob: content that is not its digest is refused and not stored"""
    name = digest(b"something else", algorithm)
    location = registry.start_upload("blobs/wrong")
    error(registry("PUT", with_query(location, digest=name), b"content"), 400, "DIGEST_INVALID")
    expect(registry("HEAD", f"/v2/blobs/wrong/blobs/{name}"), 404)
    for bad in ("", "sha256:", "sha256:abc", "content", "sha999:" + "0" * 64):
        location = registry.start_upload("blobs/wrong")
        expect(registry("PUT", with_query(location, digest=bad), b"content"), 400)


@check()
def cancel(registry):
    """blob: an upload can be cancelled"""
    location = registry.start_upload("blobs/cancel")
    location = expect(registry("PATCH", location, b"half"), 202).headers["location"]
    expect(registry("DELETE", location), 204)
    expect(registry("GET", location), 404)
    expect(registry("PATCH", location, b"more"), 404)
    expect(registry("PUT", with_query(location, digest=digest(b"half")), b""), 404)


@check()
def empty_blob(registry):
    """blob: an empty one"""
    registry.push_blob("blobs/empty", b"")
    answer = expect(registry("GET", f"/v2/blobs/empty/blobs/{digest(b'')}"), 200)
    equal(answer.headers["content-length"], "0")


@check()
def broken_upload(registry):
    """blob: a connection that breaks off in the middle leaves no blob, and the upload can go on"""
    content = os.urandom(200_000)
    location = registry.start_upload("blobs/broken")
    host, port = registry.address.split(":")
    path = urllib.parse.urlsplit(location)
    with socket.create_connection((host, int(port)), timeout=10) as line:
        head = f"PATCH {path.path}{'?' + path.query if path.query else ''} HTTP/1.1\r\nHost: {registry.address}\r\n"
        line.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:100_000])
    expect(registry("HEAD", f"/v2/blobs/broken/blobs/{digest(content)}"), 404)
    for _ in range(100):
        answer = registry("GET", location)
        if answer.status == 204:
            break
        time.sleep(0.05)
    expect(answer, 204)
    said = answer.headers["range"]
    start = 0 if said in ("0-0", "0--1") else int(said.split("-")[1]) + 1
    assert 0 <= start <= 100_000, said
    location = answer.headers["location"]
    answer = registry("PATCH", location, content[start:], Content_Range=f"{start}-{len(content) - 1}")
    expect(answer, 202)
    expect(registry("PUT", with_query(answer.headers["location"], digest=digest(content)), b""), 201)
    equal(registry("GET", f"/v2/blobs/broken/blobs/{digest(content)}").body, content)


@check()
def ranges(registry):
    """blob: ranges, and 416 for what cannot be"""
    content = bytes(range(256)) * 4
    path = f"/v2/blobs/ranges/blobs/{registry.push_blob('blobs/ranges', content)['digest']}"
    for asked, start, end in [("0-9", 0, 9), ("10-", 10, 1023), ("-5", 1019, 1023), ("1000-5000", 1000, 1023), ("1023-1023", 1023, 1023)]:
        answer = expect(registry("GET", path, Range=f"bytes={asked}"), 206)
        equal(answer.headers["content-range"], f"bytes {start}-{end}/1024")
        equal(answer.headers["content-length"], str(end - start + 1))
        equal(answer.body, content[start:end + 1])
    expect(registry("GET", path, Range="bytes=1024-"), 416)
    expect(registry("GET", path, Range="bytes=500-0"), 416, 200)
    for nonsense in ("bytes=x-y", "lines=1-2", "bytes="):
        answer = expect(registry("GET", path, Range=nonsense), 200, 400, 416)
        assert answer.status != 200 or answer.body == content


@check("sha256", "sha512")
def mount(registry, algorithm):
    """blob: mounted from another repository, not visible without"""
    content = f"mounted {algorithm}".encode()
    name = registry.push_blob("blobs/from", content, algorithm)["digest"]
    expect(registry("HEAD", f"/v2/blobs/to-{algorithm}/blobs/{name}"), 404)
    answer = registry("POST", f"/v2/blobs/to-{algorithm}/blobs/uploads/?mount={name}&from=blobs/from", b"")
    expect(answer, 201)
    assert answer.headers["location"]
    equal(registry("GET", f"/v2/blobs/to-{algorithm}/blobs/{name}").body, content)
    absent = digest(b"never pushed", algorithm)
    answer = expect(registry("POST", f"/v2/blobs/to-{algorithm}/blobs/uploads/?mount={absent}&from=blobs/from", b""), 202)
    expect(registry("PUT", with_query(answer.headers["location"], digest=absent), b"never pushed"), 201)


@check()
def delete_blob(registry):
    """blob: deleted here, still there elsewhere"""
    content = b"to be deleted"
    name = registry.push_blob("blobs/delete", content)["digest"]
    registry.push_blob("blobs/keep", content)
    expect(registry("DELETE", f"/v2/blobs/delete/blobs/{name}"), 202)
    expect(registry("GET", f"/v2/blobs/delete/blobs/{name}"), 404)
    expect(registry("DELETE", f"/v2/blobs/delete/blobs/{name}"), 404)
    equal(registry("GET", f"/v2/blobs/keep/blobs/{name}").body, content)
    registry.push_blob("blobs/delete", content)
    equal(registry("GET", f"/v2/blobs/delete/blobs/{name}").body, content)


@check()
def pushed_at_once(registry):
    """blob: the same and different ones by sixteen clients at once"""
    contents = [os.urandom(100_000) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: registry.push_blob("blobs/parallel", contents[number % 8]), range(64)))
    for content in contents:
        equal(registry("GET", f"/v2/blobs/parallel/blobs/{digest(content)}").body, content)


# --- manifests


@check()
def manifest_round_trip(registry):
    """manifest: by tag and by digest, byte for byte"""
    manifest = registry.image("manifests/one", "round trip")
    raw = json.dumps(manifest, indent=3).encode() + b"\n"
    name = digest(raw)
    answer = expect(registry.put("manifests/one", "latest", raw), 201)
    equal(answer.headers.get("docker-content-digest"), name)
    assert answer.headers["location"]
    for reference in ("latest", name):
        for method in ("GET", "HEAD"):
            for accept in ({}, {"Accept": MANIFEST}, {"Accept": f"{INDEX}, {MANIFEST}"}, {"Accept": "*/*"}):
                answer = expect(registry(method, f"/v2/manifests/one/manifests/{reference}", **accept), 200)
                equal(answer.headers["content-type"], MANIFEST)
                equal(answer.headers.get("docker-content-digest"), name)
                equal(answer.headers["content-length"], str(len(raw)))
                equal(answer.body, raw if method == "GET" else b"")


@check("sha256", "sha512")
def manifest_by_digest(registry, algorithm):
    """manifest: pushed by digest alone, then tagged"""
    raw = json.dumps(registry.image("manifests/two", "by digest")).encode()
    name = digest(raw, algorithm)
    answer = expect(registry.put("manifests/two", name, raw), 201)
    equal(answer.headers.get("docker-content-digest"), name)
    equal(registry("GET", f"/v2/manifests/two/manifests/{name}").body, raw)
    error(registry.put("manifests/two", digest(b"other", algorithm), raw), 400, "DIGEST_INVALID", "MANIFEST_INVALID")


@check()
def manifest_unwhole(registry):
    """manifest: one whose blobs are missing is refused"""
    manifest = registry.image("manifests/three", "whole")
    missing = dict(manifest, layers=[{"mediaType": LAYER, "digest": digest(b"not there"), "size": 9}])
    error(registry.put("manifests/three", "x", missing), (400, 404), "MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN")
    missing = dict(manifest, config={"mediaType": CONFIG, "digest": digest(b"not there"), "size": 9})
    error(registry.put("manifests/three", "x", missing), (400, 404), "MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN")
    # What another repository holds does not count.
    elsewhere = registry.image("manifests/elsewhere", "held elsewhere")
    error(registry.put("manifests/three", "x", elsewhere), (400, 404), "MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN")
    expect(registry("GET", "/v2/manifests/three/manifests/x"), 404)


@check()
def manifest_nonsense(registry):
    """manifest: what is none is refused"""
    for raw in (b"", b"{", b"[]", b"null", b'{"schemaVersion": 2}', b'{"schemaVersion": 1}', b"[" * 100_000, b"\xff\xfe",
                b'{"schemaVersion":2,"mediaType":"%s","config":{},"layers":{}}' % MANIFEST.encode()):
        answer = registry.put("manifests/four", "x", raw)
        assert 400 <= answer.status < 500, f"{raw[:40]!r}: {answer.status}"
    expect(registry("GET", "/v2/manifests/four/manifests/x"), 404)


@check()
def manifest_size(registry):
    """manifest: 4 MiB is accepted, far more is 413"""
    manifest = registry.image("manifests/five", "large", annotations={})
    manifest["annotations"]["fill"] = "x" * ((4 << 20) - len(json.dumps(manifest)) - 100)
    expect(registry.put("manifests/five", "large", manifest), 201)
    manifest["annotations"]["fill"] *= 8
    try:
        expect(registry.put("manifests/five", "larger", manifest), 413)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before all was sent: a client that keeps sending sees a closed connection
    expect(registry("GET", "/v2/manifests/five/manifests/larger"), 404)


@check()
def index(registry):
    """manifest: an index of two images"""
    entries = []
    for architecture in ("amd64", "arm64"):
        raw = json.dumps(registry.image("manifests/index", architecture)).encode()
        expect(registry.put("manifests/index", digest(raw), raw), 201)
        entries.append({"mediaType": MANIFEST, "digest": digest(raw), "size": len(raw), "platform": {"os": "linux", "architecture": architecture}})
    expect(registry.put("manifests/index", "all", {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX), 201)
    answer = expect(registry("GET", "/v2/manifests/index/manifests/all"), 200)
    equal(answer.headers["content-type"], INDEX)
    equal(answer.json()["manifests"], entries)
    expect(registry.put("manifests/index", "none", {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, INDEX), 201)


@check()
def docker_schema2(registry):
    """manifest: Docker's schema 2 and its list, as `docker push` sends them"""
    manifest = registry.image("manifests/docker", "schema2")
    manifest.update(mediaType=DOCKER_MANIFEST, config=dict(manifest["config"], mediaType=DOCKER_CONFIG),
                    layers=[dict(manifest["layers"][0], mediaType=DOCKER_LAYER)])
    raw = json.dumps(manifest).encode()
    expect(registry.put("manifests/docker", "latest", raw, DOCKER_MANIFEST), 201)
    answer = expect(registry("GET", "/v2/manifests/docker/manifests/latest", Accept=DOCKER_MANIFEST), 200)
    equal((answer.headers["content-type"], answer.body), (DOCKER_MANIFEST, raw))
    entry = {"mediaType": DOCKER_MANIFEST, "digest": digest(raw), "size": len(raw), "platform": {"os": "linux", "architecture": "amd64"}}
    expect(registry.put("manifests/docker", "list", {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]}, DOCKER_LIST), 201)
    equal(registry("GET", "/v2/manifests/docker/manifests/list").headers["content-type"], DOCKER_LIST)


@check()
def schema1(registry):
    """manifest: Docker's schema 1 is refused clearly"""
    raw = {"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": [], "signatures": []}
    answer = registry.put("manifests/docker", "one", raw, "application/vnd.docker.distribution.manifest.v1+prettyjws")
    assert 400 <= answer.status < 500, answer.status


@check()
def artifact(registry):
    """manifest: an artifact with an empty config and an unknown layer type"""
    empty = registry.push_blob("manifests/artifact", b"{}")
    layer = dict(registry.push_blob("manifests/artifact", b"a chart"), mediaType="application/x-chart")
    raw = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x-chart", "layers": [layer],
           "config": dict(empty, mediaType="application/vnd.oci.empty.v1+json")}
    expect(registry.put("manifests/artifact", "1", raw), 201)


@check()
def delete_manifest(registry):
    """manifest: deleting a digest takes its tags, deleting a tag only the tag"""
    raw = json.dumps(registry.image("manifests/delete", "deleted")).encode()
    for tag in ("a", "b"):
        expect(registry.put("manifests/delete", tag, raw), 201)
    expect(registry("DELETE", "/v2/manifests/delete/manifests/a"), 202)
    expect(registry("GET", "/v2/manifests/delete/manifests/a"), 404)
    expect(registry("GET", "/v2/manifests/delete/manifests/b"), 200)
    expect(registry("DELETE", f"/v2/manifests/delete/manifests/{digest(raw)}"), 202)
    for reference in ("b", digest(raw)):
        expect(registry("GET", f"/v2/manifests/delete/manifests/{reference}"), 404)
    expect(registry("DELETE", f"/v2/manifests/delete/manifests/{digest(raw)}"), 404)
    expect(registry.put("manifests/delete", "again", raw), 201)


@check()
def tag_moves(registry):
    """manifest: a tag moves, the old digest stays"""
    first, second = (json.dumps(registry.image("manifests/moves", text)).encode() for text in ("first", "second"))
    for raw in (first, second):
        expect(registry.put("manifests/moves", "latest", raw), 201)
    equal(registry("GET", "/v2/manifests/moves/manifests/latest").body, second)
    equal(registry("GET", f"/v2/manifests/moves/manifests/{digest(first)}").body, first)


# --- tags and repositories


@check()
def tag_pages(registry):
    """tags: sorted, page by page"""
    raw = json.dumps(registry.image("tags/pages", "tagged")).encode()
    names = [f"v{number:02}" for number in range(25)]
    for tag in reversed(names):
        expect(registry.put("tags/pages", tag, raw), 201)
    equal(registry.tags("tags/pages")[0], names)
    equal(registry.tags("tags/pages", "?n=100"), (names, None))
    seen, path = [], "?n=10"
    while path:
        page, link = registry.tags("tags/pages", path)
        seen += page
        assert len(page) <= 10
        path = "?" + link[link.index("?") + 1:link.index(">")] if link else None
        assert not link or link.endswith('rel="next"'), link
    equal(seen, names)
    equal(registry.tags("tags/pages", "?n=3&last=v09")[0], ["v10", "v11", "v12"])
    equal(registry.tags("tags/pages", "?last=v099")[0][0], "v10")
    equal(registry.tags("tags/pages", "?n=0"), ([], None))
    equal(registry.tags("tags/pages", "?last=zzz")[0], [])
    expect(registry("GET", "/v2/tags/pages/tags/list?n=-1"), 400)
    expect(registry("GET", "/v2/tags/pages/tags/list?n=many"), 400)


@check()
def catalog(registry):
    """repositories: listed page by page"""
    for name in ("catalog/a", "catalog/b"):
        expect(registry.put(name, "1", registry.image(name, "listed")), 201)
    seen, path = [], "/v2/_catalog?n=5"
    while path:
        answer = expect(registry("GET", path), 200)
        seen += answer.json()["repositories"]
        link = answer.headers.get("link")
        path = link[link.index("<") + 1:link.index(">")] if link else None
    assert {"catalog/a", "catalog/b"} <= set(seen) and len(seen) == len(set(seen)) and seen == sorted(seen), seen
    expect(registry("GET", "/v2/_catalog?n=1000000000"), 200, 400)


# --- referrers


@check("sha256", "sha512")
def referrers(registry, algorithm):
    """referrers: listed, filtered, gone when deleted"""
    repository = f"referrers/{algorithm}"
    raw = json.dumps(registry.image(repository, "subject")).encode()
    subject = {"mediaType": MANIFEST, "digest": digest(raw, algorithm), "size": len(raw)}
    empty = dict(registry.push_blob(repository, b"{}"), mediaType="application/vnd.oci.empty.v1+json")

    def listed(query=""):
        answer = expect(registry("GET", f"/v2/{repository}/referrers/{subject['digest']}{query}"), 200)
        equal(answer.headers["content-type"], INDEX)
        found = answer.json()
        equal((found["schemaVersion"], found["mediaType"]), (2, INDEX))
        return found["manifests"], answer.headers.get("oci-filters-applied")

    equal(listed()[0], [])
    names = {}
    for kind in ("application/x-sbom", "application/x-signature"):
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": empty, "layers": [empty],
                    "subject": subject, "annotations": {"kind": kind}}
        if kind == "application/x-signature":  # its type is its config's
            del manifest["artifactType"]
            manifest["config"] = dict(empty, mediaType=kind)
        document = json.dumps(manifest).encode()
        names[kind] = digest(document)
        # The subject is pushed in between: it may be absent.
        answer = expect(registry.put(repository, names[kind], document), 201)
        equal(answer.headers.get("oci-subject"), subject["digest"])
        expect(registry.put(repository, subject["digest"], raw), 201)
    manifests, _ = listed()
    equal({entry["artifactType"]: entry["digest"] for entry in manifests}, names)
    equal({entry["artifactType"]: entry.get("annotations", {}).get("kind") for entry in manifests}, {kind: kind for kind in names})
    manifests, applied = listed("?artifactType=application/x-sbom")
    equal([entry["digest"] for entry in manifests], [names["application/x-sbom"]])
    equal(applied, "artifactType")
    expect(registry("DELETE", f"/v2/{repository}/manifests/{names['application/x-sbom']}"), 202)
    equal([entry["digest"] for entry in listed()[0]], [names["application/x-signature"]])
    # The subject may go; who refers to it is still known.
    expect(registry("DELETE", f"/v2/{repository}/manifests/{subject['digest']}"), 202)
    equal(len(listed()[0]), 1)
    expect(registry("GET", f"/v2/{repository}/referrers/nonsense"), 400)


@check()
def referring_index(registry):
    """referrers: an index may refer too"""
    subject = {"mediaType": MANIFEST, "digest": digest(b"absent subject"), "size": 14}
    raw = {"schemaVersion": 2, "mediaType": INDEX, "artifactType": "application/x-set", "manifests": [], "subject": subject}
    answer = expect(registry.put("referrers/index", "set", raw, INDEX), 201)
    equal(answer.headers.get("oci-subject"), subject["digest"])
    found = expect(registry("GET", f"/v2/referrers/index/referrers/{subject['digest']}"), 200).json()["manifests"]
    equal([(entry["mediaType"], entry["artifactType"]) for entry in found], [(INDEX, "application/x-set")])


# --- hostile requests


@check()
def hostile_requests(registry):
    """nonsense on the wire is refused, and the server goes on"""
    host, port = registry.address.split(":")
    for request in (
        b"GET /v2/ HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET " + b"/a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(5000)) + b"\r\n",
        b"PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            try:
                line.sendall(request)
                line.shutdown(socket.SHUT_WR)
                answer = line.recv(4096)
            except OSError:  # reset, or gone before the end of the nonsense was sent
                answer = b""
            assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 500", b"HTTP/1.1 502")), answer[:200]
    expect(registry("GET", "/v2/"), 200)


# --- running them


class Server:
    """`rimg serve` on a scratch store, which can be killed and started again in the middle of things."""

    def __init__(self, rimg, root):
        self.rimg, self.root = rimg, root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = "127.0.0.1:%d" % free.getsockname()[1]
        self.start()

    def start(self):
        self.log = open(self.root + ".log", "ab")
        command = [self.rimg, "--root", self.root, "serve", "--listen", self.address]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        for _ in range(400):
            try:
                socket.create_connection(tuple([self.address.split(":")[0], int(self.address.split(":")[1])])).close()
                return
            except ConnectionRefusedError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        raise SystemExit("the server did not start:\n" + pathlib.Path(self.root + ".log").read_text(errors="replace")[-2000:])

    def stop(self, how):
        self.process.send_signal(how)
        self.process.wait(timeout=20)


def survives_a_kill(server, registry):
    """kill -9 in the middle of an upload: it goes on where it was, and what was acknowledged is there"""
    content = os.urandom(500_000)
    raw = json.dumps(registry.image("crash/one", "acknowledged")).encode()
    expect(registry.put("crash/one", "kept", raw), 201)
    location = registry.start_upload("crash/one")
    answer = expect(registry("PATCH", location, content[:300_000], Content_Range="0-299999"), 202)
    server.stop(signal.SIGKILL)
    server.start()
    equal(registry("GET", "/v2/crash/one/manifests/kept").body, raw)
    answer = expect(registry("GET", answer.headers["location"]), 204)
    equal(answer.headers["range"], "0-299999")
    answer = expect(registry("PATCH", answer.headers["location"], content[300_000:], Content_Range="300000-499999"), 202)
    expect(registry("PUT", with_query(answer.headers["location"], digest=digest(content)), b""), 201)
    equal(registry("GET", f"/v2/crash/one/blobs/{digest(content)}").body, content)


def store_is_whole(server, _registry):
    """after all of it the server ends on SIGTERM and `rimg fsck` finds nothing damaged"""
    server.stop(signal.SIGTERM)
    equal(server.process.returncode, 0)
    subprocess.run([server.rimg, "--root", server.root, "fsck"], check=True, stdin=subprocess.DEVNULL)


def attempt(counts, name, function, *arguments):
    start = time.monotonic()
    try:
        function(*arguments)
    except Exception as problem:  # noqa: BLE001 - whatever went wrong is the check's result
        counts["failed"] += 1
        text = str(problem) or type(problem).__name__
        print(f"FAILED  {name}: {type(problem).__name__}: {text[:600]}", flush=True)
    else:
        counts["passed"] += 1
        print(f"ok      {name} ({time.monotonic() - start:.1f} s)", flush=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--rimg")
    options.add_argument("--registry")
    options.add_argument("--only", default="")
    options = options.parse_args()
    if bool(options.rimg) == bool(options.registry):
        raise SystemExit("give one of --rimg PATH and --registry HOST:PORT")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory(prefix="rimg-protocol.") as folder:
        server = Server(options.rimg, folder + "/store") if options.rimg else None
        registry = Registry(server.address if server else options.registry)
        for function, algorithms in CHECKS:
            for algorithm in algorithms or (None,):
                name = f"{function.__doc__} [{algorithm}]" if algorithm else function.__doc__
                if options.only in name:
                    attempt(counts, name, function, registry, *([algorithm] if algorithm else []))
        if server:
            for function in (survives_a_kill, store_is_whole):
                if options.only in function.__doc__:
                    attempt(counts, function.__doc__, function, server, registry)
            if server.process.poll() is None:
                server.stop(signal.SIGKILL)
    print("\nprotocol.py: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    if os.environ.get("RIMG_COUNTS"):
        with open(os.environ["RIMG_COUNTS"], "a", encoding="ascii") as file:
            print(*counts.values(), file=file)
    sys.exit(1 if counts["failed"] or not counts["passed"] else 0)


if __name__ == "__main__":
    main()
