"""Blobs going in: every way of pushing, for every kind of content, with right and wrong digests; mounts; sessions."""

import concurrent.futures
import os
import socket
import time
import urllib.parse
import uuid

from wire import ALGORITHMS, OCTETS, add, check, digest, equal, error, expect, with_both, with_query

# --- the ways. Each sends everything and gives the answer to the request that closes the upload, whatever it is.


def one_post(registry, repository, content, name):
    answer = registry("POST", f"/v2/{repository}/blobs/uploads/?digest={name}", content, Content_Type=OCTETS)
    registry.offered(answer.status != 202, "a push in a single POST")
    return answer


def post_then_put(registry, repository, content, name):
    location = registry.start_upload(repository)
    return registry("PUT", with_query(location, digest=name), content, Content_Type=OCTETS)


def streamed_put(registry, repository, content, name):
    location = registry.start_upload(repository)
    return registry("PUT", with_query(location, digest=name), pieces(content), Content_Type=OCTETS)


def streamed_patch(registry, repository, content, name):
    answer = registry("PATCH", registry.start_upload(repository), pieces(content), Content_Type=OCTETS)
    expect(answer, 202)
    return close(registry, answer, name)


def patch_without_place(registry, repository, content, name):
    answer = registry("PATCH", registry.start_upload(repository), content, Content_Type=OCTETS)
    expect(answer, 202)
    return close(registry, answer, name)


def patch_and_put_without_place(registry, repository, content, name):
    half = len(content) // 2
    answer = registry("PATCH", registry.start_upload(repository), content[:half], Content_Type=OCTETS)
    return close(registry, expect(answer, 202), name, content[half:])


def one_chunk(registry, repository, content, name):
    return chunks(registry, repository, content, name, count=1)


def three_chunks(registry, repository, content, name):
    return chunks(registry, repository, content, name)


def last_chunk_in_the_put(registry, repository, content, name):
    return chunks(registry, repository, content, name, put_last=True)


def chunks_out_of_order(registry, repository, content, name):
    return chunks(registry, repository, content, name, stumble=True)


def chunks_out_of_order_last_in_the_put(registry, repository, content, name):
    return chunks(registry, repository, content, name, stumble=True, put_last=True)


