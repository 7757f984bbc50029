"""Blobs coming out: whole, in part, not at all; and taken away."""

import os

from uploads import is_deleted, is_served
from wire import ALGORITHMS, check, digest, equal, error, expect, with_both

CONTENT = os.urandom(2048)


@check(*with_both([("GET", "GET"), ("HEAD", "HEAD")]))
def missing(registry, algorithm, method):
    """blob: one that was never pushed is 404"""
    registry.push_blob("blobs/one", b"the repository exists")
    for repository in ("blobs/one", "blobs/never"):
        answer = expect(registry(method, f"/v2/{repository}/blobs/{digest(os.urandom(9), algorithm)}"), 404)
        if method == "GET":
            error(answer, 404, "BLOB_UNKNOWN", "NAME_UNKNOWN")


@check(*with_both([
    (asked, asked, first, last) for asked, first, last in [
        ("0-9", 0, 9), ("500-1499", 500, 1499), ("500-", 500, 2047), ("-500", 1548, 2047), ("2000-5000", 2000, 2047),
        ("0-0", 0, 0), ("2047-2047", 2047, 2047), ("0-", 0, 2047), ("-5000", 0, 2047), ("0-99999999999999999999999", 0, 2047),
    ]
]))
def part(registry, algorithm, asked, first, last):
    """blob: a range of it"""
    if len(asked) > 20:
        registry.only_ours("numbers of any length")
    path = f"/v2/blobs/ranges/blobs/{registry.push_blob('blobs/ranges', CONTENT, algorithm)['digest']}"
    answer = registry("GET", path, Range=f"bytes={asked}")
    registry.offered(answer.status != 200, "ranges")
    expect(answer, 206)
    total = answer.headers["content-range"].rpartition("/")[2]
    assert total in ("2048", "*"), total
    equal(answer.headers["content-range"], f"bytes {first}-{last}/{total}")
    equal(answer.headers["content-length"], str(last - first + 1))
    equal(answer.body, CONTENT[first:last + 1])


@check(*with_both([(asked, asked) for asked in ("2048-", "5000-10000", "500-0", "-0", "99999999999999999999999-")]))
def no_part(registry, algorithm, asked):
    """blob: a range outside it is 416"""
    path = f"/v2/blobs/ranges/blobs/{registry.push_blob('blobs/ranges', CONTENT, algorithm)['digest']}"
    if asked in ("500-0", "-0", "99999999999999999999999-"):
        registry.only_ours("416 for a range that is none (RFC 9110 allows to ignore it),")
    answer = expect(registry("GET", path, Range=f"bytes={asked}"), 416)
    equal(answer.headers.get("content-range", "bytes */2048"), "bytes */2048")


@check("bytes=x-y", "lines=1-2", "bytes=", "bytes", "1-2", "bytes=1-2x", "bytes=--1", "bytes=1--2")
def no_range(registry, header):
    """blob: a `Range` that is none is ignored or refused, never half obeyed"""
    path = f"/v2/blobs/ranges/blobs/{registry.push_blob('blobs/ranges', CONTENT)['digest']}"
    answer = expect(registry("GET", path, Range=header), 200, 400, 416)
    assert answer.status != 200 or answer.body == CONTENT


@check()
def several_parts(registry):
    """blob: several ranges come as one multipart answer, or whole"""
    path = f"/v2/blobs/ranges/blobs/{registry.push_blob('blobs/ranges', CONTENT)['digest']}"
    answer = expect(registry("GET", path, Range="bytes=0-9,100-109,-10"), *registry.either(206, 200))
    if answer.status == 206:
        kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
        equal(kind, "multipart/byteranges")
        found = answer.body.split(b"--" + boundary.strip('"').encode())
        bodies = [section.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for section in found[1:-1]]
        equal(bodies, [CONTENT[:10], CONTENT[100:110], CONTENT[-10:]])


@check()
def range_of_nothing(registry):
    """blob: an empty one has no part, and HEAD has no range"""
    path = f"/v2/blobs/ranges/blobs/{registry.push_blob('blobs/ranges', b'')['digest']}"
    expect(registry("GET", path, Range="bytes=0-0"), 416)
    path = f"/v2/blobs/ranges/blobs/{registry.push_blob('blobs/ranges', CONTENT)['digest']}"
    answer = expect(registry("HEAD", path, Range="bytes=0-9"), *registry.either(200, 206))
    assert answer.status == 206 or answer.headers["content-length"] == "2048"


@check(*ALGORITHMS)
def known_already(registry, algorithm):
    """blob: who has it already is told so (304), and a range holds only for the same content"""
    name = registry.push_blob("blobs/known", CONTENT, algorithm)["digest"]
    tag = expect(registry("HEAD", f"/v2/blobs/known/blobs/{name}"), 200).headers.get("etag")
    registry.offered(tag, "entity tags")
    for method in ("GET", "HEAD"):
        answer = expect(registry(method, f"/v2/blobs/known/blobs/{name}", If_None_Match=tag), 304)
        equal(answer.body, b"")
        expect(registry(method, f"/v2/blobs/known/blobs/{name}", If_None_Match='"another"'), 200)
    expect(registry("GET", f"/v2/blobs/known/blobs/{name}", Range="bytes=0-9", If_Range=tag), 206)
    equal(expect(registry("GET", f"/v2/blobs/known/blobs/{name}", Range="bytes=0-9", If_Range='"another"'), 200).body, CONTENT)


@check()
def deleted_here(registry):
    """blob: deleted here, still there elsewhere, and here again when it is pushed again"""
    content = b"to be deleted"
    name = registry.push_blob("blobs/delete", content)["digest"]
    registry.push_blob("blobs/keep", content)
    is_deleted(registry, "blobs/delete", name)
    is_served(registry, "blobs/keep", content, name)
    registry.push_blob("blobs/delete", content)
    is_served(registry, "blobs/delete", content, name)


@check(*ALGORITHMS)
def deleted_twice(registry, algorithm):
    """blob: deleting what is not there is 404"""
    name = registry.push_blob("blobs/delete", os.urandom(30), algorithm)["digest"]
    is_deleted(registry, "blobs/delete", name)
    error(registry("DELETE", f"/v2/blobs/delete/blobs/{name}"), 404, "BLOB_UNKNOWN")
    error(registry("DELETE", f"/v2/blobs/never/blobs/{name}"), 404, "BLOB_UNKNOWN", "NAME_UNKNOWN")


@check("sha256:abc", "sha256:" + "Z" * 64, "sha256:" + "A" * 64, "md5:" + "0" * 32, "latest", "sha256")
def malformed(registry, name):
    """blob: what is no digest is refused"""
    for method in ("GET", "HEAD", "DELETE"):
        answer = expect(registry(method, f"/v2/blobs/one/blobs/{name}"), 400, 404, 405)
        if method == "GET" and answer.status == 400:
            error(answer, 400, "DIGEST_INVALID")
