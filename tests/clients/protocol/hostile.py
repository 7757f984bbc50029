"""The entrance, and requests that nobody should send: wrong paths, methods and names, nonsense on the wire."""

import http.client
import socket

from wire import MANIFEST, check, digest, equal, expect


@check()
def entrance(registry):
    """GET /v2/ answers, with and without its slash"""
    answer = expect(registry("GET", "/v2/"), 200)
    equal(answer.headers.get("docker-distribution-api-version"), "registry/2.0")
    expect(registry("GET", "/v2"), 200, 301, 307, 308)
    equal(expect(registry("HEAD", "/v2/"), 200).body, b"")


@check(
    "/v2/UPPER/manifests/latest", "/v2/-a/tags/list", "/v2/a-/tags/list", "/v2/a//b/tags/list", "/v2/a..b/tags/list", "/v2/a___b/tags/list",
    "/v2/a/../b/tags/list", "/v2/a/manifests/.hidden", ("a tag of 129", "/v2/a/manifests/" + "t" * 129), "/v2/a/manifests/sha256:zz",
    ("upper digest", "/v2/a/blobs/sha256:" + "A" * 64), ("md5", "/v2/a/blobs/md5:" + "0" * 32), "/v2/a/blobs/..%2f..%2fetc%2fpasswd",
    "/v2/../../etc/passwd", "/v2/%2e%2e/%2e%2e/etc/passwd", ("a long name", "/v2/" + "a/" * 200 + "tags/list"),
    ("a very long name", "/v2/" + "a/" * 20_000 + "tags/list"), "/v2/a/manifests/a%00b", "/v2/a/manifests/%ff", "/v2/a/manifests/%zz",
    "/v2/b%C3%BC/tags/list", "/v1/", "/", "/v2/a/nothing/of/the/kind", "/v2/blobs/uploads/", "/v2/tags/list", "/etc/passwd",
)
def paths(registry, path):
    """path: what is none of the registry's is refused, never served"""
    answer = registry("GET", path)
    registry.offered(answer.status != 500, "a refusal of this path")
    assert 400 <= answer.status < 500 or answer.status in registry.either(404, 200, 301, 302, 307, 308), answer.status
    assert b"root:" not in answer.body, path


@check(*[(f"{method} {what}", method, path) for what, path, allowed in [
    ("the entrance", "/v2/", "GET HEAD"), ("a blob", "/v2/methods/blobs/" + digest(b""), "GET HEAD DELETE"),
    ("a manifest", "/v2/methods/manifests/latest", "GET HEAD PUT DELETE"), ("the uploads", "/v2/methods/blobs/uploads/", "POST"),
    ("an upload", "/v2/methods/blobs/uploads/00000000-0000-4000-8000-000000000000", "GET HEAD PATCH PUT DELETE"),
    ("the tags", "/v2/methods/tags/list", "GET HEAD"), ("the referrers", "/v2/methods/referrers/" + digest(b""), "GET HEAD"),
] for method in ("GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE") if method not in allowed.split()])
def methods(registry, method, path):
    """method: one that an endpoint does not have is refused"""
    answer = expect(registry(method, path), *registry.either(405, 404, 400, 200, 501))
    if answer.status == 405:
        assert answer.headers.get("allow")


@check()
def parameters(registry):
    """path: parameters that an endpoint does not know are ignored"""
    registry.push_blob("methods", b"")
    for path in ("/v2/", "/v2/methods/blobs/" + digest(b""), "/v2/methods/tags/list" if registry.ours else "/v2/"):
        expect(registry("GET", path + "?ns=docker.io&x&y=%20&=&&"), 200, *((404,) if "tags" in path else ()))


@check(
    ("a blob", "GET", "/v2/a/blobs/" + digest(b"nothing of the kind")), ("a manifest", "GET", "/v2/a/manifests/missing"),
    ("a digest", "GET", "/v2/a/blobs/sha256:abc"), ("a name", "GET", "/v2/A/tags/list"), ("tags", "GET", "/v2/no/such/thing/tags/list"),
    ("an upload", "PATCH", "/v2/a/blobs/uploads/00000000-0000-4000-8000-000000000000"), ("a push", "PUT", "/v2/a/manifests/x"),
    ("a method", "POST", "/v2/a/manifests/x"), ("a deletion", "DELETE", "/v2/a/manifests/x"), ("a number", "GET", "/v2/a/tags/list?n=x"),
)
def error_documents(registry, method, path):
    """error: what is refused is explained in the specification's form"""
    if not registry.ours and "A" in path + method or method == "POST":
        registry.only_ours("explaining this one")
    answer = registry(method, path, b"{" if method == "PUT" else None, **({"Content_Type": MANIFEST} if method == "PUT" else {}))
    if answer.status == 200:
        registry.offered(False, "refusing this")
    assert 400 <= answer.status < 500, answer.status
    assert answer.headers["content-type"].startswith("application/json"), answer.headers["content-type"]
    errors = answer.json()["errors"]
    assert errors
    for entry in errors:
        assert entry["code"] and entry["code"] == entry["code"].upper() and isinstance(entry["message"], str), entry
    assert b"/var/" not in answer.body and b"/tmp/" not in answer.body


@check()
def one_connection(registry):
    """wire: on one connection every request has its own answer, after refusals too, or the connection ends"""
    line = http.client.HTTPConnection(registry.address, timeout=30)
    big = b"x" * 300_000
    for method, path, body, status in [
        ("GET", "/v2/", None, 200), ("PUT", "/v2/A/manifests/x", big, None), ("GET", "/v2/", None, 200),
        ("PATCH", "/v2/a/blobs/uploads/00000000-0000-4000-8000-000000000000", big, None), ("HEAD", "/v2/", None, 200),
        ("HEAD", "/v2/a/manifests/missing", None, 404), ("POST", "/v2/methods/blobs/uploads/", b"", 202),
        ("DELETE", "/v2/a/manifests/x", None, None),
        ("PUT", "/v2/a/manifests/x", iter([big, big]), None), ("GET", "/v2/methods/blobs/" + digest(b""), None, 200),
        ("GET", "/v2/", None, 200),
    ] * 3:
        # http.client connects again by itself when an answer has said `Connection: close`.
        line.request(method, path, body)
        answer = line.getresponse()
        answer.read()
        assert answer.status == status or status is None and 400 <= answer.status < 500, f"{method} {path}: {answer.status}"
    line.close()


@check(
    ("another protocol", b"GET /v2/ HTTP/9.9\r\n\r\n"), ("TLS", b"\x16\x03\x01\x02\x00\x01\x00"),
    ("a long path", b"GET " + b"/a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("many headers", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(50_000)) + b"\r\n"),
    ("a length beyond numbers", b"PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"),
    ("two lengths", b"PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
    ("a negative length", b"PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
    ("a chunk beyond numbers", b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n"),
    ("a header without a name", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n"),
)
def wire(registry, request):
    """wire: nonsense is refused, and the server goes on"""
    host, port = registry.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        try:
            line.sendall(request)
            line.shutdown(socket.SHUT_WR)
            answer = line.recv(4096)
        except OSError:  # reset, or gone before the end of the nonsense was sent
            answer = b""
        # Some of it is only too much, and some a server need not look at.
        registry.offered(not answer.startswith(b"HTTP/1.1 2"), "refusing this")
        assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 500", b"HTTP/1.1 502")), answer[:200]
    expect(registry("GET", "/v2/"), 200)