def taken_up_again(registry, repository, content, name):
    """The second half goes where the status says, to where it says."""
    half = max(len(content) // 2, 1)
    answer = registry("PATCH", registry.start_upload(repository), content[:half], Content_Range=f"0-{half - 1}", Content_Type=OCTETS)
    answer = progress(registry, expect(answer, 202).headers["location"], half)
    if half < len(content):
        place = f"{half}-{len(content) - 1}"
        answer = registry("PATCH", answer.headers["location"], content[half:], Content_Range=place, Content_Type=OCTETS)
        expect(answer, 202)
    return close(registry, answer, name)


def after_a_declined_mount(registry, repository, content, name):
    answer = registry("POST", f"/v2/{repository}/blobs/uploads/?mount={name}&from=uploads/nobody", b"")
    return close(registry, expect(answer, 202), name, content)


def with_announced_algorithm(registry, repository, content, name):
    registry.only_ours("`digest-algorithm`, which comes after version 1.1,")
    algorithm = name.partition(":")[0]
    answer = registry("POST", f"/v2/{repository}/blobs/uploads/?digest-algorithm={algorithm}", b"")
    return close(registry, expect(answer, 202), name, content)


def pieces(content):
    """Of no length that is known beforehand: the body goes out with `Transfer-Encoding: chunked`."""
    return (content[start:start + 7000] for start in range(0, len(content), 7000))


def close(registry, answer, name, content=b"", **headers):
    return registry("PUT", with_query(answer.headers["location"], digest=name), content, Content_Type=OCTETS, **headers)


def progress(registry, location, length):
    answer = expect(registry("GET", location), 204)
    equal(answer.headers["range"], f"0-{max(length - 1, 0)}")
    return answer


def chunks(registry, repository, content, name, count=3, put_last=False, stumble=False):
    """In order, each with its place. With `stumble` a wrong chunk precedes every right one, and changes nothing."""
    answer = expect(registry("POST", f"/v2/{repository}/blobs/uploads/", b"", Content_Length="0"), 202)
    least = int(answer.headers.get("oci-chunk-min-length", "1"))
    size = max(-(-len(content) // count), least)
    starts = range(0, len(content), size)
    for start in starts:
        end = min(start + size, len(content))
        last = put_last and end == len(content)
        if stumble:
            answer = out_of_order(registry, answer.headers["location"], content, name, start, size, last)
        place = {"Content_Range": f"{start}-{end - 1}"}
        if last:
            return close(registry, answer, name, content[start:end], **place)
        answer = registry("PATCH", answer.headers["location"], content[start:end], Content_Type=OCTETS, **place)
        expect(answer, 202)
        equal(answer.headers["range"], f"0-{end - 1}")
    return close(registry, answer, name)


def out_of_order(registry, location, content, name, start, size, put):
    """A chunk that leaves a gap, or begins again at 0 where there is nothing behind; gives the status after it."""
    wrong = start + size if start + size < len(content) else 0
    if wrong == start:  # one chunk is all there is
        wrong = len(content)
    chunk = content[wrong:wrong + size] or b"x"
    method, target = ("PUT", with_query(location, digest=name)) if put else ("PATCH", location)
    place = f"{wrong}-{wrong + len(chunk) - 1}"
    expect(registry(method, target, chunk, Content_Range=place, Content_Type=OCTETS), 416)
    # As clients do: at the very address that refused the chunk.
    return progress(registry, target, start)


# (name, way, whether it sends chunks with their place, which an empty blob does not have)
WAYS = [
    ("one POST", one_post, False),
    ("POST, PUT", post_then_put, False),
    ("POST, streamed PUT", streamed_put, False),
    ("streamed PATCH", streamed_patch, False),
    ("PATCH without a place", patch_without_place, False),
    ("PATCH and PUT without a place", patch_and_put_without_place, False),
    ("one chunk", one_chunk, True),
    ("three chunks", three_chunks, True),
    ("last chunk in the PUT", last_chunk_in_the_put, True),
    ("chunks out of order", chunks_out_of_order, True),
    ("chunks out of order, last in the PUT", chunks_out_of_order_last_in_the_put, True),
    ("taken up again", taken_up_again, True),
    ("after a declined mount", after_a_declined_mount, False),
    ("algorithm announced", with_announced_algorithm, False),
]

CONTENTS = [("empty", b""), ("{}", b"{}"), ("random", os.urandom(100_003))]


def is_stored(registry, repository, content, name, answer):
    """A 201 whose `Location` gives the blob."""
    expect(answer, 201)
    registry.named(answer, name, content)
    equal(expect(registry("GET", answer.headers["location"]), 200).body, content)


def is_served(registry, repository, content, name):
    """HEAD and GET tell its length and its digest, and GET gives it."""
    for method in ("HEAD", "GET"):
        answer = expect(registry(method, f"/v2/{repository}/blobs/{name}"), 200)
        equal(answer.headers.get("content-length"), str(len(content)))
        registry.named(answer, name, content)
        equal(answer.body, content if method == "GET" else b"")


def is_deleted(registry, repository, name):
    """At once: the next request does not find it."""
    answer = registry("DELETE", f"/v2/{repository}/blobs/{name}")
    registry.offered(answer.status != 405, "deleting blobs")
    expect(answer, 202)
    for method in ("HEAD", "GET"):
        expect(registry(method, f"/v2/{repository}/blobs/{name}"), 404)


def register_ways():
    for algorithm in ALGORITHMS:
        for way_name, way, with_places in WAYS:
            for content_name, content in CONTENTS:
                if with_places and not content:
                    continue
                register_way(f"push, serve, delete: {way_name} [{content_name}, {algorithm}]", way, content, digest(content, algorithm))


def register_way(what, way, content, name):
    repository = "uploads/ways"

    def push(registry):
        is_stored(registry, repository, content, name, way(registry, repository, content, name))
        is_served(registry, repository, content, name)
        is_deleted(registry, repository, name)

    add(what, what, push)


register_ways()


@check(*with_both([(name, way) for name, way, _ in WAYS]))
def wrong_digest(registry, algorithm, way):
    """push: content that is not its digest is refused and not stored"""
    content = os.urandom(3001)
    promised, arrived = digest(content + b"?", algorithm), digest(content, algorithm)
    error(way(registry, "uploads/wrong", content, promised), 400, "DIGEST_INVALID")
    for name in (promised, arrived):
        expect(registry("HEAD", f"/v2/uploads/wrong/blobs/{name}"), 404)


@check("", "sha256", "sha256:", "sha256:abc", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha512:" + "0" * 64,
       "sha999:" + "0" * 64, "no digest at all", "sha256:../../../../etc/passwd")
def malformed_digest(registry, text):
    """push: a malformed digest is 400"""
    error(registry("PUT", with_query(registry.start_upload("uploads/wrong"), digest=text), b"content"), 400, "DIGEST_INVALID")


@check()
def after_a_wrong_digest(registry):
    """push: after a wrong digest the upload is gone or goes on, and the content can be pushed"""
    location = registry.start_upload("uploads/wrong")
    expect(registry("PUT", with_query(location, digest=digest(b"else")), b"content"), 400)
    expect(registry("GET", location), 204, 404)
    answer = post_then_put(registry, "uploads/wrong", b"content", digest(b"content"))
    is_stored(registry, "uploads/wrong", b"content", digest(b"content"), answer)


@check()
def put_without_digest(registry):
    """push: closing an upload without a digest is 400"""
    error(registry("PUT", registry.start_upload("uploads/wrong"), b"content"), 400, "DIGEST_INVALID")


# --- mounts


@check(*ALGORITHMS)
def mount(registry, algorithm):
    """mount: from another repository; not visible before, and independent of the source after"""
    content = os.urandom(700)
    name = registry.push_blob("uploads/from", content, algorithm)["digest"]
    expect(registry("HEAD", f"/v2/uploads/to/blobs/{name}"), 404)
    answer = registry("POST", f"/v2/uploads/to/blobs/uploads/?mount={name}&from=uploads/from", b"")
    registry.offered(answer.status != 202, "mounting")
    is_stored(registry, "uploads/to", content, name, answer)
    is_deleted(registry, "uploads/from", name)
    is_served(registry, "uploads/to", content, name)
    is_deleted(registry, "uploads/to", name)


@check(*ALGORITHMS)
def mount_anonymously(registry, algorithm):
    """mount: without saying from where"""
    content = os.urandom(700)
    name = registry.push_blob("uploads/from", content, algorithm)["digest"]
    answer = registry("POST", f"/v2/uploads/to/blobs/uploads/?mount={name}", b"")
    registry.offered(answer.status != 202, "mounting without `from`")
    is_stored(registry, "uploads/to", content, name, answer)
    is_served(registry, "uploads/to", content, name)
    is_deleted(registry, "uploads/to", name)
    is_served(registry, "uploads/from", content, name)


@check(*ALGORITHMS)
def mount_at_home(registry, algorithm):
    """mount: from the repository itself"""
    content = os.urandom(700)
    name = registry.push_blob("uploads/from", content, algorithm)["digest"]
    answer = registry("POST", f"/v2/uploads/from/blobs/uploads/?mount={name}&from=uploads/from", b"")
    registry.offered(answer.status != 202, "mounting")
    is_stored(registry, "uploads/from", content, name, answer)


@check(*with_both([("from a repository without it", "uploads/wrong"), ("from no repository", "uploads/nowhere"), ("from anywhere", "")]))
def mount_of_nothing(registry, algorithm, source):
    """mount: of a blob that is not there opens an upload"""
    content = os.urandom(700)
    name = digest(content, algorithm)
    source = f"&from={source}" if source else ""
    answer = expect(registry("POST", f"/v2/uploads/to/blobs/uploads/?mount={name}{source}", b""), 202)
    expect(registry("HEAD", f"/v2/uploads/to/blobs/{name}"), 404)
    is_stored(registry, "uploads/to", content, name, close(registry, answer, name, content))


@check(*ALGORITHMS)
def mount_from_the_wrong_place(registry, algorithm):
    """mount: a blob of another repository than the one named is not given away"""
    name = registry.push_blob("uploads/from", os.urandom(700), algorithm)["digest"]
    expect(registry("POST", f"/v2/uploads/to/blobs/uploads/?mount={name}&from=uploads/wrong", b""), 202)
    expect(registry("HEAD", f"/v2/uploads/to/blobs/{name}"), 404)


@check(("digest", "mount=sha256:abc&from=uploads/from"), ("digest alone", "mount=nonsense"), ("source", "mount=sha256:" + "0" * 64 + "&from=../x"))
def malformed_mount(registry, query):
    """mount: a malformed request is refused, or declined"""
    answer = expect(registry("POST", f"/v2/uploads/to/blobs/uploads/?{query}", b""), *registry.either(400, 202))
    if answer.status == 400:
        assert answer.codes()


# --- sessions


@check()
def session_opens(registry):
    """session: POST tells where it is, with and without a slash at the end of its path"""
    for end in ("/", ""):
        answer = registry("POST", f"/v2/uploads/session/blobs/uploads{end}", b"")
        expect(answer, *((202,) if end else registry.either(202, 301, 307, 308, 404)))
        if answer.status == 202:
            assert answer.headers.get("docker-upload-uuid"), "clients rely on Docker-Upload-UUID"
            assert answer.headers.get("oci-chunk-min-length", "1").isdigit()
            progress(registry, answer.headers["location"], 0)


@check(*ALGORITHMS)
def session_progress(registry, algorithm):
    """session: each answer tells how far it is"""
    content = os.urandom(3000)
    location = registry.start_upload("uploads/session")
    for start in (0, 1000):
        place = f"{start}-{start + 999}"
        answer = expect(registry("PATCH", location, content[start:start + 1000], Content_Range=place, Content_Type=OCTETS), 202)
        equal(answer.headers["range"], f"0-{start + 999}")
        location = progress(registry, answer.headers["location"], start + 1000).headers["location"]
    name = digest(content, algorithm)
    answer = registry("PUT", with_query(location, digest=name), content[2000:], Content_Range="2000-2999")
    is_stored(registry, "uploads/session", content, name, answer)
    expect(registry("GET", location), 404)


@check()
def session_at_every_location(registry):
    """session: its status is at the location of any answer before"""
    content = os.urandom(30)
    locations = [registry.start_upload("uploads/session")]
    for start in range(0, 30, 10):
        place = f"{start}-{start + 9}"
        locations.append(expect(registry("PATCH", locations[-1], content[start:start + 10], Content_Range=place), 202).headers["location"])
        for location in locations:
            progress(registry, location, start + 10)


@check(("a gap", "1001-1500", 500), ("an overlap", "500-1499", 1000), ("the same again", "0-999", 1000), ("far away", "999999999999-999999999999", 1))
def session_order(registry, place, length):
    """session: a chunk out of order is 416, in PATCH and in PUT, and changes nothing"""
    content = os.urandom(2000)
    location = registry.start_upload("uploads/session")
    location = expect(registry("PATCH", location, content[:1000], Content_Range="0-999"), 202).headers["location"]
    expect(registry("PATCH", location, content[:length], Content_Range=place), 416)
    expect(registry("PUT", with_query(location, digest=digest(content)), content[:length], Content_Range=place), 416)
    answer = progress(registry, location, 1000)
    answer = expect(registry("PATCH", answer.headers["location"], content[1000:], Content_Range="1000-1999"), 202)
    expect(close(registry, answer, digest(content)), 201)


@check("bytes 0-9/10", "0-", "-9", "9-0", "a-b", "0-9/10", "0 - 9", "+0-9", "0-99999999999999999999999", "0-10", "0-8")
def session_nonsense(registry, place):
    """session: a place that is none, or not as long as the chunk, is refused and changes nothing"""
    location = registry.start_upload("uploads/session")
    answer = registry("PATCH", location, b"0123456789", Content_Range=place, Content_Type=OCTETS)
    registry.offered(answer.status != 202, "looking at such a place")
    expect(answer, 400, 416)
    progress(registry, location, 0)


@check("GET", "PATCH", "PUT", "DELETE")
def session_unknown(registry, method):
    """session: an upload that was never opened is 404"""
    location = f"/v2/uploads/session/blobs/uploads/{uuid.uuid4()}"
    location = with_query(location, digest=digest(b"x")) if method == "PUT" else location
    answer = registry(method, location, b"x" if method in ("PATCH", "PUT") else None)
    # A registry may sign its locations, and then this is not one of them.
    error(answer, registry.either(404, 400), "BLOB_UPLOAD_UNKNOWN", *(() if registry.ours else ("BLOB_UPLOAD_INVALID",)))


@check()
def session_elsewhere(registry):
    """session: an upload belongs to its repository"""
    location = registry.start_upload("uploads/session")
    elsewhere = location.replace("/v2/uploads/session/", "/v2/uploads/elsewhere/", 1)
    expect(registry("GET", elsewhere), *registry.either(404, 400))
    answer = registry("PUT", with_query(elsewhere, digest=digest(b"x")), b"x")
    expect(answer, *registry.either(404, 400))
    expect(registry("HEAD", f"/v2/uploads/elsewhere/blobs/{digest(b'x')}"), 404)


@check("just opened", "with half of it")
def cancelled(registry, when):
    """session: one that is cancelled is gone"""
    location = registry.start_upload("uploads/cancel")
    if when != "just opened":
        location = expect(registry("PATCH", location, b"half"), 202).headers["location"]
    answer = registry("DELETE", location)
    registry.offered(answer.status not in (400, 405), "cancelling")
    expect(answer, 204)
    for method in ("GET", "PATCH", "DELETE"):
        expect(registry(method, location, b"more" if method == "PATCH" else None), 404)
    expect(registry("PUT", with_query(location, digest=digest(b"half")), b""), 404)


@check()
def pushed_again(registry):
    """push: what is there already is 201 again, also from two sessions side by side"""
    content = os.urandom(5000)
    first, second = (registry.start_upload("uploads/again") for _ in range(2))
    for location in (first, second):
        is_stored(registry, "uploads/again", content, digest(content),
                  registry("PUT", with_query(location, digest=digest(content)), content))


@check()
def broken_upload(registry):
    """session: a connection that breaks off in the middle leaves no blob, and the upload can go on"""
    content = os.urandom(200_000)
    location = registry.start_upload("uploads/broken")
    host, port = registry.address.split(":")
    path = urllib.parse.urlsplit(location)
    with socket.create_connection((host, int(port)), timeout=10) as line:
        head = f"PATCH {path.path}{'?' + path.query if path.query else ''} HTTP/1.1\r\nHost: {registry.address}\r\n"
        line.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:100_000])
    expect(registry("HEAD", f"/v2/uploads/broken/blobs/{digest(content)}"), 404)
    # What was on its way may still arrive between the two requests; then the chunk is refused, and one asks again.
    for _ in range(100):
        status = expect(registry("GET", location), 204)
        said = status.headers["range"]
        start = 0 if said in ("0-0", "0--1") else int(said.split("-")[1]) + 1
        assert 0 <= start <= 100_000, said
        place = f"{start}-{len(content) - 1}"
        answer = registry("PATCH", status.headers["location"], content[start:], Content_Range=place)
        if answer.status not in (409, 416):
            break
        time.sleep(0.05)
    expect(answer, 202)
    is_stored(registry, "uploads/broken", content, digest(content), close(registry, answer, digest(content)))


@check()
def pushed_at_once(registry):
    """push: the same and different ones by sixteen clients at once"""
    contents = [os.urandom(100_000) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: registry.push_blob("uploads/parallel", contents[number % 8]), range(64)))
    for content in contents:
        is_served(registry, "uploads/parallel", content, digest(content))
